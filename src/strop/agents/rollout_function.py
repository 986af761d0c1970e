"""A user's own rollout function: its two forms, told apart by their arguments, and what they return, checked.

* strop's: `rollout_func(prompt_ids, n, sampling, trainer)`; lists by prompt, then by completion.
* TRL's: `rollout_func(prompts, trainer)`; each prompt (text or messages) comes once for every completion, and the
  lists it returns are flat.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from strop.errors import ConfigError, RolloutError
from strop.records import Rollout, Stretch

KNOWN = {"prompt_ids", "completion_ids", "logprobs", "loss_mask", "env_mask", "finish_reasons", "messages", "stretches"}
"""What a rollout function may return; further lists, one entry per completion, go to the rewards as columns."""
REASONS = ("stop", "length", "failed")


@dataclass(slots=True)
class OwnRollout:
    """What a rollout function returned; lists by prompt, then by completion."""

    rollout: Rollout
    prompt_ids: list[list[list[int]]] | None = None  # where it made prompts of its own
    messages: list[list[Any]] | None = None  # conversations, for rewards
    stretches: list[list[list[Stretch]]] | None = None
    extra: dict[str, list[list[Any]]] = field(default_factory=dict)


class RolloutFunction:
    """A user's function behind one call.

    Raises:
        ConfigError: its arguments are of neither form.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            parameters = []  # type: ignore[assignment]
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        required = [p for p in parameters if p.kind in kinds and p.default is p.empty]
        open_ended = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.is_flat = len(required) == 2 and not open_ended
        if not (self.is_flat or len(required) == 4 or open_ended):
            raise ConfigError(
                f"rollout_func takes {[p.name for p in required]}; give a function of (prompt_ids, n, sampling, "
                "trainer), or of (prompts, trainer) as TRL has it."
            )

    def __call__(
        self,
        prompts: Sequence[Any],
        prompt_ids: list[list[int]],
        n: int,
        sampling: Any,
        trainer: object,
        vocabulary: int,
    ) -> OwnRollout:
        if self.is_flat:
            given = self.function([prompt for prompt in prompts for _ in range(n)], trainer)
            given = nested(given, len(prompts), n)
        else:
            given = self.function(prompt_ids, n, sampling, trainer)
        return check_rollout(given, prompt_ids, n, vocabulary)


def nested(given: Any, prompts: int, n: int) -> Any:
    """TRL's flat lists, by prompt; raises `RolloutError` where one has another length."""
    if not isinstance(given, Mapping):
        return given
    found = {name: values for name, values in given.items() if values is not None}
    for name, values in found.items():
        size = len(values) if hasattr(values, "__len__") else "no"
        if size != prompts * n:
            raise RolloutError(
                f"rollout_func returned {size} entries of '{name}'; {prompts * n} completions were asked for, each "
                f"prompt {n} times in a row."
            )
        found[name] = [list(values[start : start + n]) for start in range(0, prompts * n, n)]
    return found


def check_rollout(given: Any, prompts: list[list[int]], n: int, vocabulary: int) -> OwnRollout:
    """What a rollout function returned, as an `OwnRollout`, or a `RolloutError` that says what is wrong with it.

    A `Rollout`, or a dictionary with `completion_ids` [prompt][sample], `logprobs` alike, and perhaps the others of
    `KNOWN`.
    """
    if isinstance(given, Rollout):
        given = {
            "completion_ids": given.completions, "logprobs": given.sampler_logps,
            "finish_reasons": given.finish_reasons, "loss_mask": given.loss_mask,
        }  # fmt: skip
    if not isinstance(given, Mapping):
        raise RolloutError(f"rollout_func returned a {type(given).__name__}; it must return a Rollout or a dictionary.")
    given = {name: value for name, value in given.items() if value is not None}
    if missing := {"completion_ids", "logprobs"} - set(given):
        raise RolloutError(f"rollout_func returned {sorted(given)}, without {sorted(missing)}.")
    if "env_mask" in given and "loss_mask" in given:
        raise RolloutError("rollout_func returned env_mask and loss_mask, which are one thing; return one of them.")
    for name, value in given.items():
        shape = [len(group) if hasattr(group, "__len__") else -1 for group in value]
        if shape != [n] * len(prompts):
            raise RolloutError(
                f"rollout_func returned {name} of {shape} completions per prompt; {len(prompts)} prompts with {n} each "
                "were asked for."
            )
    ids = _each(given["completion_ids"], _plain)
    logps = _each(given["logprobs"], _plain_logps)
    mask = _each(given.get("loss_mask", given.get("env_mask")), _plain)
    own = _each(given.get("prompt_ids"), _plain)
    reasons = given.get("finish_reasons") or [["stop"] * n for _ in prompts]
    _check_tokens(ids, logps, mask, own, reasons, vocabulary)
    return OwnRollout(
        Rollout(prompts, ids, logps, reasons, mask),
        own,
        given.get("messages"),
        given.get("stretches"),
        {name: value for name, value in given.items() if name not in KNOWN},
    )


def _each(values: Any, read: Callable[[Any], list[Any]]) -> Any:
    return None if values is None else [[read(value) for value in group] for group in values]


def _plain(values: Any) -> list[int]:
    return [int(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]


def _plain_logps(values: Any) -> list[float]:
    """One number per token; a list of the best ones per token, as vLLM gives it, begins with the sampled one."""
    plain = values.tolist() if hasattr(values, "tolist") else values
    return [float(value[0]) if isinstance(value, list | tuple) else float(value) for value in plain]


def _check_tokens(ids: Any, logps: Any, mask: Any, own: Any, reasons: Any, vocabulary: int) -> None:
    for place, index in ((place, index) for place, group in enumerate(ids) for index in range(len(group))):
        completion, scored, reason = ids[place][index], logps[place][index], reasons[place][index]
        prompt = None if own is None else own[place][index]
        learned = [1] * len(completion) if mask is None else mask[place][index]
        wrong = next((i for i in [*completion, *(prompt or [])] if not 0 <= i < vocabulary), None)
        rules = {
            "it is empty": bool(completion),
            f"it has {len(completion)} tokens and {len(scored)} log-probs": len(scored) == len(completion),
            "a log-prob is not finite": all(map(math.isfinite, scored)),
            f"the id {wrong} is not in the vocabulary of {vocabulary}": wrong is None,
            "its prompt is empty": prompt is None or bool(prompt),
            "its mask is not a 0 or 1 for each token": len(learned) == len(completion) and set(learned) <= {0, 1},
            f"its finish reason is {reason!r}, not 'stop', 'length' or 'failed'": reason in REASONS,
        }
        if problems := [rule for rule, holds in rules.items() if not holds]:
            raise RolloutError(f"rollout_func, completion {index} of prompt {place}: {'; '.join(problems)}.")
