"""What strop adds to the parent's checkpoint: a file of each rank, with what that rank alone knows.

Sums of metrics that are not logged yet, running means, coefficients, completions that are still to be learned from.
The same number of ranks takes it back rank by rank; another number shares it out anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from strop.engine.metrics import merge
from strop.errors import CheckpointError

if TYPE_CHECKING:
    from strop.engine.trainer import BaseTrainer

STATE_FILE = "strop_state.pt"


def state_path(folder: Path, rank: int) -> Path:
    """The file of a rank; the first one's has no number, as of a run on one process."""
    return folder / (STATE_FILE if rank == 0 else STATE_FILE.replace(".", f"_{rank}."))


def save_rank_state(folder: Path, trainer: BaseTrainer) -> None:
    args = trainer.args
    state = {
        "world_size": args.world_size,
        "only_model": args.save_only_model,
        "row_order": trainer.row_order(),
        "metrics": {name: log.state() for name, log in trainer._metrics.items() if name != "eval"},
        "extra": trainer.extra_state(),
    }
    torch.save(state, state_path(folder, args.process_index))


def load_rank_state(folder: Path, trainer: BaseTrainer) -> bool:
    """Take back what the ranks wrote; returns whether there are as many of them as there were.

    Raises:
        CheckpointError: the checkpoint holds a model only, or the rows that come next would not be those that came
            next when it was written, or another version of strop kept other things.
    """
    args, logs, first = trainer.args, trainer._metrics, read(folder, 0)
    try:
        if first["only_model"]:
            raise CheckpointError(
                f"{folder} was written with save_only_model=True: it has no optimizer, schedule or random state to go "
                "on from. Start a new run from its weights (model=that folder), and leave save_only_model off where a "
                "run may have to be resumed."
            )
        if not args.ignore_data_skip:
            check_row_order(folder, first["row_order"], trainer.row_order())
        if first["world_size"] == args.world_size:
            own = read(folder, args.process_index)
            for name, state in own["metrics"].items():
                logs[name].load(state)
            trainer.load_extra_state(own["extra"])
            return True
        states = of_all_ranks(folder)
        for name in first["metrics"]:
            logs[name].load({} if args.process_index else merge(state["metrics"][name] for state in states))
        trainer.load_extra_state(trainer.share_extra_state([state["extra"] for state in states]))
        return False
    except KeyError as error:
        raise CheckpointError(
            f"{folder} was written by another version of strop: what a rank keeps ({STATE_FILE}) has no {error}. Go on "
            "with that version, or start a new run from its weights (model=that folder)."
        ) from None


def read(folder: Path, rank: int) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(state_path(folder, rank), map_location="cpu", weights_only=True)
    return state


def of_all_ranks(folder: Path) -> list[dict[str, Any]]:
    return [read(folder, rank) for rank in range(read(folder, 0)["world_size"])]


def mean_loss_of_run(folder: Path) -> float:
    """The mean loss of all steps up to a checkpoint, over all of its ranks; NaN where they are not kept in it."""
    try:
        total, count = merge(state["metrics"]["run"] for state in of_all_ranks(folder))["sum:train_loss"]
    except (OSError, KeyError):
        return math.nan
    return total / count if count else math.nan


def check_row_order(folder: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on in the middle of an order of rows that is not the one the checkpoint was written in."""
    changed = [f"{name}: {saved.get(name)}, now {now.get(name)}" for name in now if saved.get(name) != now.get(name)]
    if changed:
        raise CheckpointError.collect(
            f"{folder} cannot be gone on from, because other rows would come next than those that came next in its "
            "run. Changed since:",
            changed,
            advice="Use the settings and rows of that run; on another number of processes, change "
            "gradient_accumulation_steps so that a step keeps its rows. Or set ignore_data_skip=True, to begin the "
            "epoch in progress again.",
        )
