"""Progress as a person wants it: a live bar in a terminal, one plain line per log elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from strop.plain_text import visible

SHOWN_FIRST = (
    "loss",
    "reward",
    "rewards/margins",
    "rewards/accuracies",
    "accuracy",
    "mean_token_accuracy",
    "kl",
    "grad_norm",
)
HIDDEN = {"epoch", "num_tokens", "total_flos", "step", "learning_rate"}
MAX_SHOWN = 5


def short_metrics(logs: dict[str, Any], limit: int = MAX_SHOWN) -> str:
    """The most telling numbers of a log line, in a fixed order: `loss 0.612  rewards/margins 0.21`."""
    prefix = "eval_" if any(name.startswith("eval_") for name in logs) else ""
    names = [prefix + name for name in SHOWN_FIRST if prefix + name in logs]
    rest = [
        n
        for n, v in logs.items()
        if n not in names and n.removeprefix(prefix) not in HIDDEN and isinstance(v, (int, float))
    ]
    rest = [n for n in rest if not n.endswith(("_runtime", "_per_second"))]
    return "  ".join(
        f"{visible(name)} {logs[name]:.4g}" for name in (names + rest)[:limit] if isinstance(logs[name], (int, float))
    )


class ProgressDisplay(TrainerCallback):
    """Replaces the parent's progress bars."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=False)
        self.live: Progress | None = None
        self.task: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero or args.disable_tqdm:
            return
        if self.console.is_terminal and sys.stdout.isatty():
            self.live = Progress(
                TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TimeRemainingColumn(), TextColumn("{task.fields[metrics]}", markup=False), console=self.console,
            )  # fmt: skip
            self.task = self.live.add_task(args.method, total=state.max_steps, completed=state.global_step, metrics="")
            self.live.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.live is not None:
            self.live.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or args.disable_tqdm or "train_runtime" in logs:
            return
        text = short_metrics(logs)
        if self.live is not None and not any(name.startswith("eval_") for name in logs):
            self.live.update(self.task, metrics=text)
            return
        width = len(str(state.max_steps))
        self.console.print(
            f"{args.method} {state.global_step:>{width}}/{state.max_steps}  {text}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None
