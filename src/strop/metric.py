"""What a logged metric means, as a record, and the families that metrics are shown in."""

from __future__ import annotations

import math
from dataclasses import dataclass

LN2 = math.log(2)
"""What a coin costs, nats: the loss of a guess between two."""
LOSS = "Loss and optimisation"
REWARD = "Rewards"
DRIFT = "Distance from the reference"
LOGPS = "Log-probabilities"
TOKENS = "Tokens and entropy"
COMPLETIONS = "Completions"
CLIPPING = "Clipping"
SAMPLING = "Sampler against trainer"
TOOLS = "Tools"
CRITIC = "Critic"
PROGRESS = "Progress and speed"
OTHER = "Other"
FAMILIES = (LOSS, REWARD, DRIFT, LOGPS, TOKENS, COMPLETIONS, CLIPPING, SAMPLING, TOOLS, CRITIC, PROGRESS, OTHER)
"""Order in which the families are shown."""
KL_LIMITS = {"kl": (1.0, "token"), "objective/kl": (100.0, "completion")}
"""Logged KL (nats) above which policy and reference have little in common, and what it is counted per."""


@dataclass(frozen=True)
class Entry:
    """One metric. `low` and `high` bound the healthy range; None leaves that side open."""

    key: str  # metric key, or a pattern with * in it
    family: str
    meaning: str
    unit: str
    per: str  # what it is averaged (or summed) over
    low: float | None = None
    high: float | None = None
    healthy: str = ""
    advice: str = ""

    @property
    def bounds(self) -> str:
        """The healthy range in numbers, empty where it has none."""
        low, high = (None if bound is None else f"{bound:.3g}" for bound in (self.low, self.high))
        return f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}" if high else ""

    @property
    def range_text(self) -> str:
        """The healthy range in words; numbers first where they exist."""
        return "; ".join(part for part in (self.bounds, self.healthy) if part)

    def holds(self, value: float) -> bool:
        """Whether a value is within the bounds."""
        slack = 1e-6 * max(1.0, abs(value))
        above = self.low is None or value >= self.low - slack
        return above and (self.high is None or value <= self.high + slack)


def entries_of(kind: type) -> tuple[Entry, ...]:
    """What a trainer's class and those it builds on say of their metrics (`glossary`), its own words first."""
    return tuple(entry for base in kind.__mro__ for entry in vars(base).get("glossary", ()))
