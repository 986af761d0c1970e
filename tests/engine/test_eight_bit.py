"""8-bit layers compute the same in training, evaluation, rollout and as a reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BitsAndBytesConfig

from strop.model import evaluating
from strop.records import Want
from strop.testing.cases import make_trainer, rows_for
from strop.testing.tiny import tiny_model

pytest.importorskip("bitsandbytes")


def test_training_and_evaluation_share_their_numbers(tmp_path: Path) -> None:
    sizes = {"vocab_size": 288, "hidden_size": 64, "intermediate_size": 128}
    tiny_model("llama", dtype=torch.float32, **sizes).save_pretrained(tmp_path / "model")
    options = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "peft_config": {"r": 2}}
    trainer = make_trainer(
        "dpo", tmp_path, model=str(tmp_path / "model"), rows=rows_for("dpo", 4), trainer=options, max_steps=1
    )
    assert trainer.layout.name == "tree"
    batch = trainer.build([trainer.train_dataset[i] for i in range(4)])
    with torch.no_grad():
        training = trainer.score_with(trainer.policy.train(), batch, Want.LOGPS).logps
        with evaluating(trainer.policy):
            assert torch.equal(trainer.score_with(trainer.policy, batch, Want.LOGPS).logps, training)
    assert torch.equal(trainer.reference_scores.compute(batch).logps, training)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
