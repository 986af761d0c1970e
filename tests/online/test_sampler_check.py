"""Samples of another distribution than the policy's are an alarm before the first update, in every online method."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from strop.online.sampler_check import sampler_difference
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


@pytest.mark.parametrize("verb", sorted(ONLINE))
def test_every_method_says_how_far_the_sampler_is(verb: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"lmbda": 1.0} if verb == "gkd" else {}
    trainer, said = make_trainer(verb, tmp_path, max_steps=2, temperature=0.9, **settings), []
    trainer.say = said.append
    trainer.train()
    lines = [line for line in said if line.startswith("Sampler and trainer")]
    assert len(lines) == 1 and "(native, float64)" in lines[0] and "16 bits" not in lines[0]
    first, second = trainer.state.log_history[:2]
    assert ("sampling/kl" in second) == (verb not in ("gkd", "ppo"))  # no log-probs; of a round, which serves it too
    if verb == "gkd":
        return
    assert 0 <= first["sampling/sampling_logp_difference/mean"] <= first["sampling/sampling_logp_difference/max"] < 1e-9


@pytest.mark.parametrize("verb", ["online-dpo", "nash-md", "xpo-online", "ppo"])
def test_the_difference_of_a_step_is_that_of_its_tokens(verb: str, tmp_path: Path) -> None:
    trainer = make_trainer(verb, tmp_path, max_steps=1)
    trainer._generator = Untrue(trainer.generator, 0.25)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["sampling/sampling_logp_difference/mean"] == pytest.approx(0.25)
    assert logged["sampling/importance_sampling_ratio/min"] == pytest.approx(math.exp(-0.25))


def test_a_teacher_that_samples_is_not_taken_for_the_policy(tmp_path: Path) -> None:
    trainer = make_trainer("gkd", tmp_path, max_steps=1, lmbda=0.0, seq_kd=True)
    trainer.train()
    assert "sampler_mismatch" not in trainer.guard.alarms.raised


@pytest.mark.parametrize(
    ("computed", "mixed", "advice"),
    [
        ("float32", False, None),
        ("bfloat16", True, "fp16=True"),
        ("float16", True, "fp16=False brings"),
        ("bfloat16", False, "dtype"),
    ],
)
def test_the_line_names_the_precision_that_closes_the_difference(
    computed: str, mixed: bool, advice: str | None
) -> None:
    off = 0.0002 if advice is None else 0.01
    own, told = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.0, -2.0 - off, math.nan])
    differs, line = sampler_difference(own, told, engine="native", computed=computed, mixed=mixed)
    assert not differs
    assert f"of 2 tokens differ by {off / 2:.1e} nats a token, up to {off:.1e}" in line
    assert (advice is None) == ("16 bits" not in line) and (advice or "") in line
    nothing = sampler_difference(own, own * math.nan, engine="native", computed=computed, mixed=mixed)
    assert nothing == (False, "")
