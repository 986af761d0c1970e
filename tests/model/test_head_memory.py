"""How many bytes of logits may live at once: as given, else by the device and what is free on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from strop.model import head_memory
from strop.model.head_memory import LEAST, MOST, bytes_to_come, default_head_bytes, share_of
from strop.plan.memory import Load, logit_bytes
from strop.testing.cases import make_trainer

GB = 1 << 30


@pytest.mark.parametrize(
    ("free", "share"),
    [
        (-3 * GB, LEAST),
        (0, LEAST),
        (4 * GB, LEAST),
        (8 * GB - 1, LEAST),
        (8 * GB, GB),
        (9 * GB, GB),
        (15.9 * GB, GB),
        (16 * GB, 2 * GB),
        (63 * GB, 4 * GB),
        (64 * GB, MOST),
        (139 * GB, MOST),
    ],
)
def test_a_share_of_what_is_free(free: float, share: int) -> None:
    assert share_of(int(free)) == share


def faked(monkeypatch: pytest.MonkeyPatch, free: int, reserved: int = 0, allocated: int = 0) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (free, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device=None: allocated)


def test_the_device_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    faked(monkeypatch, 16 * GB)
    assert default_head_bytes(torch.device("cpu")) == 512 << 20
    assert default_head_bytes(torch.device("cuda")) == 2 * GB
    assert default_head_bytes(torch.device("cuda", 3), to_come=GB) == GB
    faked(monkeypatch, 14 * GB, reserved=5 * GB, allocated=3 * GB)  # 2 GB that PyTorch holds and does not use
    assert default_head_bytes(torch.device("cuda")) == 2 * GB
    assert default_head_bytes(torch.device("meta")) == LEAST  # a device that does not say


class OnCard:
    """A config that says it runs on a card; the rest is another's."""

    device = torch.device("cuda")

    def __init__(self, args: Any) -> None:
        self.args = args

    def __getattr__(self, name: str) -> Any:
        return getattr(self.args, name)


def test_a_trainer_takes_it_once_and_a_given_number_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer("sft", tmp_path)
    assert trainer.args.head_memory_mb is None
    assert make_trainer("sft", tmp_path).head_bytes == 512 << 20
    trained = sum(p.numel() for p in trainer.model.parameters())
    trainer.args = OnCard(trainer.args)
    faked(monkeypatch, 32 * GB + 12 * trained)
    assert trainer.head_bytes == 4 * GB
    faked(monkeypatch, GB)
    assert trainer.head_bytes == 4 * GB  # what training takes afterwards changes nothing
    trainer.args.head_memory_mb = 3
    assert trainer.head_bytes == 3 << 20  # after the first batch too, as after one for which memory was short
    assert make_trainer("sft", tmp_path, head_memory_mb=3).head_bytes == 3 << 20


def test_what_training_will_take_is_not_free(tmp_path: Path) -> None:
    trainer = make_trainer("sft", tmp_path, max_steps=1)
    trained = sum(p.numel() for p in trainer.model.parameters())
    assert bytes_to_come(trainer.policy, trainer.optimizer) == 12 * trained
    trainer.train()
    assert bytes_to_come(trainer.policy, trainer.optimizer) == 4 * trained  # the optimizer's state is there
    next(iter(trainer.model.parameters())).requires_grad_(False)
    assert bytes_to_come(trainer.policy, trainer.optimizer) < 4 * trained


def test_the_plan_counts_what_a_run_takes() -> None:
    assert logit_bytes(Load(head_bytes=7), 0) == 7
    assert logit_bytes(Load(), 0) == LEAST
    assert logit_bytes(Load(card=40 * GB), 24 * GB) == 2 * GB == share_of(16 * GB)
    assert head_memory.SHARE * 2 * GB == 16 * GB
