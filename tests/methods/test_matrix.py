"""Every method x {text, chat} x {full, LoRA, 4-bit}: trains, evaluates, writes its report, and what it saves loads."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BitsAndBytesConfig,
)

from strop.model import keep_differentiable
from strop.report import write_report
from strop.testing.cases import CASES, ONLINE, largest_difference, make_trainer, rows_for, step_gradients
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

ROLES = {"prompt": "user", **dict.fromkeys(("chosen", "rejected", "completion"), "assistant")}
HEADS = {
    "reward": (AutoModelForSequenceClassification, "SEQ_CLS", {"num_labels": 1}),
    "prm": (AutoModelForTokenClassification, "TOKEN_CLS", {"num_labels": 2}),
}
LANGUAGE = (AutoModelForCausalLM, "CAUSAL_LM", {})
IDS = torch.tensor([[10, 11, 12, 13]])
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="4-bit weights need strop[quant]"
)


def rows_of(verb: str, form: str) -> list[dict[str, Any]]:
    rows = rows_for(verb, 4)
    if form == "text":
        return rows
    return [
        {name: [{"role": ROLES[name], "content": v}] if name in ROLES else v for name, v in row.items()} for row in rows
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model on disk, whose layers are wide enough for blocks of 4-bit weights."""
    path, tokenizer = str(tmp_path_factory.mktemp("model")), toy_tokenizer("chatml")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    tiny_model("llama", dtype=torch.float32, vocab_size=len(tokenizer), **sizes).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def length_reward(completions: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """The same for texts and messages: something that differs between completions."""
    return [float(sum(ids) % 7) for ids in completion_ids]


def four_bit() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def made(verb: str, path: Path, folder: str, form: str, tuning: str, **settings: Any) -> Any:
    extra: dict[str, Any] = {}
    if tuning != "full":
        task = HEADS.get(verb, LANGUAGE)[1]
        extra["peft_config"] = LoraConfig(r=2, target_modules="all-linear", task_type=task)
    if tuning == "4bit":
        extra["quantization_config"] = four_bit()
    if verb == "gkd":
        extra["teacher_model"] = folder
    rows, tokenizer = rows_of(verb, form), toy_tokenizer("chatml")
    sizes = {"max_completion_length": 4} if verb in ONLINE else {}
    sizes |= {"num_generations": 2} if verb in ("grpo", "rloo") else {}
    if verb in ONLINE and verb != "gkd":
        extra["reward_funcs"] = length_reward
    return make_trainer(
        verb, path, rows=rows, eval_rows=rows, model=folder, tokenizer=tokenizer, trainer=extra, logging_steps=1,
        **{"max_steps": 1, **sizes, **settings},
    )  # fmt: skip


def reloaded(verb: str, saved: Path, folder: str, tuning: str) -> Any:
    """What another program gets from the saved folder."""
    auto, _, labels = HEADS.get(verb, LANGUAGE)
    if tuning == "full":
        return auto.from_pretrained(saved).eval()
    options: dict[str, Any] = dict(labels)
    if tuning == "4bit":
        settings = four_bit()
        settings.llm_int8_skip_modules = ["score", "classifier", "lm_head"]
        options["quantization_config"] = settings
    base = auto.from_pretrained(folder, **options)
    keep_differentiable(base)  # else its layers would be packed, and round to bfloat16
    return PeftModel.from_pretrained(base, str(saved)).eval()


@pytest.mark.parametrize(
    ("form", "tuning"),
    [
        ("text", "full"), ("chat", "full"), ("text", "lora"), ("chat", "lora"),
        pytest.param("text", "4bit", marks=needs_bitsandbytes),
    ],
)  # fmt: skip
@pytest.mark.parametrize("verb", CASES)
def test_trains_evaluates_reports_and_loads(verb: str, form: str, tuning: str, folder: str, tmp_path: Path) -> None:
    trainer = made(verb, tmp_path, folder, form, tuning)
    frozen = {name for name, p in trainer.model.named_parameters() if not p.requires_grad}
    before = state(trainer.model)
    assert bool(frozen) == (tuning != "full")
    assert any(before[name].dtype == torch.uint8 for name in frozen) == (tuning == "4bit")
    trainer.train()
    after = state(trainer.model)
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert not changed & frozen
    logged = trainer.state.log_history[0]
    assert math.isfinite(logged["loss"]) and (changed or not logged["grad_norm"])
    metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_loss"])
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "grad_norm" in page and "eval_loss" in page
    trainer.save_model(str(tmp_path / "out"))
    with torch.no_grad():
        first = trainer.policy.eval()(input_ids=IDS).logits
        second = reloaded(verb, tmp_path / "out", folder, tuning)(input_ids=IDS).logits
    assert torch.allclose(first, second, atol=1e-5)


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all weights, in the form in which they are saved: in memory, 4-bit weights are packed for the CPU."""
    return {name: value.clone() for name, value in model.state_dict().items()}


@needs_bitsandbytes
@pytest.mark.parametrize("verb", ["sft", "dpo", "grpo", "ppo"])
def test_four_bit_runs_resume(verb: str, folder: str, tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2}
    whole = made(verb, tmp_path / "whole", folder, "text", "4bit", max_steps=2, **settings)
    whole.train()
    made(verb, tmp_path / "cut", folder, "text", "4bit", max_steps=1, **settings).train()
    resumed = made(verb, tmp_path / "cut", folder, "text", "4bit", max_steps=2, **settings)
    resumed.train(resume_from_checkpoint=True)
    first, second = state(whole.model), state(resumed.model)
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@needs_bitsandbytes
def test_four_bit_starts_at_ln_two(folder: str, tmp_path: Path) -> None:
    """The reference is the quantised model that training starts from, not the one on disk."""
    logged = made("dpo", tmp_path, folder, "text", "4bit").evaluate()
    assert logged["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)


@needs_bitsandbytes
@pytest.mark.parametrize("verb", ["sft", "dpo", "prm"])
def test_gradients_pass_through_four_bit_layers(verb: str, folder: str, tmp_path: Path) -> None:
    """Those of the same weights in plain layers, also after passes in evaluation mode: on CPUs with bfloat16
    instructions bitsandbytes would pack the layers there, and cut the gradient."""
    from bitsandbytes.functional import dequantize_4bit

    trainer = made(verb, tmp_path, folder, "text", "4bit")
    trainer.evaluate()
    through = step_gradients(trainer)
    for module in trainer.model.modules():
        packed = getattr(module, "base_layer", None)
        if packed is not None and hasattr(packed, "quant_state"):
            weight = dequantize_4bit(packed.weight.data, packed.weight.quant_state)
            plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            plain.weight = torch.nn.Parameter(weight.float(), requires_grad=False)
            module.base_layer = plain
    assert largest_difference(through, step_gradients(trainer)) < 1e-5
    assert any("layers.0.self_attn" in name and bool(value.any()) for name, value in through.items())
