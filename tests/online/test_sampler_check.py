"""Samples of another distribution than the policy's are an alarm before the first update, in every online method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from strop.records import Rollout
from strop.testing.cases import ONLINE, make_trainer


class Untrue:
    """A rollout engine that reports log-probs by another temperature than it was asked for."""

    def __init__(self, engine: Any, off: float) -> None:
        self.engine, self.off, self.name, self.reason = engine, off, "untrue", "a test"

    def sync(self, model: Any = None) -> None:
        self.engine.sync(model)

    def generate(self, *args: Any, **kwargs: Any) -> Rollout:
        rollout = self.engine.generate(*args, **kwargs)
        rollout.sampler_logps = [[[x + self.off for x in ids] for ids in line] for line in rollout.sampler_logps]
        return rollout


@pytest.mark.parametrize("verb", sorted(ONLINE))
def test_every_method_tells_a_true_engine_from_another(verb: str, tmp_path: Path) -> None:
    settings = {"top_k": 40, "temperature": 0.8, "disable_dropout": False}
    trainer = make_trainer(verb, tmp_path, **settings)
    rows = [trainer.train_dataset[i] for i in range(4)]
    engine, state = trainer.generator, torch.get_rng_state()
    for off, alarms in ((0.0, []), (5e-3, ["sampler_mismatch"])):
        trainer._generator, trainer._sampler_compared = Untrue(engine, off), False
        trainer.rollout(rows, 2, training=True)
        assert list(trainer.guard.alarms.raised) == alarms
    assert torch.equal(torch.get_rng_state(), state)
    assert "0.005 nats a token" in trainer.guard.alarms.raised["sampler_mismatch"]
