"""A run as a bar and, at every log, a table of all its numbers."""

from __future__ import annotations

from typing import Any

from rich.columns import Columns
from rich.table import Table

from strop.watch.progress import ProgressDisplay


class RichProgressCallback(ProgressDisplay):
    """strop's own display, with every logged number in place of the most telling ones.

    Given as `callbacks=[RichProgressCallback()]` it takes the place of the display that a trainer has by itself.
    """

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs and not args.disable_tqdm:
            self.console.print(f"step {state.global_step} of {state.max_steps}", Columns(tables(logs)))


def tables(logs: dict[str, Any]) -> list[Table]:
    """One table for each prefix of the names (`rewards/margins` is `margins` in the table `rewards`)."""
    found: dict[str, Table] = {}
    for name, value in logs.items():
        group, _, rest = name.rpartition("/")
        table = found.setdefault(group, Table("", "", title=group or None, show_header=False))
        table.add_row(rest, f"{value:.4g}" if isinstance(value, (int, float)) else str(value))
    return list(found.values())
