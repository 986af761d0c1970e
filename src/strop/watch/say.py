"""A line for the user. Nobody who listens, or stops listening, decides how a run ends."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from strop.settings.config import TrainerConfig
from strop.terminal import in_width


def say(args: TrainerConfig, line: str) -> None:
    """Print a line once, from the first process; where the run is to be quiet, warnings only."""
    if args.process_index == 0 and (not args.quiet or line.startswith("Warning")):
        with unheard():
            print(in_width(line), flush=True)


def show_cursor() -> None:
    """Show what a live view has hidden, where a process ends at once."""
    if sys.__stdout__ is not None and sys.__stdout__.isatty():
        with unheard():
            print("\x1b[?25h", end="", file=sys.__stdout__, flush=True)


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Within it, an output that is closed, full, or has no such letters costs what would have been printed.

    Rich ends the program where its reader is gone.
    """
    try:
        yield
    except (BrokenPipeError, SystemExit):
        with contextlib.suppress(OSError, ValueError):  # what is in the buffer would be tried again at the end
            out = sys.stdout.fileno()
            os.dup2(os.open(os.devnull, os.O_WRONLY), out)
    except (OSError, ValueError):
        pass
