"""A model that torch.compile was given is trained by the module inside, and the weights are its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from strop.testing.cases import make_trainer
from strop.testing.tiny import tiny_model


def base() -> Any:
    return tiny_model("llama", dtype=torch.float32, vocab_size=288)


def in_place(model: Any) -> Any:
    model.compile()
    return model


def beneath_an_adapter(model: Any) -> Any:
    return peft.get_peft_model(torch.compile(model), peft.LoraConfig(r=2, target_modules=["q_proj"]))  # type: ignore[arg-type]


def a_layer(model: Any) -> Any:
    model.model.layers[0] = torch.compile(model.model.layers[0])
    return model


@pytest.mark.parametrize(
    ("verb", "make"),
    [
        *(("sft", make) for make in (torch.compile, in_place, beneath_an_adapter, a_layer)),
        *((verb, torch.compile) for verb in ("dpo", "reward", "ppo")),
    ],
)
def test_the_module_inside_is_trained(verb: str, make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, model = base(), base()
    options = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    if make is beneath_an_adapter:
        plain = peft.get_peft_model(plain, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    losses = []
    for name, one in (("plain", plain), ("compiled", make(model))):
        trainer = make_trainer(verb, tmp_path / name, model=one, **options)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
        assert "_orig_mod" not in str(trainer.model)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert capsys.readouterr().out.count("The model is compiled") == 1
