"""A rehearsal finds what does not fit, and the run after it is the run without it, byte for byte."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from strop.engine import rehearsal
from strop.engine.preflight import DryRunEnds
from strop.engine.rehearsal import longest_known, rehearse, untouched
from strop.testing.cases import CASES, make_trainer, rows_for, words

QUICK = ("sft", "bco", "rloo")
"""One of each kind: rows one by one, running means, sampling before the step; the others with `-m slow`."""


def state_of(trainer: Any) -> dict[str, torch.Tensor]:
    weights = {name: weight.detach().clone() for name, weight in trainer.policy.named_parameters()}
    moments = trainer.optimizer.state_dict()["state"]
    return weights | {f"{i} {name}": torch.as_tensor(v) for i, s in moments.items() for name, v in s.items()}


def trained(verb: str, folder: Path, *, resume: Path | None = None, **settings: Any) -> Any:
    trainer = make_trainer(verb, folder, disable_dropout=False, per_device_train_batch_size=2, **settings)
    for module in trainer.policy.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.2
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("verb", [v if v in QUICK else pytest.param(v, marks=pytest.mark.slow) for v in CASES])
def test_a_rehearsed_run_is_the_same_run(verb: str, tmp_path: Path) -> None:
    plain, rehearsed = (state_of(trained(verb, tmp_path / str(on), rehearsal=on, max_steps=2)) for on in (False, True))
    assert plain.keys() == rehearsed.keys()
    assert not [name for name in plain if not torch.equal(plain[name], rehearsed[name])]


@pytest.mark.parametrize("verb", ["bco", pytest.param("grpo", marks=pytest.mark.slow)])
def test_a_resumed_run_is_rehearsed_and_the_same_run(verb: str, tmp_path: Path) -> None:
    whole = state_of(trained(verb, tmp_path / "a", rehearsal=False, max_steps=3, save_strategy="steps", save_steps=2))
    trained(verb, tmp_path / "b", rehearsal=True, max_steps=3, save_strategy="steps", save_steps=2)
    resume = tmp_path / "b" / "checkpoint-2"
    again = state_of(trained(verb, tmp_path / "b", rehearsal=True, max_steps=3, save_strategy="no", resume=resume))
    assert not [name for name in whole if not torch.equal(whole[name], again[name])]


def test_the_longest_rows_known_are_computed(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = rows_for("dpo", 6)
    rows[4] = {"prompt": words(rng, 9, 9), "chosen": words(rng, 9, 9), "rejected": words(rng, 9, 9)}
    trainer = make_trainer("dpo", tmp_path, rows=rows, per_device_train_batch_size=1)
    longest = max(trainer.train_dataset, key=lambda tree: tree.num_tokens)
    assert longest_known(trainer.train_dataset, 7)[0].row == longest.row == 4
    trainer.create_optimizer_and_scheduler(4)
    trainer.model_wrapped = trainer.accelerator.prepare(trainer.model)
    with untouched(trainer):
        found = rehearse(trainer)
    assert found.trees[0].row == 4 and found.longest == longest.num_tokens
    assert all(weight.grad is None for weight in trainer.policy.parameters())


def test_sampled_completions_are_rehearsed_at_their_longest(tmp_path: Path) -> None:
    trainer = make_trainer("grpo", tmp_path, max_completion_length=40)
    trainer.create_optimizer_and_scheduler(4)
    with untouched(trainer):
        found = rehearse(trainer)
    assert {len(completion) for tree in found.trees for completion in tree.completions} == {40}


def test_a_short_run_is_not_rehearsed_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer("sft", tmp_path / "a", max_steps=1).train()
    assert "rehearsal" not in capsys.readouterr().out
    make_trainer("sft", tmp_path / "b", max_steps=1, rehearsal=True).train()
    said = capsys.readouterr().out
    for subject in ("versions", "devices", "model", "layout", "disk", "two micro-batches of the longest rows"):
        assert subject in said


def test_a_dry_run_trains_nothing(tmp_path: Path) -> None:
    trainer = make_trainer("sft", tmp_path, max_steps=1)
    trainer.preflight.only = True
    before = {name: weight.clone() for name, weight in trainer.policy.state_dict().items()}
    with pytest.raises(DryRunEnds):
        trainer.train()
    assert trainer.state.global_step == 0
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.policy.state_dict().items())


def test_memory_for_logits_is_chosen_before_the_moments_take_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are counted among what is still to come, and would be counted twice."""
    chosen: list[Any] = []
    monkeypatch.setattr(rehearsal, "moments", lambda trainer: chosen.append(vars(trainer).get("_free_share")))
    trained("sft", tmp_path, rehearsal=True, max_steps=1)
    assert chosen == [512 << 20]
