"""Adapters on reward and step models: the head learns and is saved, whatever the adapter's config calls the task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from strop.model import load_model, score
from strop.records import Example, Want
from strop.testing.cases import make_trainer
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

CONFIGS = {
    "copied from a language model": lambda: peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    "as a dict": lambda: {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM"},
    "norms": lambda: peft.LNTuningConfig(),
}


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("verb", ["reward", "prm"])
def test_the_head_learns_and_is_saved(verb: str, config: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task, want = {"reward": ("score", Want.SCORE), "prm": ("step", Want.STEP)}[verb]
    base = tmp_path / "base"
    tiny_model("llama", dtype=torch.float32, task=task, vocab_size=len(toy_tokenizer("plain"))).save_pretrained(base)
    given: Any = CONFIGS[config]()
    trainer = make_trainer(verb, tmp_path, model=str(base), trainer={"peft_config": given}, max_steps=1)
    if config != "norms":
        assert "task_type='CAUSAL_LM' belongs to another head" in caplog.text
    head = [weight for name, weight in trainer.model.named_parameters() if ".score." in name and weight.requires_grad]
    before = [weight.detach().clone() for weight in head]
    trainer.train()
    assert head and not any(torch.equal(weight, old) for weight, old in zip(head, before, strict=True))
    trainer.save_model(str(tmp_path / "out"))
    again = load_model(tmp_path / "out", task=task, trainable=False)
    with torch.no_grad():
        found = [score(m, [Example([20, 21], [[22, 23]])], want=want) for m in (trainer.policy.eval(), again)]
    numbers = [scores.scores if verb == "reward" else scores.step_logits for scores in found]
    assert numbers[0] is not None and torch.allclose(numbers[0], numbers[1], atol=1e-6)
