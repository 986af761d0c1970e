"""What was public stays: names, constructor arguments, settings, verbs. Additions are free.

`python tests/test_public_api.py` writes the snapshot anew, for a release that adds something (or takes it away on
purpose).
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

import strop
from strop.methods.registry import METHODS

SNAPSHOT = Path(__file__).with_name("public_api.json")
MODULES = (
    "strop",
    "strop.losses",
    "strop.model",
    "strop.data",
    "strop.rollout",
    "strop.rewards",
    "strop.report",
    "strop.testing",
    "strop.errors",
)


def public() -> dict[str, Any]:
    """Everything public, by kind; lists are sorted."""
    found: dict[str, Any] = {f"names of {module}": names_of(module) for module in MODULES}
    found["verbs"] = sorted(method.verb for method in METHODS)
    for method in METHODS:
        config = method.config()
        settings = {f.name for f in dataclasses.fields(config) if f.init} | set(config.aliases)
        settings -= {f.name for f in dataclasses.fields(TrainingArguments)}
        found[f"settings of {method.config_name}"] = sorted(settings)
        found[f"arguments of {method.trainer_name}"] = sorted(arguments_of(method.trainer()))
    return found


def names_of(module: str) -> list[str]:
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", None) or [n for n, v in vars(loaded).items() if inspect.isclass(v)]
    return sorted(name for name in names if not name.startswith("_") and hasattr(loaded, name))


def arguments_of(trainer: type) -> set[str]:
    """Constructor arguments of a trainer and of what it derives from."""
    names: set[str] = set()
    for cls in trainer.__mro__:
        if cls.__module__.startswith("strop.") and "__init__" in vars(cls):
            kinds = inspect.signature(cls.__init__).parameters.values()
            names |= {p.name for p in kinds if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return names - {"self"}


def test_nothing_that_was_public_is_gone() -> None:
    before, now = json.loads(SNAPSHOT.read_text(encoding="utf-8")), public()
    gone = {kind: sorted(set(names) - set(now.get(kind, ()))) for kind, names in before.items()}
    assert not {kind: names for kind, names in gone.items() if names}


def test_the_snapshot_knows_all_methods() -> None:
    before = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    assert {name for method in METHODS for name in (method.trainer_name, method.config_name)} <= set(
        before["names of strop"]
    )
    assert len(METHODS) == 15 and set(strop.__all__) >= set(before["names of strop"])


if __name__ == "__main__":
    lines = [f" {json.dumps(kind)}: {json.dumps(names)}" for kind, names in public().items()]
    SNAPSHOT.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
