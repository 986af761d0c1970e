"""What is true of one architecture: its layout and engine, its numbers against plain transformers, a step of training.

Numbers are taken in float64 where the model can (its float32 parts too); the yardstick is every row by itself through
the model's own forward.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.support.random_trees import random_examples
from transformers import AutoModelForCausalLM

from benchmarks.support.configs import VOCAB, small_config
from strop.errors import SetupError
from strop.model import disable_dropout, layout_of, load_model, score
from strop.records import Example, Want
from strop.rollout.engines import make_generator
from strop.rollout.sampling import SamplingParams
from strop.testing.cases import make_trainer, rows_for
from strop.testing.tiny import exact_float64
from strop.testing.tokenizers import toy_tokenizer

Row = dict[str, Any]
METHODS = ("sft", "dpo", "reward", "grpo")
_KEPT = ("A_log", "dt_bias", "dt_proj", "time_", "decay", "rg_lru", ".D", "recurrent_param", "conv_kernel")
"""Parts of recurrences, which explode where they are drawn wide."""


def measure(arch: str, folder: Path) -> Row:
    """Everything about an architecture; what fails is a cell with the error in it."""
    row: Row = {"arch": arch}
    begin = time.monotonic()
    with cell(row, "built"):
        model = build(arch, torch.float32)
        row["class"] = type(model).__name__
        row["built"] = f"{sum(p.numel() for p in model.parameters())} parameters"
    if "class" not in row:
        row["built"] = refusal(arch, folder) or row["built"]
        return row
    numbers(arch, row)
    for method in METHODS:
        with cell(row, method):
            row[method] = train(arch, method, folder / method, row)
    with cell(row, "engine"):
        rollout(arch, row)
    return row | {"seconds": round(time.monotonic() - begin)}


@contextlib.contextmanager
def cell(row: Row, name: str) -> Iterator[None]:
    """What goes wrong inside becomes the cell's content."""
    try:
        yield
    except Exception as error:
        row[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def build(arch: str, dtype: torch.dtype, *, std: float = 0.1) -> Any:
    """A random model with weights drawn wide enough for log-probs to differ by more than rounding."""
    torch.manual_seed(0)
    experts = {"experts_implementation": "eager"} if dtype == torch.float64 else {}
    model = AutoModelForCausalLM.from_config(small_config(arch), **experts)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not any(part in name for part in _KEPT):
                noise = torch.randn(weight.shape)
                weight.copy_(std * noise) if weight.dim() >= 2 else weight.add_(0.1 * noise)
    model.to(dtype)
    if dtype == torch.float64:
        exact_float64(model)
    return model.eval()


def refusal(arch: str, folder: Path) -> str | None:
    """What strop says of a folder with a model that transformers cannot make of its own config, if it is a sentence."""
    try:
        small_config(arch).save_pretrained(folder)
    except Exception:
        return None
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    try:
        load_model(folder)
    except SetupError as error:
        return f"SetupError: {' '.join(str(error).split())[:300]}"
    return None


# ---- log-probs and gradients ----------------------------------------------------------------------------------


def numbers(arch: str, row: Row) -> None:
    """Log-probs and gradients of `auto` against rows by themselves; own padded forward beside it."""
    with cell(row, "layout"):
        model, row["precision"] = exact_model(arch)
        disable_dropout(model)
        examples = random_examples(3, VOCAB, trees=3, completions=(1, 3), prompt=(5, 30), length=(3, 20))
        begin = time.monotonic()
        choice = layout_of(model)
        row |= {"layout": choice.name, "why": choice.reason, "own_head": choice.own_head}
        row["layout_seconds"] = round(time.monotonic() - begin, 2)
        with torch.no_grad():
            alone = one_by_one(model, examples)
            row["logps"] = largest(score(model, examples).logps, alone)
            with cell(row, "own_padding"):
                row["own_padding"] = largest(own_padded(model, examples), alone)
    with cell(row, "gradients"):
        if "logps" in row:
            model.train()
            expected = gradients(model, one_by_one(model, examples))
            row["gradients"] = relative(gradients(model, score(model, examples).logps), expected)


def exact_model(arch: str) -> tuple[Any, str]:
    """The model in float64, or in float32 where something in it knows no other."""
    try:
        model = build(arch, torch.float64)
        with torch.no_grad():
            one_by_one(model, [Example([5, 6, 7], [[8, 9]])])
        return model, "float64"
    except Exception:
        return build(arch, torch.float32), "float32"


def one_by_one(model: Any, examples: list[Example]) -> torch.Tensor:
    """Log-probs of all completion tokens, each prompt + completion in a call of its own, (N,)."""
    found = []
    for example in examples:
        for ids in example.completions:
            row = torch.tensor([example.prompt_ids + ids])
            found.append(token_logps(model(input_ids=row, use_cache=False).logits[0], example.prompt_ids, ids))
    return torch.cat(found)


def own_padded(model: Any, examples: list[Example]) -> torch.Tensor:
    """The same from one call on rows padded on the right, (N,)."""
    rows = [(example.prompt_ids, ids) for example in examples for ids in example.completions]
    width = max(len(prompt) + len(ids) for prompt, ids in rows)
    tokens = torch.tensor([[*prompt, *ids] + [0] * (width - len(prompt) - len(ids)) for prompt, ids in rows])
    mask = torch.tensor([[int(t < len(prompt) + len(ids)) for t in range(width)] for prompt, ids in rows])
    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    return torch.cat([token_logps(own, prompt, ids) for own, (prompt, ids) in zip(logits, rows, strict=True)])


def token_logps(logits: torch.Tensor, prompt: list[int], ids: list[int]) -> torch.Tensor:
    """(T, V) logits of a row -> log-probs of its completion's tokens."""
    logps = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return logps[len(prompt) - 1 : len(prompt) - 1 + len(ids)].gather(1, torch.tensor(ids)[:, None])[:, 0]


def gradients(model: Any, logps: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradient of a weighted sum of log-probs, by parameter."""
    model.zero_grad(set_to_none=True)
    (logps * torch.linspace(-1, 1, logps.numel(), dtype=logps.dtype)).sum().backward()
    return {name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None}


def largest(found: torch.Tensor | None, expected: torch.Tensor) -> float:
    assert found is not None
    return float((found.detach().double() - expected.double()).abs().max())


def relative(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """|found - expected| / |expected|, over all parameters together."""
    zero = torch.zeros(())
    names = found.keys() | expected.keys()
    difference = sum(float((found.get(n, zero) - expected.get(n, zero)).square().sum()) for n in names)
    return math.sqrt(difference / max(sum(float(g.square().sum()) for g in expected.values()), 1e-300))


# ---- training, saving, sampling -------------------------------------------------------------------------------


def train(arch: str, method: str, folder: Path, row: Row) -> str:
    """One step of a method, what it must start at, and its saved model against the one in memory."""
    model = build(arch, torch.float32, std=0.05)
    settings: dict[str, Any] = {"max_steps": 1, "rows": rows_for(method, 4)}
    if method == "grpo":
        settings |= {"num_generations": 2, "max_completion_length": 5, "beta": 0.1}
    trainer = make_trainer(method, folder, model=model, tokenizer=toy_tokenizer("plain"), **settings)
    trainer.train()
    logged = next(line for line in trainer.state.log_history if "loss" in line)
    if not math.isfinite(logged["loss"]):
        return f"loss {logged['loss']}"
    if method in ("dpo", "grpo"):
        row[f"{method}_start"] = abs(logged["rewards/margins" if method == "dpo" else "kl"])
    if method in ("sft", "reward"):
        saved(trainer, method, folder / "saved", row)
    return "ok"


def saved(trainer: Any, method: str, folder: Path, row: Row) -> None:
    """How far a saved model is from the trained one, through transformers where it has the class."""
    with cell(row, f"{method}_saved"):
        trainer.save_model(str(folder))
        task, want = {"sft": ("causal", Want.LOGPS), "reward": ("score", Want.SCORE)}[method]
        again = load_model(folder, task=task, fresh_head=False)
        examples = [Example([5, 9, 77], [[30, 100, 41], [7]])]
        with torch.no_grad():
            mine, other = (score(model, examples, want=want) for model in (trainer.policy.eval(), again.eval()))
        pick: Callable[[Any], Any] = lambda found: found.logps if method == "sft" else found.scores  # noqa: E731
        row[f"{method}_saved"] = largest(pick(other), pick(mine))


def rollout(arch: str, row: Row) -> None:
    """The engine that `auto` takes, and the log-probs it reports against rows by themselves."""
    model = build(arch, torch.float32)
    generator = make_generator("auto", model=model, tokenizer=toy_tokenizer("plain"))
    row |= {"engine": generator.name, "engine_why": generator.reason}
    prompts = [[(7 * i + j) % 280 + 5 for i in range(n)] for j, n in enumerate((3, 14, 23))]
    with cell(row, "sampler"):
        found = generator.generate(prompts, 2, SamplingParams(max_new_tokens=12, temperature=1.0, seed=1))
        examples = [Example(p, ids) for p, ids in zip(prompts, found.completions, strict=True)]
        with torch.no_grad():
            expected = one_by_one(model, examples)
        reported = torch.tensor([x for group in found.sampler_logps for ids in group for x in ids])
        row["sampler"] = largest(reported, expected)
