"""What strop adds to the parent's checkpoint: a file of each rank, with what that rank alone knows.

Sums of metrics that are not logged yet, running means, coefficients, completions that are still to be learned from.
The same number of ranks takes it back rank by rank; another number shares it out anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from strop.engine.metrics import merge
from strop.errors import CheckpointError

STATE_FILE = "strop_state.pt"


def state_path(folder: Path, rank: int) -> Path:
    """The file of a rank; the first one's has no number, as of a run on one process."""
    return folder / (STATE_FILE if rank == 0 else STATE_FILE.replace(".", f"_{rank}."))


def save_rank_state(trainer: Any, folder: Path) -> None:
    """Write what this rank must find again."""
    state = {
        "world_size": trainer.args.world_size,
        "only_model": trainer.args.save_only_model,
        "row_order": trainer.row_order(),
        "metrics": {name: trainer._metrics[name].state() for name in ("train", "run")},
        "extra": trainer.extra_state(),
    }
    torch.save(state, state_path(folder, trainer.args.process_index))


def load_rank_state(trainer: Any, folder: Path) -> bool:
    """Take back what the ranks wrote; returns whether there are as many of them as there were.

    Raises:
        CheckpointError: the checkpoint holds a model only, or the rows that come next would not be those that came
            next when it was written.
    """
    first = read(state_path(folder, 0))
    if first["only_model"]:
        raise CheckpointError(
            f"{folder} was written with save_only_model=True: it has no optimizer, schedule or random state to go on "
            "from. Start a new run from its weights (model=that folder), and leave save_only_model off where a run may "
            "have to be resumed."
        )
    if not trainer.args.ignore_data_skip:
        check_row_order(folder, first["row_order"], trainer.row_order())
    rank, world = trainer.args.process_index, trainer.args.world_size
    if first["world_size"] == world:
        own = first if rank == 0 else read(state_path(folder, rank))
        for name, state in own["metrics"].items():
            trainer._metrics[name].load(state)
        trainer.load_extra_state(own["extra"])
        return True
    states = [first, *(read(state_path(folder, other)) for other in range(1, first["world_size"]))]
    for name in first["metrics"]:
        trainer._metrics[name].load(merge([state["metrics"][name] for state in states]) if rank == 0 else {})
    trainer.load_extra_state(trainer.share_extra_state([state["extra"] for state in states]))
    return False


def read(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def check_row_order(folder: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on in the middle of an order of rows that is not the one the checkpoint was written in."""
    changed = [f"{name}: {saved.get(name)}, now {now.get(name)}" for name in now if saved.get(name) != now.get(name)]
    if changed:
        error = CheckpointError.collect(
            f"{folder} cannot be gone on from, because other rows would come next than those that came next in its "
            "run. Changed since:",
            changed,
        )
        raise CheckpointError(
            f"{error}\nUse the settings and rows of that run; on another number of processes, change "
            "gradient_accumulation_steps so that a step keeps its rows. Or set ignore_data_skip=True, to begin the "
            "epoch in progress again."
        )
