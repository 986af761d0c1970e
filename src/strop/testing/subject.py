"""The trainer class under check, and how one of it is made."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strop.errors import ConfigError
from strop.methods.registry import BY_CLASS
from strop.records import Row
from strop.testing.cases import make_trainer, method_of, rows_for
from strop.testing.oracles import Oracle
from strop.testing.rollouts import fix_rollouts

ROWS = 6


class NotApplicable(Exception):
    """A check says nothing about this trainer; the message says why."""


@dataclass
class Subject:
    """What a check gets: a class, how to make a trainer of it, and what is known about it."""

    trainer_class: type
    like: str  # the case whose rows and settings it takes, or "" where `maker` and `given_rows` bring them
    folder: Path
    given_rows: Sequence[Row] | None = None
    maker: Callable[..., Any] | None = None
    oracle: Oracle | None = None
    numbers: Any = field(default_factory=itertools.count)

    @property
    def registered(self) -> bool:
        """Whether the class computes the loss of the method it is named after (or derives from), unchanged."""
        if not self.like:
            return False
        own = method_of(self.like).trainer()
        return self.trainer_class is own or getattr(self.trainer_class, "loss", None) is getattr(own, "loss", self)

    @property
    def rows(self) -> list[Row]:
        return list(self.given_rows if self.given_rows is not None else rows_for(self.like, ROWS))

    def trainer(
        self, *, rows: Any = None, fixed: bool = True, extra: dict[str, Any] | None = None, **settings: Any
    ) -> Any:
        """A trainer in a folder of its own; `fixed` gives online methods completions that depend on the prompt
        alone."""
        settings.setdefault("output_dir", str(self.folder / f"run-{next(self.numbers)}"))
        folder = settings.pop("output_dir")
        rows = self.rows if rows is None else rows
        if self.maker is not None:
            made = self.maker(folder, rows=rows, **({"trainer": extra} if extra else {}), **settings)
        else:
            settings = {**GROUPS.get(self.like, {}), **settings}
            made = make_trainer(
                self.like, folder, rows=rows, trainer_class=self.trainer_class, trainer=extra, **settings
            )
        return fix_rollouts(made) if fixed else made


GROUPS = {"grpo": {"num_generations": 2}, "rloo": {"num_generations": 2}, "ppo": {"num_iterations": 2}}


def case_like(trainer_class: type) -> str:
    """The case whose rows and settings suit a class: that of the nearest class in its bases that strop knows."""
    for base in trainer_class.__mro__:
        method = BY_CLASS.get(base.__name__)
        if method is not None and base.__module__ == method.module:
            return method.verb
    raise ConfigError(
        f"{trainer_class.__name__} derives from none of the methods that are registered, so rows and settings are not "
        "known. Register it (strop.methods.registry.register), or pass make=, a function (folder, rows=None, "
        "**settings) -> trainer, and rows=, a list of rows that it learns from."
    )
