"""Prompt and prefix tuning: the numbers of PEFT's own forward row by row, training, reference, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.support.random_trees import random_examples

from strop.errors import ConfigError, SetupError
from strop.model import AdapterCopy, apply_peft, base_model, layout_of, score
from strop.records import Example, Want
from strop.testing.cases import make_trainer, rows_for
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

TOKENS = 3
KINDS = {
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS),
}
EXAMPLES = random_examples(2, trees=3, completions=(2, 3))


def base(family: str = "llama") -> Any:
    return tiny_model(family, vocab_size=len(toy_tokenizer("plain")), dtype=torch.float64)


def tuned(kind: str, family: str = "llama") -> Any:
    torch.manual_seed(7)
    policy = apply_peft(base(family), KINDS[kind]())
    for parameter in policy.prompt_encoder.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, dtype=torch.float64)
    return policy


def row_by_row(policy: Any, examples: list[Example]) -> torch.Tensor:
    """Log-probs of completions by PEFT's forward, one row at a time and without padding."""
    found = []
    for example in examples:
        for completion in example.completions:
            ids = torch.tensor([[*example.prompt_ids, *completion]])
            logits = policy(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -ids.shape[1] :]
            logps = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
            found.append(logps[len(example.prompt_ids) - 1 :])
    return torch.cat(found)


@pytest.mark.parametrize(("kind", "family"), [("prompt", "llama"), ("prompt", "gpt2"), ("prefix", "llama")])
def test_the_same_as_rows_by_themselves(kind: str, family: str) -> None:
    policy = tuned(kind, family)
    (weight,) = [p for p in policy.parameters() if p.requires_grad]
    expected = row_by_row(policy, EXAMPLES)
    (right,) = torch.autograd.grad(expected.sum(), weight)
    assert layout_of(policy).name == "padded"
    logps = score(policy, EXAMPLES).logps
    (found,) = torch.autograd.grad(logps.sum(), weight)
    assert torch.allclose(logps, expected, atol=1e-9) and torch.allclose(found, right, atol=1e-9)
    with policy.disable_adapter():
        plain = score(policy, EXAMPLES).logps
    assert torch.allclose(plain, score(base(family), EXAMPLES).logps, atol=1e-12)
    assert not torch.allclose(plain, expected, atol=1e-3)
    with pytest.raises(ConfigError, match="learned tokens stand before every row"):
        score(policy, EXAMPLES, layout="tree")


@pytest.mark.parametrize("verb", ["sft", "dpo", "kto"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_and_the_file_that_peft_loads(verb: str, kind: str, tmp_path: Path) -> None:
    options = {"learning_rate": 1e-1, "max_steps": 1, "logging_steps": 1}
    trainer = make_trainer(verb, tmp_path, model=tuned(kind), rows=rows_for(verb, 4), **options)
    start = score(trainer.policy, EXAMPLES).logps.detach()
    if verb != "sft":
        assert isinstance(trainer.reference, AdapterCopy)
        copies = [p for name, p in trainer.model.named_parameters() if "strop_reference" in name]
        assert copies and not any(p.requires_grad for p in copies)
    trainer.train()
    if verb == "dpo":
        assert abs(trainer.state.log_history[0]["loss"] - 0.6931471805599453) < 1e-8
    trained = score(trainer.policy.eval(), EXAMPLES).logps.detach()
    assert not torch.allclose(trained, start, atol=1e-4)
    if trainer.reference is not None:
        with trainer.reference.active() as reference:
            assert torch.allclose(score(reference, EXAMPLES).logps, start, atol=1e-12)
    trainer.save_model(str(tmp_path / "saved"))
    assert sorted(p.name for p in (tmp_path / "saved").glob("*.safetensors")) == ["adapter_model.safetensors"]
    again = peft.PeftModel.from_pretrained(base(), str(tmp_path / "saved"))
    assert torch.allclose(row_by_row(again, EXAMPLES), trained, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_same_run(kind: str, tmp_path: Path) -> None:
    def run(name: str, **options: Any) -> Any:
        settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-1, **options}
        return make_trainer("sft", tmp_path / name, model=tuned(kind).float(), rows=rows_for("sft", 4), **settings)

    whole = run("whole")
    whole.train()
    again = run("whole")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    ours, theirs = (dict(t.policy.prompt_encoder.named_parameters()) for t in (whole, again))
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (peft.PromptEncoderConfig(num_virtual_tokens=2, encoder_hidden_size=8), "not the encoder"),
        (peft.PrefixTuningConfig(num_virtual_tokens=2, prefix_projection=True, encoder_hidden_size=8), "projection"),
        (peft.MultitaskPromptTuningConfig(num_virtual_tokens=2, num_tasks=2), "number of its task"),
    ],
    ids=["p-tuning", "projection", "multitask"],
)
def test_kinds_that_cannot_be_trained(config: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        make_trainer("sft", tmp_path, model=base(), trainer={"peft_config": config})


def test_where_nothing_can_be_sampled_or_computed_again(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="learned tokens before every prompt"):
        make_trainer("grpo", tmp_path, model=tuned("prompt"))
    with pytest.raises(SetupError, match="learned tokens before every prompt"):
        make_trainer("sft", tmp_path, model=tuned("prompt"), generate_during_eval=True, eval_rows=rows_for("sft", 2))
    with pytest.raises(ConfigError, match="gradient_checkpointing=False"):
        make_trainer("sft", tmp_path, model=tuned("prefix"), gradient_checkpointing=True)
    long = [Example([1], [[2] * base("gpt2").config.max_position_embeddings])]
    with pytest.raises(ConfigError, match=f"behind {TOKENS} learned ones"):
        score(tuned("prompt", "gpt2"), long)


def test_heads_for_scores(tmp_path: Path) -> None:
    trainer = make_trainer("reward", tmp_path, max_steps=1, trainer={"peft_config": KINDS["prompt"]()})
    trainer.train()
    assert type(base_model(trainer.policy)).__name__.endswith("SequenceClassification")
    assert score(trainer.policy, EXAMPLES, want=Want.SCORE).scores.shape == (sum(len(e.completions) for e in EXAMPLES),)
