"""For every method: small rows it can learn from, and a trainer on a tiny model, ready for a check.

`make_trainer("dpo", tmp_path, beta=0.2)` builds the trainer with the settings of the checks (float64, one process,
no dropout) and any overrides; `rows_for("dpo", 12)` are its rows, uneven in length, the same for the same arguments.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from strop.data import DatasetKind
from strop.methods.registry import BY_VERB, METHODS, Method
from strop.online.trainer import OnlineTrainer
from strop.records import Example
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

if TYPE_CHECKING:
    from strop.engine.trainer import BaseTrainer

WORDS = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "koi", "lynx", "mole", "newt", "owl")
TASKS = {verb: task for verb, method in BY_VERB.items() if (task := method.trainer().task) != "causal"}
"""Verb -> the head it needs, where that is not the language model's."""


def words(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def _pair(rng: random.Random) -> dict[str, Any]:
    return {"prompt": words(rng, 1, 6), "chosen": " good " + words(rng, 1, 5), "rejected": " bad " + words(rng, 1, 5)}


def _labelled(rng: random.Random) -> dict[str, Any]:
    label = rng.random() < 0.6
    return {
        "prompt": words(rng, 1, 6),
        "completion": (" good " if label else " bad ") + words(rng, 1, 5),
        "label": label,
    }


def _demonstration(rng: random.Random) -> dict[str, Any]:
    return {"prompt": words(rng, 1, 6), "completion": " good " + words(rng, 1, 5)}


def _steps(rng: random.Random) -> dict[str, Any]:
    labels = [rng.random() < 0.6 for _ in range(rng.randint(1, 4))]
    steps = [("good " if label else "bad ") + words(rng, 1, 3) for label in labels]
    return {"prompt": words(rng, 1, 4), "completions": steps, "labels": labels}


def _prompt(rng: random.Random) -> dict[str, Any]:
    return {"prompt": words(rng, 1, 6), "target": rng.choice(WORDS)}


def letters_reward(completions: list[str], **kwargs: Any) -> list[float]:
    """Share of letters among a completion's characters: a reward that differs between random completions."""
    return [sum(c.isalpha() for c in text) / max(len(text), 1) for text in completions]


ROWS: dict[DatasetKind, Callable[[random.Random], dict[str, Any]]] = {
    DatasetKind.LANGUAGE_MODELING: _demonstration,
    DatasetKind.PROMPT_COMPLETION: _demonstration,
    DatasetKind.PREFERENCE: _pair,
    DatasetKind.UNPAIRED_PREFERENCE: _labelled,
    DatasetKind.STEPWISE: _steps,
    DatasetKind.PROMPT_ONLY: _prompt,
}
REWARDED = {f"{method.verb}-online": method for method in METHODS if method.unrewarded_rows}
"""Methods that learn without a reward too: the case that has one."""
CASES = (*(method.verb for method in METHODS), *REWARDED)
"""The fifteen verbs, and `xpo-online`: XPO with a reward, without which it learns from pairs."""


def rows_for(verb: str, count: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """`count` rows that the method of `verb` (one of `CASES`) accepts."""
    rng = random.Random(f"{verb} {seed}")
    method = method_of(verb)
    kind = method.kind if verb in REWARDED else method.unrewarded_rows or method.kind
    return [ROWS[DatasetKind(kind)](rng) for _ in range(count)]


def settings(verb: str, folder: Path | str, **overrides: Any) -> Any:
    """The method's config with the settings of the checks."""
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "max_length": 64,
        "disable_dropout": True,
        "lr_scheduler_type": "constant",
        "seed": 0,
    }
    if samples(verb):
        values |= {"max_completion_length": 8, "temperature": 1.0}
    return method_of(verb).config()(**{**values, **overrides})


def samples(verb: str) -> bool:
    """Whether the method of a case samples completions."""
    method = method_of(verb)
    return (verb in REWARDED or not method.unrewarded_rows) and issubclass(method.trainer(), OnlineTrainer)


def method_of(verb: str) -> Method:
    """The registry's row of a case."""
    return REWARDED.get(verb) or BY_VERB[verb]


ONLINE = tuple(case for case in CASES if samples(case))


def make_trainer(
    verb: str,
    folder: Path | str,
    *,
    rows: Any = None,
    eval_rows: Any = None,
    model: Any = None,
    arch: str = "llama",
    dtype: torch.dtype = torch.float64,
    tokenizer: Any = None,
    trainer: dict[str, Any] | None = None,
    trainer_class: Any = None,
    **overrides: Any,
) -> Any:
    """A trainer of the method on a tiny model; `trainer` are further constructor arguments, the rest are settings.

    `trainer_class` stands in for the method's own class: a subclass of it.
    """
    tokenizer = tokenizer if tokenizer is not None else toy_tokenizer("plain")
    if model is None:
        known: Any = trainer_class if isinstance(trainer_class, type) else method_of(verb).trainer()
        model = tiny_model(arch, dtype=dtype, seed=0, task=known.task, vocab_size=len(tokenizer))
    extra = dict(trainer or {})
    if samples(verb):
        rewarded = "teacher_model" not in inspect.signature(method_of(verb).trainer().__init__).parameters
        extra.setdefault(*(("reward_funcs", letters_reward) if rewarded else ("teacher_model", None)))
        if not rewarded and extra["teacher_model"] is None:
            extra["teacher_model"] = tiny_model(arch, dtype=dtype, seed=1, vocab_size=len(tokenizer))
    return (trainer_class or method_of(verb).trainer())(
        model=model,
        args=settings(verb, folder, **overrides),
        train_dataset=rows if rows is not None else rows_for(verb),
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        **extra,
    )


def examples_of(trainer: BaseTrainer) -> list[Example]:
    """The whole training set as prepared examples."""
    return [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]


def step_gradients(trainer: BaseTrainer, examples: list[Example] | None = None) -> dict[str, torch.Tensor]:
    """Gradients of one optimizer step over `examples` (default: the whole training set), by parameter name."""
    trainer.state.logging_steps = 1
    return gradients_of(trainer, trainer.prepare_step(examples_of(trainer) if examples is None else examples))


def gradients_of(trainer: BaseTrainer, trees: list[Example]) -> dict[str, torch.Tensor]:
    """Gradients of one optimizer step over trees that it has prepared."""
    trainer.model.zero_grad()
    trainer.training_step(trainer.model, trainer.make_work(trees))
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Greatest absolute difference of two sets of gradients; infinite if they cover different parameters."""
    if first.keys() != second.keys():
        return float("inf")
    return max(float((first[name] - second[name]).abs().max()) for name in first)
