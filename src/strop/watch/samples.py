"""A table of sampled completions in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from strop.plain_text import visible
from strop.watch.say import unheard

MAX_CHARACTERS = 240


def show_samples(
    rows: Sequence[Mapping[str, Any]], count: int, *, unique_prompts: bool = False, console: Console | None = None
) -> None:
    """Print up to `count` samples with their rewards; the best and the worst rewarded come first."""
    if unique_prompts:
        seen: set[str] = set()
        rows = [row for row in rows if not (str(row["prompt"]) in seen or seen.add(str(row["prompt"])))]  # type: ignore[func-returns-value]
    ordered = sorted(rows, key=lambda row: -(row.get("reward") or 0.0))
    shown = [*ordered[: (count + 1) // 2], *ordered[len(ordered) - count // 2 :]] if len(ordered) > count else ordered
    notes = list(dict.fromkeys(name for row in shown for name in row.get("notes", {})))
    titles = [Column(_cell(name)) for name in notes]
    table = Table("prompt", "completion", "reward", "advantage", *titles, show_lines=True)
    for row in shown:
        numbers = [f"{row[name]:.3f}" if isinstance(row.get(name), float) else "" for name in ("reward", "advantage")]
        noted = [_cell(str(row.get("notes", {}).get(name, ""))) for name in notes]
        table.add_row(_cell(plain_prompt(row["prompt"])), _cell(row["completion"]), *numbers, *noted)
    console = console or Console()
    with unheard():
        if console.is_jupyter:
            console.print(table)
            return
        with console.capture() as text:
            console.print(table)  # not at once: a second console writes across the live view
        print(text.get(), end="", flush=True)


def _cell(text: str) -> Text:
    """Text of a file or a model: no markup, no escape sequence."""
    return Text(visible(shorten(text)))


def plain_prompt(prompt: Any) -> str:
    """The prompt as one text: the last message of a conversation."""
    return prompt if isinstance(prompt, str) else str(prompt[-1].get("content")) if prompt else ""


def shorten(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 1]}…"
