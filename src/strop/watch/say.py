"""A line for the user."""

from __future__ import annotations

from strop.settings.config import TrainerConfig


def say(args: TrainerConfig, line: str) -> None:
    """Print a line once, from the first process."""
    if args.process_index == 0:
        print(line, flush=True)
