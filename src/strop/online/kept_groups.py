"""Groups that wait to be learned from as plain values, and back: what a checkpoint holds of rounds that are ahead.

Of a conversation that is its messages, the tokens and the rewards of its turns, and the contexts that it lies on.
Environments are live objects and no part of it: their rewards have been asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from strop.online.groups import Group
from strop.records import Example, Stretch

AS_THEY_ARE = (
    "completions", "sampler_logps", "finish_reasons", "loss_mask", "reward_names", "values", "rewards", "turn_tokens",
    "own", "version",
)  # fmt: skip
"""Fields of a group that are lists of numbers and names, or tensors."""
OF_OTHERS = ("notes", "prompts", "replies", "extra", "turn_rewards")
"""Fields that hold what rewards, tools, agents and rows said."""


def kept(group: Group) -> dict[str, Any]:
    """A rewarded group as plain values, which `taken_up` reads."""
    found = {name: getattr(group, name) for name in AS_THEY_ARE}
    found |= {name: plain(getattr(group, name)) for name in OF_OTHERS}
    if group.stretches is not None:
        found["stretches"] = [parts and [asdict(stretch) for stretch in parts] for parts in group.stretches]
    return {**found, "prompt_ids": group.example.prompt_ids, "place": group.place}


def taken_up(values: Mapping[str, Any], example: Example, **known: Any) -> Group:
    """The group that `kept` was given, of the row that `example` was made of; `known` are further fields of it."""
    own = dict(values)
    stretches = own.pop("stretches", None)
    if stretches is not None:
        stretches = [parts and [Stretch(**stretch) for stretch in parts] for parts in stretches]
    if (context := own.pop("prompt_ids")) != example.prompt_ids:  # an observation is part of it
        example = replace(example, prompt_ids=context)
    return Group(example, **own, stretches=stretches, **known)


def plain(value: Any, *around: Any) -> Any:
    """Numbers, texts, lists and dictionaries as they are, arrays as lists, and all else as text, as what contains
    itself."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if any(value is outer for outer in around):
        return str(value)
    if isinstance(value, Mapping):
        return {key if type(key) in (str, int) else str(key): plain(value[key], value, *around) for key in value}
    if isinstance(value, list | tuple):
        return [plain(item, value, *around) for item in value]
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)
