"""The public functions and classes, room by room; mkdocstrings reads them from the source."""

from __future__ import annotations

import strop.losses

ROOMS: dict[str, tuple[str, ...]] = {
    "trainers": ("strop.engine.trainer", "strop.methods.pairs", "strop.online.trainer"),
    "losses": tuple(f"strop.losses.{module}" for module in strop.losses.EXPORTS),
    "model": ("strop.model.load", "strop.model.forward", "strop.model.scoring", "strop.model.reference"),
    "rewards": ("strop.rewards.verifiers", "strop.rewards.judges", "strop.rewards.model_reward"),
    "rollout": ("strop.rollout.native", "strop.rollout.sampling"),
    "records": ("strop.records", "strop.errors"),
    "recipes": ("strop.recipes",),
    "testing": ("strop.testing.check",),
}
"""Page -> modules whose public members stand on it."""


def page(room: str) -> str:
    """The page as Markdown: one directive for each module."""
    return f"# {room}\n\n" + "\n\n".join(f"::: {module}" for module in ROOMS[room]) + "\n"
