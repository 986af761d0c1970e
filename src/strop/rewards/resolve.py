"""From what a user passes as `reward_funcs` to named callables: functions, verifier names, models, judges."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from strop.errors import ConfigError, SetupError
from strop.rewards.contract import RewardFunction
from strop.rewards.judge_reward import JudgeReward
from strop.rewards.judges import as_judge
from strop.rewards.named_function import function_by_name


def resolve_rewards(
    reward_funcs: Any,
    processing_classes: Any = None,
    *,
    device: Any = None,
    model_init_kwargs: dict[str, Any] | None = None,
) -> dict[str, RewardFunction]:
    """The rewards, ready to be called, under names that differ.

    Args:
        reward_funcs: one reward or a list: a function (sync or async), the name of a verifier,
            `package.module.function`, `path/file.py:function`, a model id or directory, a model, a `Judge`, or
            anything callable.
        processing_classes: tokenizers for reward models, aligned with `reward_funcs` (None: the model's own).
        device: where models given by id are put.
        model_init_kwargs: for `from_pretrained` of models given by id.

    Raises:
        ConfigError: nothing, or something that is no reward, was given.
        SetupError: a package that a verifier needs is missing, or a model cannot be loaded.
    """
    given = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
    if not given or any(item is None for item in given):
        raise ConfigError("No reward was given. Pass reward_funcs: a function, a model, a judge, or a list of these.")
    given = [function_by_name(item) if isinstance(item, str) else item for item in given]
    tokenizers = _aligned(processing_classes, given)
    named: dict[str, RewardFunction] = {}
    for item, tokenizer in zip(given, tokenizers, strict=True):
        function = _resolve(item, tokenizer, device, model_init_kwargs or {})
        name, count = name_of(function), 1
        while (distinct := name if count == 1 else f"{name}_{count}") in named:
            count += 1
        named[distinct] = function
    _check_packages(named)
    return named


def _resolve(item: Any, tokenizer: Any, device: Any, model_init_kwargs: dict[str, Any]) -> RewardFunction:
    if _is_model(item):
        from strop.rewards.load_reward import load_reward_model, wrap_reward_model

        if isinstance(item, str):
            return load_reward_model(item, tokenizer, device=device, **model_init_kwargs)
        return wrap_reward_model(item, tokenizer)
    if (judge := as_judge(item)) is not None:
        item = JudgeReward(judge)
    if not callable(item):
        raise ConfigError(
            f"{item!r} is not a reward. Pass a function (completions, **kwargs) -> list of numbers, "
            "a model id, a model, or a judge."
        )
    return item


def name_of(function: Any) -> str:
    """The name that metrics use: `__name__`, of the inner function of a partial, or of the class of an instance."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "reward_name", None) or getattr(function, "__name__", None)
    return str(name or type(function).__name__)


def _is_model(item: Any) -> bool:
    """Whether it is a model, or the place of one: names of functions have been replaced by these."""
    torch = sys.modules.get("torch")
    return isinstance(item, str) or (torch is not None and isinstance(item, torch.nn.Module))


def _aligned(processing_classes: Any, rewards: Sequence[Any]) -> Sequence[Any]:
    if not isinstance(processing_classes, (list, tuple)):
        n_models = sum(map(_is_model, rewards)) if processing_classes is not None else 0
        if n_models > 1:
            raise ConfigError(
                f"One reward processing class was given for {n_models} reward models, whose tokens may differ. Give a "
                "list with one per reward; None where the reward is a function or uses its own tokenizer."
            )
        return [processing_classes] * len(rewards)
    if len(processing_classes) != len(rewards):
        raise ConfigError(
            f"{len(processing_classes)} reward processing classes were given for {len(rewards)} rewards. "
            "Give one per reward; None where the reward is a function or uses its own tokenizer."
        )
    return processing_classes


def _check_packages(rewards: Mapping[str, RewardFunction]) -> None:
    problems = [
        f"'{name}' needs {package}: pip install {package}"
        for name, function in rewards.items()
        for module, package in getattr(function, "requires", {}).items()
        if find_spec(module) is None
    ]
    if problems:
        raise SetupError.collect("Packages that rewards need are missing.", problems)
