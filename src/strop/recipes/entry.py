"""What a recipe says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Settings that a paper published for a method."""

    name: str
    """What `--recipe` takes."""
    method: str
    """The method's verb."""
    title: str
    """The paper, or the name its method is known by."""
    source: str
    """arXiv id."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the method's config."""
    rows_per_step: int | None = None
    """Rows (pairs, prompts) an optimizer step, over all processes; None: not printed, or of no weight."""
    note: str = ""
    """What the settings do not say: models they were tuned on, parts of the paper that are the user's."""
    where: str = ""
    """Where the settings stand: table or section, the authors' code, another's; empty: no place was found to check."""
