"""The end of a training verb: evaluate before and after, save, and say in a few lines what came of it, and where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strop.terminal import in_width

if TYPE_CHECKING:
    from strop.engine.trainer import BaseTrainer

NOT_TOLD = ("_runtime", "_per_second", "epoch", "_preparation_time")
"""Ends of names that say nothing about what was learned."""
MOST_TOLD = 6
"""Metrics in the table at the end; the report has all."""


def train_and_save(trainer: BaseTrainer, own: dict[str, Any]) -> int:
    """Evaluate, train, evaluate again, save, write the report."""
    from strop.report import write_report

    first = trainer.is_world_process_zero()
    for report in trainer.reports.values():
        trainer.say(report.render())
    before = evaluated(trainer, "as it is") if own["eval_dataset"] and not own["resume"] else None
    result = trainer.train(resume_from_checkpoint=own["resume"] or None)
    after = (last_evaluation(trainer) or evaluated(trainer, "as it became")) if own["eval_dataset"] else None
    trainer.save_model()
    if not first:
        return 0
    page = write_report(trainer.args.output_dir)
    if own["quiet"]:
        print(trainer.args.output_dir)
        return 0
    if before and after:
        print_comparison(before, after, first=told_first(trainer, after))
    print(in_width(closing(trainer, result.metrics, page)))
    return 0


def evaluated(trainer: BaseTrainer, state: str) -> dict[str, float]:
    """An evaluation outside of training, which shows nothing while it lasts."""
    trainer.say(f"Evaluating the model {state} ...")
    return trainer.evaluate()


def last_evaluation(trainer: BaseTrainer) -> dict[str, float]:
    """What training evaluated at its last step; empty if it did not, or loaded other weights since."""
    if trainer.args.load_best_model_at_end:
        return {}
    end = [line for line in trainer.state.log_history if line.get("step") == trainer.state.global_step]
    return {name: value for line in end for name, value in line.items() if name.startswith("eval_")}


def told_first(trainer: BaseTrainer, after: dict[str, float]) -> list[str]:
    """Metrics by which a run is judged: the loss, the method's own, a user's own, the usual ones."""
    from strop.metric import entries_of
    from strop.report import lookup
    from strop.watch.progress import SHOWN_FIRST

    entries = entries_of(type(trainer))
    names = [name.removeprefix("eval_") for name in after]
    own = [name for name in names if lookup(name, entries) is None and not name.endswith(NOT_TOLD)]
    return ["loss", *trainer.args.headline, *own, *SHOWN_FIRST]


def print_comparison(before: dict[str, float], after: dict[str, float], first: Sequence[str]) -> None:
    """The metrics of `first` before and after training, side by side, and how many more the report has."""
    from rich.console import Console
    from rich.table import Column, Table

    names = [name.removeprefix("eval_") for name in after if name in before and not name.endswith(NOT_TOLD)]
    told = [name for name in dict.fromkeys(first) if name in names][:MOST_TOLD]
    table = Table(Column("held-out rows", overflow="fold"), "before", "after")
    for name in told:
        table.add_row(name, f"{before[f'eval_{name}']:.4g}", f"{after[f'eval_{name}']:.4g}")
    Console().print(table)
    if len(names) > len(told):
        print(f"{len(names) - len(told)} more metrics are in the report.")


def closing(trainer: BaseTrainer, totals: dict[str, float], page: Path) -> str:
    """What was done in which time, where everything is, and what to type next."""
    from transformers.trainer_utils import get_last_checkpoint

    from strop.watch.progress import clock

    folder, seconds = str(trainer.args.output_dir), totals.get("train_runtime")
    newest = get_last_checkpoint(folder)
    lines = [f"trained     {trainer.state.global_step} steps in {clock(seconds)}"] if seconds is not None else []
    lines += [f"checkpoint  {newest} (--resume goes on from it)"] if newest else []
    lines += [f"model       {folder}", f"report      {page}"]
    lines += [f"try it      strop chat --model {folder}"] if trainer.task == "causal" else []
    return "\n".join(lines)
