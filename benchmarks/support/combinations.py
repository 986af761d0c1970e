"""Adapters, quantisation, precision and optimizers with methods: two steps each, and what must be true then."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import BitsAndBytesConfig
from transformers.training_args import OptimizerNames

from benchmarks.support.architecture import Row, cell
from strop.model import load_model, score, with_head
from strop.records import Example, Want
from strop.testing.cases import make_trainer, rows_for, samples
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

METHODS = ("sft", "reward", "prm", "dpo", "kto", "grpo", "ppo", "gkd")
"""One of every kind of rows, head and reference; the others share all their parts with one of these."""

_ALL = {"target_modules": "all-linear"}
_SOME = {"target_modules": ["q_proj", "v_proj"]}
ADAPTERS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(r=2, **_ALL),
    "lora, bias=all": lambda: peft.LoraConfig(r=2, bias="all", **_ALL),
    "lora on embeddings": lambda: peft.LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]),
    "lora, modules_to_save": lambda: peft.LoraConfig(r=2, modules_to_save=["embed_tokens"], **_SOME),
    "lora, token indices": lambda: peft.LoraConfig(r=2, trainable_token_indices=[5, 6], **_SOME),
    "rslora": lambda: peft.LoraConfig(r=2, use_rslora=True, **_ALL),
    "dora": lambda: peft.LoraConfig(r=2, use_dora=True, **_ALL),
    "pissa": lambda: peft.LoraConfig(r=2, init_lora_weights="pissa", **_ALL),
    "adalora": lambda: peft.AdaLoraConfig(init_r=4, target_r=2, total_step=4, tinit=1, tfinal=1, **_SOME),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[]),
    "loha": lambda: peft.LoHaConfig(r=2, **_SOME),
    "lokr": lambda: peft.LoKrConfig(r=2, **_SOME),
    "oft": lambda: peft.OFTConfig(oft_block_size=4, **_SOME),
    "boft": lambda: peft.BOFTConfig(boft_block_size=4, **_SOME),
    "vera": lambda: peft.VeraConfig(r=2, target_modules=["q_proj"]),
    "ln tuning": lambda: peft.LNTuningConfig(),
    "prompt tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=2),
    "prefix tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=2),
}
QUANTISED: dict[str, Callable[[], Any]] = {
    "8-bit": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "4-bit nf4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
}
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bf16 autocast": {"bf16": True},
    "bf16 weights": {"dtype": torch.bfloat16},
    "fp16 weights": {"dtype": torch.float16},
}
TUNINGS: dict[str, dict[str, Any]] = {"full": {}, "lora": {"peft_config": peft.LoraConfig(r=2, **_ALL)}}


def combinations() -> dict[str, Callable[[Path], Row]]:
    """Name -> measurement; a name says the table, the row and the column."""
    found: dict[str, Callable[[Path], Row]] = {}
    for method in METHODS:
        for name, adapter in ADAPTERS.items():
            found[f"peft | {name} | {method}"] = partial(_adapted, method, adapter)
        for name, config in QUANTISED.items():
            found[f"quantisation | {name} | {method}"] = partial(_quantised, method, config)
        for name, settings in PRECISIONS.items():
            for tuning in TUNINGS:
                found[f"precision | {name}, {tuning} | {method}"] = partial(_precise, method, settings, tuning)
    for optim in OptimizerNames:
        for tuning in TUNINGS:
            found[f"optimizer | {optim.value} | {tuning}"] = partial(_optimized, optim.value, tuning)
    return found


def _adapted(method: str, adapter: Callable[[], Any], folder: Path) -> Row:
    return _trained(method, folder, {"peft_config": adapter()})


def _quantised(method: str, config: Callable[[], Any], folder: Path) -> Row:
    _language_model(torch.float32).save_pretrained(folder / "model")
    return _trained(method, folder, {"quantization_config": config(), **TUNINGS["lora"]}, model=str(folder / "model"))


def _precise(method: str, settings: dict[str, Any], tuning: str, folder: Path) -> Row:
    return _trained(method, folder, TUNINGS[tuning], **{"dtype": torch.float32, **settings})


def _optimized(optim: str, tuning: str, folder: Path) -> Row:
    return _trained("sft", folder, TUNINGS[tuning], optim=optim)


def _language_model(dtype: torch.dtype) -> Any:
    """A model as it would be loaded: weights in `dtype`, rotary frequencies in float32."""
    model = tiny_model("llama", dtype=torch.float32, vocab_size=len(toy_tokenizer("plain")))
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model


def _trained(method: str, folder: Path, trainer: dict[str, Any], **settings: Any) -> Row:
    """Two steps; how far the run begins from where it must; how far the saved adapter is from the trained one."""
    row: Row = {}
    with cell(row, "result"):
        own = {"max_completion_length": 5} if samples(method) else {}
        own |= {"num_generations": 2, "beta": 0.1} if method == "grpo" else {}
        options = {"dtype": torch.float32, "max_steps": 2, "per_device_train_batch_size": 2, **own, **settings}
        model = options.pop("model", None)
        model = model or _language_model(options["dtype"])
        made = make_trainer(method, folder, model=model, rows=rows_for(method, 4), trainer=dict(trainer), **options)
        learning = {name: p.detach().clone() for name, p in made.model.named_parameters() if p.requires_grad}
        made.train()
        lines = [line for line in made.state.log_history if "loss" in line]
        if not all(math.isfinite(line["loss"]) for line in lines):
            row["result"] = f"loss {[line['loss'] for line in lines]}"
            return row
        still = sum(torch.equal(p, learning[n]) for n, p in made.model.named_parameters() if n in learning)
        row |= {"result": "ok", "learning": len(learning), "still": still}
        row["start"] = _off_at_the_start(method, lines[0])
    if row.get("result") == "ok" and "quantization_config" not in trainer and method in ("sft", "reward", "prm"):
        with cell(row, "saved"), torch.autocast("cpu", torch.bfloat16, enabled=bool(settings.get("bf16"))):
            row["saved"] = _saved(made, method, folder / "saved")
    return row


def _off_at_the_start(method: str, line: dict[str, Any]) -> float | None:
    """Distance from the value that a run must begin at, where there is one."""
    if method == "dpo":  # not the loss, which has AdaLoRA's orthogonal term in it
        return abs(line["rewards/margins"])
    kl = {"grpo": "kl", "ppo": "objective/kl"}.get(method)
    return None if kl is None else abs(line[kl])


def _saved(trainer: Any, method: str, folder: Path) -> float:
    """Largest difference of the numbers of the saved model, put on its base again, to those trained."""
    trainer.save_model(str(folder))
    task, want = {"sft": ("causal", Want.LOGPS), "reward": ("score", Want.SCORE), "prm": ("step", Want.STEP)}[method]
    policy = trainer.policy.eval()
    if isinstance(policy, peft.PeftModel):
        base = _language_model(policy.dtype)
        again = peft.PeftModel.from_pretrained(base if task == "causal" else with_head(base, task), str(folder))
    else:
        again = load_model(folder, task=task, fresh_head=False, dtype=policy.dtype)
    before = _numbers(policy, want)
    return float((before - _numbers(again.eval(), want)).abs().max())


@torch.no_grad()
def _numbers(model: Any, want: Want) -> torch.Tensor:
    scores = score(model, [Example([5, 9, 7], [[30, 10, 41], [7, 8]])], want=want)
    found = {Want.LOGPS: scores.logps, Want.SCORE: scores.scores, Want.STEP: scores.step_logits}[want]
    assert found is not None
    return found.float()
