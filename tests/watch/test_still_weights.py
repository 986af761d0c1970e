"""An alarm where training moves no weight, and none where it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from strop.testing.cases import make_trainer
from strop.testing.tiny import tiny_model


class Idle(torch.optim.SGD):
    """Holds the trained weights and leaves them where they are."""

    def step(self, closure: Any = None) -> None:
        return None


class Late(torch.optim.SGD):
    """Idle for the first steps."""

    def step(self, closure: Any = None) -> None:
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps > 2:
            super().step()


def trained(folder: Path, optimizer: type[torch.optim.SGD], **settings: Any) -> Any:
    model = tiny_model("llama", dtype=torch.float32, vocab_size=288)
    optimizers = (optimizer(model.parameters(), lr=0.1), None)
    trainer = make_trainer("sft", folder, model=model, trainer={"optimizers": optimizers}, **settings)
    trainer.train()
    return trainer


@pytest.mark.parametrize("settings", [{}, {"num_train_epochs": 6, "logging_steps": 20}])
def test_weights_that_stand_still_are_said_once(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = min(10, 3 * settings.get("num_train_epochs", 1))
    trained(tmp_path, Idle, **settings)
    out = capsys.readouterr().out
    assert out.count(f"[weights_stand_still] step {steps}: none of the 21 trained weights moved in {steps} steps") == 1


def test_weights_that_move_are_not_reported(tmp_path: Path) -> None:
    trained(tmp_path, Late)
    assert not (tmp_path / "alarms.jsonl").exists()


def test_a_learning_rate_of_zero_is_meant(tmp_path: Path) -> None:
    make_trainer("sft", tmp_path, learning_rate=0.0).train()
    assert not (tmp_path / "alarms.jsonl").exists()
