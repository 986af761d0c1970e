"""AdaLoRA has all its parts: ranks are allocated, factors are kept orthogonal, and a resumed run is the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, PeftModel

from strop.testing.cases import make_trainer, rows_for
from strop.testing.tiny import tiny_model


def trainer(folder: Path, verb: str = "dpo", **options: Any) -> Any:
    config = AdaLoraConfig(
        target_modules=["q_proj", "v_proj"], init_r=4, target_r=1, total_step=6, tinit=1, tfinal=1, deltaT=1,
        orth_reg_weight=options.pop("orth", 0.5), task_type="CAUSAL_LM",
    )  # fmt: skip
    model = tiny_model("llama", dtype=torch.float32, vocab_size=288)
    defaults = {"max_steps": 6, "learning_rate": 1e-2, "logging_steps": 1}
    return make_trainer(
        verb, folder, model=model, rows=rows_for(verb, 4), trainer={"peft_config": config}, **defaults | options
    )


def singular_values(run: Any) -> list[torch.Tensor]:
    return [p.detach() for name, p in run.model.named_parameters() if "lora_E" in name]


def test_the_budget_is_allocated_and_the_reference_is_the_base(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.train()
    assert sum(int((values != 0).sum()) for values in singular_values(run)) == 4  # of 16, target_r in four layers
    assert run.model.peft_config["default"].rank_pattern
    assert run.state.log_history[0]["rewards/margins"] == 0.0
    run.save_model(str(tmp_path / "saved"))
    again = PeftModel.from_pretrained(tiny_model("llama", dtype=torch.float32, vocab_size=288), tmp_path / "saved")
    ids = torch.tensor([[3, 5, 8]])
    assert torch.allclose(again.eval()(input_ids=ids).logits, run.model.eval()(input_ids=ids).logits, atol=1e-6)


def test_the_orthogonal_term_is_in_the_loss_once(tmp_path: Path) -> None:
    losses = []
    for orth, parts in ((0.0, 1), (0.5, 1), (0.5, 4)):
        run = trainer(tmp_path, orth=orth, max_steps=1, per_device_train_batch_size=4 // parts,
                      gradient_accumulation_steps=parts)  # fmt: skip
        terms = []
        for name, factor in run.model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                gram = factor.T @ factor if "lora_B" in name else factor @ factor.T
                terms.append(float((gram - torch.eye(4)).square().sum().sqrt()))
        run.train()
        losses.append((run.state.log_history[0]["loss"], sum(terms) / len(terms)))
    (plain, _), (whole, term), (in_parts, same) = losses
    assert whole - plain == pytest.approx(0.5 * term, rel=1e-4)
    assert in_parts - plain == pytest.approx(0.5 * same, rel=1e-4)


def test_a_resumed_run_allocates_what_the_other_would_have(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 3}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    trainer(tmp_path / "cut", **options).train()
    again = trainer(tmp_path / "cut", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert all(torch.equal(a, b) for a, b in zip(singular_values(whole), singular_values(again), strict=True))
