"""Which method fits: from the columns of the rows, and from what else a person has.

The rows decide what can be learned at all, and the answers decide between the methods that remain. What a method is
recommended for stands in its `advice` (`strop.methods.registry`). Nothing here knows how large a model is: whether a
run fits a card is another question.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from strop.data import DatasetKind
from strop.errors import ConfigError, did_you_mean
from strop.methods.registry import BY_VERB, Advice, Method

HAVE = {
    "reward": "a function or model that scores one completion",
    "verifier": "a program that says whether an answer is right",
    "judge": "a judge that says which of two completions is better",
    "teacher": "a larger model with the same tokenizer",
    "steps": "labels for the single steps of solutions",
}
"""What else may be at hand, and what is meant by it."""

OTHER_ROWS = {
    DatasetKind.PREFERENCE: "preference pairs (chosen, rejected)",
    DatasetKind.UNPAIRED_PREFERENCE: "a column label, true or false, beside prompt and completion",
    DatasetKind.STEPWISE: "steps with labels (prompt, completions, labels)",
}
"""Rows that open other branches."""

SMALL_GPU_GB = 40.0
"""Below this a model of a few billion parameters is trained through an adapter."""


@dataclass(frozen=True)
class Choice:
    """A method, and why it is the one."""

    verb: str
    reason: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # settings that a person must fill in


@dataclass(frozen=True)
class Recommendation:
    """A first choice, the next best, and what would open the other branches."""

    first: Choice
    runner_up: Choice | None
    others: tuple[str, ...]  # sentences: what another branch would need


def recommend(kind: DatasetKind | str, have: Collection[str] = (), *, form: str = "") -> Recommendation:
    """The method that rows of a kind are best learned with.

    Args:
        kind: what the rows are (`strop.data.detect`).
        have: names of `HAVE` that are at hand.
        form: the shape of the rows (`strop.data.kinds.FORMS`), if known.

    Raises:
        ConfigError: a name in `have` that is not known; or rows of prompts with nothing to learn from.
    """
    kind = DatasetKind(kind)
    check_have(have)
    found = [
        (method, advice)
        for method, advice in all_advice()
        if kind in advice.rows and form not in advice.no_forms and (not advice.have or set(advice.have) & set(have))
    ]
    if not found:
        raise ConfigError(
            "The rows are prompts alone, and nothing says what a good answer is. Say what you have: "
            + "; ".join(f"--have {name} ({HAVE[name]})" for name in ("verifier", "reward", "judge", "teacher"))
            + ". Or add a column: completion (then SFT), chosen and rejected (then DPO)."
        )
    choices = [Choice(method.verb, advice.reason, advice.settings, advice.fill) for method, advice in found]
    return Recommendation(choices[0], choices[1] if len(choices) > 1 else None, tuple(branches(kind, set(have))))


def all_advice() -> list[tuple[Method, Advice]]:
    """What all methods are recommended for, best first.

    A small card changes the settings and not the method: with an adapter DPO's reference takes no memory.
    """
    every = ((method, advice) for method in BY_VERB.values() for advice in method.advised)
    return sorted(every, key=lambda entry: entry[1].rank)


def check_have(have: Collection[str]) -> None:
    """Refuse names that are not known, all of them together."""
    if unknown := [name for name in have if name not in HAVE]:
        problems = [f"--have {name}: not known.{did_you_mean(name, HAVE)}" for name in unknown]
        raise ConfigError.collect(f"--have takes {', '.join(HAVE)}:", problems)


def branches(kind: DatasetKind, have: set[str]) -> Iterator[str]:
    """What the branches that were not taken would need."""
    methods = list(BY_VERB.values())
    for other, rows in OTHER_ROWS.items():
        if other is not kind:
            yield f"{rows}: {', '.join(method.prefix for method in methods if method.kind == other)}"
    opened: dict[tuple[str, ...], dict[str, None]] = {}  # what one of must be at hand -> methods, best first
    for method, advice in all_advice():
        if advice.have and not have & set(advice.have):
            opened.setdefault(advice.have, {})[method.prefix] = None
    for needed, prefixes in opened.items():
        flags = ", ".join(f"--have {name}" for name in needed)
        yield f"a {' or a '.join(needed)} ({flags}): {', '.join(prefixes)}"
    for method in methods:
        if method.home and method.kind == kind and not method.advised:
            yield f"nothing more: {method.verb}, {method.summary}"


def settings_for(choice: Choice, *, dataset: str, output_dir: str, gpu_gb: float | None) -> dict[str, Any]:
    """A config file's content that runs as it is, once MODEL and what the method needs are filled in."""
    settings: dict[str, Any] = {"model": "MODEL", "dataset": dataset, "output_dir": output_dir}
    settings |= {name: name.upper() for name in choice.needs}
    if gpu_gb is not None and gpu_gb < SMALL_GPU_GB:
        settings["lora"] = True
        if gpu_gb < SMALL_GPU_GB / 2:
            settings["load_in_4bit"] = True
    return settings | dict(choice.settings)
