"""Remembered log-probs of the reference: found again by content, dropped when the reference moves, never another's."""

from __future__ import annotations

import errno
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from strop.device import Fetched
from strop.engine import reference_scores
from strop.engine.reference_scores import content_keys
from strop.model import apply_peft
from strop.records import Example, Want
from strop.testing.cases import make_trainer, rows_for
from strop.testing.tiny import tiny_model

TREE = Example([1, 2], [[3, 4], [5]], row=7, extras={"margin": 1.0})


def test_rows_are_known_by_everything_that_their_log_probs_depend_on() -> None:
    others = [
        replace(TREE, prompt_ids=[1]),
        replace(TREE, prompt_ids=[1, 2, 3], completions=[[4], [5]]),
        replace(TREE, completions=[[3], [4, 5]]),
        replace(TREE, completions=[[5], [3, 4]]),
        replace(TREE, loss_mask=[[0, 1], [1]]),
        replace(TREE, loss_mask=[[1, 0], [1]]),
    ]
    assert len({tuple(content_keys(tree)) for tree in (TREE, *others)}) == 1 + len(others)
    same = [replace(TREE, row=1), replace(TREE, extras={}), replace(TREE, loss_mask=[[1, 1], [1]])]
    assert all(content_keys(tree) == content_keys(TREE) for tree in same)
    assert content_keys(replace(TREE, completions=[[5]])) == content_keys(TREE)[1:]


def dpo(folder: Path, **options: Any) -> Any:
    return make_trainer("dpo", folder, rows=rows_for("dpo", 4), learning_rate=1e-2, num_train_epochs=3, **options)


def scored(trainer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs as the trainer sees them, and computed now."""
    batch = trainer.build([trainer.train_dataset[i] for i in range(4)])
    return trainer.reference_scores(batch).logps, trainer.reference_scores.compute(batch).logps


def test_a_reference_that_moves_is_scored_again(tmp_path: Path) -> None:
    trainer = dpo(tmp_path, sync_ref_model=True, ref_model_sync_steps=2, ref_model_mixup_alpha=1.0)
    start, _ = scored(trainer)
    trainer.train()
    seen, now = scored(trainer)
    assert not torch.allclose(start, now, atol=1e-4) and torch.allclose(seen, now, atol=1e-12)


def test_log_probs_of_another_reference_are_not_taken_over(tmp_path: Path) -> None:
    first = dpo(tmp_path / "first")
    expected, _ = scored(first)
    first.reference_scores.save(tmp_path / "logps.safetensors")
    again, other = dpo(tmp_path / "again"), dpo(tmp_path / "other", model=tiny_model("llama", seed=5, vocab_size=288))
    assert again.reference_scores.load(tmp_path / "logps.safetensors")
    assert torch.equal(scored(again)[0], expected)
    assert not other.reference_scores.load(tmp_path / "logps.safetensors")
    assert torch.allclose(*scored(other), atol=1e-12)


def base(arch: str = "llama") -> Any:
    return tiny_model(arch, dtype=torch.float32, vocab_size=288)


EMBEDDINGS: dict[str, dict[str, Any]] = {
    "lora on embeddings": {"target_modules": ["embed_tokens"]},
    "token rows": {"target_modules": ["q_proj"], "trainable_token_indices": list(range(3, 280))},
}


def beside_an_adapter(kind: str) -> Any:
    """LoRA, and weights of the base model that are trained beside it."""
    if kind == "biases":
        config = peft.LoraConfig(r=2, target_modules=["c_attn"], bias="all", task_type="CAUSAL_LM")
        return apply_peft(base("gpt2"), config)
    if kind in EMBEDDINGS:  # what belongs to the adapter itself, on tied embeddings
        return apply_peft(base("qwen2"), {"r": 2} | EMBEDDINGS[kind])
    policy = apply_peft(base(), {"r": 2, "target_modules": ["q_proj"]})
    for name, parameter in policy.named_parameters():
        if kind in name:
            parameter.requires_grad_(True)
    return policy


@pytest.mark.parametrize("kind", ["biases", "norm", "embed_tokens", *EMBEDDINGS])
def test_what_is_trained_beside_an_adapter_does_not_move_the_reference(kind: str, tmp_path: Path) -> None:
    trainer = dpo(tmp_path, model=beside_an_adapter(kind), logging_steps=1)
    before = scored(trainer)[1]
    trained = [(n, p) for n, p in trainer.policy.named_parameters() if p.requires_grad]
    moving = next((p for n, p in trained if "lora" not in n), trained[-1][1])
    start = moving.detach().clone()
    trainer.train()
    assert not torch.equal(moving, start)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert torch.equal(scored(trainer)[1], before)


PRECISE = {
    "full": lambda: base(),
    "adapter": lambda: apply_peft(base(), {"r": 2, "target_modules": "all-linear"}),
    "beside": lambda: beside_an_adapter("norm"),
}


@pytest.mark.parametrize("cached", [False, True], ids=["", "precomputed"])
@pytest.mark.parametrize("kind", list(PRECISE))
def test_policy_and_reference_are_scored_in_one_precision(kind: str, cached: bool, tmp_path: Path) -> None:
    options = {"precompute_ref_log_probs": True, "per_device_train_batch_size": 4}
    trainer = dpo(tmp_path, model=PRECISE[kind](), bf16=True, logging_steps=1, **(options if cached else {}))
    batch = trainer.build([trainer.train_dataset[i] for i in range(4)])
    policy = trainer.score_with(trainer.policy, batch, Want.LOGPS).logps.detach()
    assert torch.equal(policy, trainer.reference_scores.compute(batch).logps)
    trainer.train()
    bound = 2e-3 if cached else 1e-6  # rows of another batch go through other kernels
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=bound)
    assert policy.dtype == torch.float32


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_sampled_completions_start_without_a_kl_in_half_precision(method: str, tmp_path: Path) -> None:
    options = {"beta": 0.1, "bf16": True, "max_steps": 1, "logging_steps": 1, "max_completion_length": 6}
    trainer = make_trainer(method, tmp_path, rows=rows_for(method, 4), model=base(), **options)
    trainer.train()
    name = {"ppo": "objective/kl", "grpo": "kl"}[method]
    assert trainer.state.log_history[0][name] == 0.0


@pytest.mark.parametrize("damage", ["a value", "a name", "the header", "cut short"])
def test_damaged_log_probs_are_found_when_they_are_read(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, path = dpo(tmp_path), tmp_path / "logps.safetensors"
    expected, _ = scored(trainer)
    trainer.reference_scores.save(path)
    assert trainer.reference_scores.load(path) and not caplog.records
    content, header = bytearray(path.read_bytes()), int.from_bytes(path.read_bytes()[:8], "little")
    if damage == "cut short":
        del content[-9:]
    else:
        content[
            {"a value": len(content) - 1, "a name": content.index(b'":{"dtype') - 1, "the header": header}[damage]
        ] ^= 1
    path.write_bytes(content)
    again = dpo(tmp_path / "again")
    again.reference_scores.load(path)
    assert torch.allclose(scored(again)[0], expected, atol=1e-12)
    assert str(path) in caplog.text and "damaged" in caplog.text


def test_a_full_disk_costs_the_remembered_log_probs_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("strop.engine.reference_scores.written_beside", full)
    dpo(tmp_path, precompute_ref_log_probs=True, save_strategy="no", max_steps=1).train()
    said = capsys.readouterr().out
    assert "reference_logps.safetensors cannot be written" in said and "No space left" in said
    assert not list(tmp_path.glob("*logps*"))


KEPT: dict[str, tuple[str, dict[str, Any], bool]] = {
    "one epoch": ("dpo", {}, False),
    "two epochs": ("dpo", {"num_train_epochs": 2}, True),
    "two passes over a step": ("dpo", {"loss_type": "aot"}, True),
    "two passes over parts of a step": ("kto", {}, False),
    "evaluation": ("dpo", {"eval_strategy": "steps", "eval_steps": 1}, True),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_comes_once_is_not_kept(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verb, options, kept = KEPT[name]
    fetched: list[int] = []
    monkeypatch.setattr(reference_scores, "Fetched", lambda logps: fetched.append(len(logps)) or Fetched(logps))
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = make_trainer(verb, tmp_path, rows=rows_for(verb, 8), eval_rows=rows_for(verb, 2, seed=1), **cut | options)
    trainer.train()
    assert bool(trainer.reference_scores._known) is bool(fetched) is kept
    if name == "evaluation":
        assert len(fetched) == 1  # for one batch one copy; its rows are known the second time
    if name == "two epochs":
        assert len(fetched) == 4
