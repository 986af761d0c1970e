"""What a saved scoring model gives in plain transformers: the score that it was trained on, alone and in a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig
from tests.support.tokenizers import toy_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from strop.model import score
from strop.model.actor_critic import VALUE_FOLDER
from strop.records import Example, Want
from strop.testing.cases import make_trainer
from strop.testing.tiny import tiny_model

CHATS = [
    {
        "prompt": [{"role": "user", "content": "the ant"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad bad"}],
    }
]


def seen(trainer: Any) -> tuple[list[list[int]], torch.Tensor]:
    """Ids of some rows' sides, and their scores in strop."""
    examples: list[Example] = [trainer.train_dataset[i] for i in range(min(3, len(trainer.train_dataset)))]
    with torch.no_grad():
        scores = score(trainer.policy.eval(), examples, want=Want.SCORE).scores
    assert scores is not None
    return [e.prompt_ids + completion for e in examples for completion in e.completions], scores


def assert_same_scores(model: Any, folder: Path, ids: list[list[int]], scores: torch.Tensor) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        alone = torch.cat([model(input_ids=torch.tensor([row])).logits[:, 0] for row in ids])
        assert torch.allclose(alone, scores.to(alone.dtype), atol=1e-4)
        for side in ("right", "left"):
            tokenizer.padding_side = side
            batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
            assert not batch["attention_mask"].all()  # something is padded
            batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
            assert torch.allclose(model(**batch).logits[:, 0], scores.to(alone.dtype), atol=1e-4), side


@pytest.mark.parametrize(
    ("variant", "arch"), [("no_pad", "llama"), ("pad_is_eos", "gpt2"), ("chatml_pad_is_eos", "llama")]
)
def test_a_saved_reward_model_scores_the_same_elsewhere(variant: str, arch: str, tmp_path: Path) -> None:
    rows = CHATS if variant.startswith("chatml") else None
    model = tiny_model(arch, dtype=torch.float32, vocab_size=288, pad_token_id=None)
    trainer = make_trainer("reward", tmp_path / "run", model=model, tokenizer=toy_tokenizer(variant), rows=rows)
    trainer.save_model(str(tmp_path / "out"))
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert_same_scores(saved, tmp_path / "out", *seen(trainer))


def test_rows_that_end_with_the_pad_token(tmp_path: Path) -> None:
    tokenizer = toy_tokenizer("plain")
    rows = [{"chosen_ids": [30, 31, 20, 0], "rejected_ids": [30, 31, 22, 23, 0]}]
    trainer = make_trainer("reward", tmp_path, rows=rows, tokenizer=tokenizer)
    assert tokenizer.pad_token_id not in (0, tokenizer.eos_token_id)
    assert trainer.model.config.pad_token_id == tokenizer.pad_token_id


def test_an_adapter_says_what_its_folder_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = toy_tokenizer("pad_is_eos")
    tiny_model("llama", dtype=torch.float32, vocab_size=288, task="score").save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", dtype=torch.float32)
    base.config.pad_token_id = tokenizer.eos_token_id
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    trainer = make_trainer("reward", tmp_path / "run", model=base, tokenizer=tokenizer, trainer={"peft_config": lora})
    assert "model.config.pad_token_id = tokenizer.pad_token_id" in capsys.readouterr().out
    for _ in range(2):
        trainer.save_model(str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert card.count("model.config.pad_token_id = tokenizer.pad_token_id") == 1
    saved = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=1).eval()
    saved.config.pad_token_id = AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id
    assert_same_scores(saved, tmp_path / "out", *seen(trainer))


def test_a_saved_critic_scores_the_last_token(tmp_path: Path) -> None:
    tokenizer = toy_tokenizer("pad_is_eos")
    trainer = make_trainer("ppo", tmp_path / "run", tokenizer=tokenizer, dtype=torch.float32)
    trainer.save_model(str(tmp_path / "out"))
    folder, critic = tmp_path / "out" / VALUE_FOLDER, trainer.model.critic.eval()
    ids = [[20, 21, 22, tokenizer.eos_token_id], [30, tokenizer.eos_token_id]]
    with torch.no_grad():
        values = torch.stack(
            [critic.score(critic.model(torch.tensor([row])).last_hidden_state)[0, -1, 0] for row in ids]
        )
    saved = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    assert_same_scores(saved, folder, ids, values)
    assert tokenizer.pad_token_id == AutoTokenizer.from_pretrained(tmp_path / "out").pad_token_id == 2  # the policy's
