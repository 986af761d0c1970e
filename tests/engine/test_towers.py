"""Text-only training of a vision-language model: its vision tower rests, on one process and on two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.support.processes import run_ranks
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from strop.testing.cases import make_trainer, rows_for


def trained(folder: str, **trainer: Any) -> tuple[bool, bool]:
    """Whether vision and text weights moved in two steps."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**size, image_size=16, patch_size=8)
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**size, vocab_size=288), image_token_id=7)
    model = LlavaForConditionalGeneration(config).float()
    options = {"max_steps": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    options |= {"gradient_checkpointing": True}  # DDP looks for weights without gradient only where it is off
    run = make_trainer("dpo", folder, model=model, rows=rows_for("dpo", 8), trainer=trainer, **options)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    return any("vision" in n or "projector" in n for n in moved), any("language_model" in n for n in moved)


def test_a_vision_tower_rests_while_text_is_trained_on(tmp_path: Path, capsys: Any) -> None:
    assert trained(str(tmp_path)) == (False, True)
    assert (
        "vision_tower, multi_modal_projector of LlavaForConditionalGeneration are not trained"
        in capsys.readouterr().out
    )
    assert trained(str(tmp_path / "lora"), peft_config={"r": 2, "target_modules": "all-linear"}) == (False, True)


def test_two_processes_do_not_wait_for_a_vision_tower(tmp_path: Path) -> None:
    assert run_ranks(trained, 2, tmp_path / "ranks", str(tmp_path / "run")) == [(False, True)] * 2
