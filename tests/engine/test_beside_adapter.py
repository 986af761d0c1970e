"""Weights that are trained beside an adapter are in every checkpoint and in what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from strop.errors import SetupError
from strop.export.merge import merged
from strop.model import apply_peft, load_model
from strop.model.actor_critic import VALUE_FOLDER
from strop.model.beside_adapter import FILE, beside_adapter
from strop.rollout.vllm_weights import lora_adapter
from strop.testing.cases import make_trainer, rows_for
from strop.testing.tiny import tiny_model

IDS = torch.tensor([[5, 9, 77, 30, 100]])


def base(folder: Path) -> Any:
    """A base model that a folder holds, as an adapter's is."""
    if not folder.exists():
        tiny_model("llama", dtype=torch.float32, vocab_size=288).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def unfrozen(folder: Path, part: str = "norm") -> Any:
    model = apply_peft(base(folder), {"r": 2, "target_modules": ["q_proj"]})
    for name, weight in model.named_parameters():
        if part in name:
            weight.requires_grad_(True)
    return model


def trained(verb: str, folder: Path, model: Any, *, resume: Any = None, **options: Any) -> Any:
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.05, **options}
    trainer = make_trainer(verb, folder, rows=rows_for(verb, 8), model=model, **settings)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(("verb", "part"), [("sft", "norm"), ("dpo", "embed_tokens")])
def test_they_come_again(verb: str, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = trained(verb, tmp_path / "run", unfrozen(tmp_path / "base", part))
    assert "weights beside the adapter are trained" in capsys.readouterr().out
    again = trained(verb, tmp_path / "run", unfrozen(tmp_path / "base", part), resume=tmp_path / "run" / "checkpoint-1")
    for (name, first), second in zip(whole.policy.named_parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(first, second), name
    whole.save_model(str(tmp_path / "out"))
    with torch.no_grad():
        expected = whole.policy.eval()(IDS).logits
        loaded = load_model(tmp_path / "out", dtype=torch.float32)
        assert torch.equal(loaded(IDS).logits, expected)
        loaded.save_pretrained(tmp_path / "again")
        assert beside_adapter(loaded)  # frozen now, and still beside
        assert torch.allclose(merged(tmp_path / "out")(IDS).logits, expected, atol=1e-5)


def test_the_best_of_them_come_again(tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "max_steps": 3}
    trainer = make_trainer(
        "sft", tmp_path / "run", rows=rows_for("sft", 8), eval_rows=rows_for("sft", 4), save_strategy="steps",
        model=unfrozen(tmp_path / "base"), save_steps=1, greater_is_better=True, learning_rate=0.05, **options,
    )  # fmt: skip
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-1"  # the greatest loss
    saved = load_model(best, dtype=torch.float32)
    for name, weight in beside_adapter(trainer.policy).items():
        assert torch.equal(weight, dict(saved.named_parameters())[name])


def test_a_folder_without_them_is_refused(tmp_path: Path) -> None:
    trained("sft", tmp_path / "run", apply_peft(base(tmp_path / "base"), {"r": 2, "target_modules": ["q_proj"]}))
    assert not (tmp_path / "run" / "checkpoint-2" / FILE).exists()
    with pytest.raises(SetupError, match="do not come again"):
        trained("sft", tmp_path / "run", unfrozen(tmp_path / "base"), resume=tmp_path / "run" / "checkpoint-1")


def test_both_of_policy_and_critic_come_again(tmp_path: Path) -> None:
    whole = trained("ppo", tmp_path / "run", unfrozen(tmp_path / "base"), max_completion_length=4)
    assert (tmp_path / "run" / "checkpoint-1" / FILE).exists()
    assert not (tmp_path / "run" / "checkpoint-1" / VALUE_FOLDER / FILE).exists()  # the critic's are frozen
    again = trained(
        "ppo", tmp_path / "run", unfrozen(tmp_path / "base"), resume=tmp_path / "run" / "checkpoint-1",
        max_completion_length=4,
    )  # fmt: skip
    for first, second in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(first, second)


def test_what_the_adapter_owns_is_not_beside(tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [
        {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"trainable_token_indices": {"wte": [3]}},
    ]  # fmt: skip
    for option in options:
        config = peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", **option)
        model = apply_peft(tiny_model("gpt2", dtype=torch.float32, vocab_size=288), config)
        assert not beside_adapter(model)


def test_vllm_is_not_given_a_part_of_the_policy(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"trained beside it=.*norm"):
        lora_adapter(unfrozen(tmp_path / "base"))
