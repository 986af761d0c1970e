"""Progress as a person wants it: a live view of 80 columns in a terminal or a notebook, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from html import escape
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_callback import CallbackHandler

from strop.plain_text import visible
from strop.watch.say import unheard

SHOWN_FIRST = ("reward", "rewards/margins", "rewards/accuracies", "accuracy", "mean_token_accuracy", "kl", "grad_norm")
"""What is shown after the loss and a method's own `headline`, as far as it is logged."""
HIDDEN = {
    "epoch", "num_tokens", "total_flos", "step", "learning_rate", "memory_peak", "shared_tokens", "prefilled_tokens",
    "episode", "eps",
}  # fmt: skip
TIMES = ("_time", "_runtime", "_per_second")
"""Ends of names that are about speed."""
MAX_SHOWN = 5
NOTEBOOK = "NotebookProgressCallback"
"""The parent's display in a notebook, whose module needs one to be imported."""
LEAST_BAR = 8


def short_metrics(logs: dict[str, Any], headline: Sequence[str] = (), room: float = math.inf) -> str:
    """The most telling numbers of a log line, in a fixed order: `loss 0.612  rewards/margins 0.21`.

    Those that `room` columns have no place for are left out whole.
    """
    prefix = "eval_" if any(name.startswith("eval_") for name in logs) else ""
    first = [prefix + name for name in dict.fromkeys(("loss", *headline, *SHOWN_FIRST))]
    rest = [name for name in logs if name.removeprefix(prefix) not in HIDDEN and not name.endswith(TIMES)]
    shown: list[str] = []
    for name in dict.fromkeys(first + rest):
        if isinstance(logs.get(name), (int, float)) and len(shown) < MAX_SHOWN:
            number = f"{visible(name)} {logs[name]:.4g}"
            shown += [number] if cell_len("  ".join([*shown, number])) <= room else []
    return "  ".join(shown)


def clock(seconds: float | None) -> str:
    """`1:05`, `2:10:00`, `120 h`; `-` where it is not known."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class LiveView:
    """Two lines that stay in place: where the run is and how long it takes, then its most telling numbers.

    Neither is ever wider than the terminal, and what has no place is left out whole. The time left follows the steps
    of this process, so that a resumed run does not count the steps of another day; between steps it is what is `doing`.
    """

    def __init__(self, method: str, total: int, step: int, console: Console, headline: Sequence[str] = ()) -> None:
        self.method, self.total, self.first, self.step = method, total, step, step
        self.begin, self.tokens_before, self.tokens = time.monotonic(), 0, 0
        self.first_step, self.doing, self.over = self.begin, "", False
        self.headline, self.logs = headline, dict[str, Any]()
        self.live = Live(self, console=console, refresh_per_second=4, transient=True)

    @property
    def left(self) -> float | None:
        """Seconds that the remaining steps will take."""
        done = self.step - self.first
        return (time.monotonic() - self.first_step) / done * (self.total - self.step) if done else None

    def times(self, room: float = math.inf) -> str:
        """`1:05 gone, 0:10 left, 850 tokens/s, 1.2 GiB`; what has no place in `room` goes, the second last."""
        spent, tokens = time.monotonic() - self.begin, self.tokens - self.tokens_before
        parts = [f"{clock(spent)} gone", self.doing or f"{clock(self.left)} left"]
        parts = [f"{self.doing} after {clock(spent)}"] if self.over else parts
        parts += [f"{tokens / spent:.0f} tokens/s"] if tokens and spent else []
        parts += [f"{self.logs['memory_peak']:.3g} GiB"] if "memory_peak" in self.logs else []
        least = 1 if self.over else 2
        choices = [", ".join(parts[:count]) for count in range(len(parts), least - 1, -1)]
        return next((text for text in choices if len(text) <= room), parts[least - 1])

    def start(self) -> None:
        self.live.start()

    def stop(self) -> None:
        self.live.stop()

    def refresh(self, *, at_once: bool = False) -> None:
        """Nothing: the terminal's view is drawn anew by itself."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        head = f"{self.method} {self.step}/{self.total}"
        times = self.times(options.max_width - len(head) - LEAST_BAR - 2)  # a space on either side of the bar
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True)
        bar = ProgressBar(total=max(self.total, 1), completed=self.step)
        row.add_row(Text(head, style="bold"), bar, Text(times))
        yield row
        yield Text(short_metrics(self.logs, self.headline, options.max_width), no_wrap=True)


class NotebookView(LiveView):
    """The same in a notebook: one output below the cell, which is written anew."""

    LEAST_SECONDS = 0.5
    """Between two writings: a notebook keeps up with no more."""

    output: Any = None
    shown = 0.0

    def start(self) -> None:
        from IPython.display import display

        self.output = display(self.bundle(), raw=True, display_id=True)

    def stop(self) -> None:
        """What the cell says from now on: it stays in the notebook's file."""
        self.over, self.doing = True, "done" if self.step >= self.total else "stopped"
        self.output.update(self.bundle(), raw=True)

    def refresh(self, *, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self.shown >= self.LEAST_SECONDS:
            self.shown = time.monotonic()
            self.output.update(self.bundle(), raw=True)

    def bundle(self) -> dict[str, str]:
        """A bar, the times, the numbers: as HTML, and as text for those who show none."""
        bar = f'<progress value="{self.step}" max="{max(self.total, 1)}" style="width:20em"></progress>'
        count, times = f"{self.step}/{self.total}", self.times()
        numbers = short_metrics(self.logs, self.headline)
        html = (
            f"<div><b>{escape(self.method)}</b> {count} {bar} {escape(times)}<br><code>{escape(numbers)}</code></div>"
        )
        return {"text/html": html, "text/plain": f"{self.method} {count}  {times}\n{numbers}".rstrip()}


class ProgressDisplay(TrainerCallback):
    """Replaces the parent's progress bars."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=False)
        self.view: LiveView | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero or args.disable_tqdm:
            return
        notebook = self.console.is_jupyter
        terminal = self.console.is_terminal and (self.console.file is not sys.stdout or sys.stdout.isatty())
        if notebook or terminal:
            kind = NotebookView if notebook else LiveView
            self.view = kind(args.method, state.max_steps, state.global_step, self.console, args.headline)
            self.view.tokens = self.view.tokens_before = state.num_input_tokens_seen
            self.view.doing = "preparing"
            with unheard():
                self.view.start()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.view is not None and self.view.doing:
            if self.view.step == self.view.first:
                self.view.first_step = time.monotonic()
            self.now("")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.view is not None:
            self.view.step, self.view.tokens = state.global_step, state.num_input_tokens_seen
            self.now(coming(control))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.now(coming(control))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.now(coming(control, evaluated=True))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.now(coming(control, evaluated=True, saved=True))

    def now(self, doing: str) -> None:
        """Show what is being done, where that is no step."""
        if self.view is not None:
            at_once, self.view.doing = doing != self.view.doing, doing
            self.view.refresh(at_once=at_once)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or args.disable_tqdm or "train_runtime" in logs:
            return
        if self.view is not None and not any(name.startswith("eval_") for name in logs):
            self.view.logs |= logs  # a round of samples is logged once, and may serve many steps
            return
        steps = f"{state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}"
        self.line(f"{args.method} {steps if state.max_steps else 'before training'}", logs, args.headline)

    def line(self, head: str, logs: dict[str, Any], headline: Sequence[str]) -> None:
        """A line that stays: no wider than the terminal, and of any width in a file."""
        room = self.console.width - len(head) - 2 if self.console.is_terminal else math.inf
        with unheard():
            text = f"{head}  {short_metrics(logs, headline, room)}"
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.view is not None:
            view = self.view
            self.close()
            if view.logs and not self.console.is_jupyter:  # what stood there is wiped away with the view
                self.line(f"{args.method} {view.step}/{view.total}", view.logs, args.headline)

    def close(self) -> None:
        """Give the terminal back, with its cursor; a run that failed has no other end."""
        if self.view is not None:
            with unheard():
                self.view.stop()
            self.view = None


def coming(control: Any, *, evaluated: bool = False, saved: bool = False) -> str:
    """What comes before the next step, in a word; nothing where that is next."""
    if control.should_evaluate and not evaluated:
        return "evaluating"
    if control.should_save and not saved:
        return "saving"
    return "ending" if control.should_training_stop else ""


def use_display(handler: CallbackHandler) -> None:
    """Take the displays of the parent out, and put ours in if none of its kind was given."""
    for callback in list(handler.callbacks):
        if type(callback) in (ProgressCallback, PrinterCallback) or type(callback).__name__ == NOTEBOOK:
            handler.remove_callback(callback)
    if not any(isinstance(callback, ProgressDisplay) for callback in handler.callbacks):
        handler.add_callback(ProgressDisplay())


def close_displays(handler: CallbackHandler) -> None:
    """Give the terminal back, however the run ended."""
    for callback in handler.callbacks:
        if isinstance(callback, ProgressDisplay):
            callback.close()
