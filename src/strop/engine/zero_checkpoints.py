"""DeepSpeed's part of a checkpoint: which runs can go on from it.

ZeRO writes the optimizer's state rank by rank into a folder of its own, `global_step<N>`, and reads it with as many
ranks only. A run without DeepSpeed would look for the state of one process, find none, and begin with fresh moments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType

from strop.errors import CheckpointError


def check_goes_on(folder: Path, accelerator: Any) -> None:
    """Refuse a checkpoint whose optimizer this run cannot read.

    Raises:
        CheckpointError: who can.
    """
    zero = accelerator.distributed_type == DistributedType.DEEPSPEED
    states = list(folder.glob("global_step*"))
    ranks = len(list(folder.glob("global_step*/*zero_pp_rank_*_optim_states.pt")))
    new = (
        "start a new run from its weights (model=that folder; its zero_to_fp32.py writes them where they are missing)."
    )
    if zero and not states:
        raise CheckpointError(
            f"{folder} was written without DeepSpeed, which cannot read its optimizer. Go on without it, or {new}"
        )
    if states and not zero:
        raise CheckpointError(
            f"{folder} holds an optimizer that DeepSpeed cut, and this run is without it. Go on with the launcher and "
            f"settings of that run, or {new}"
        )
    if zero and ranks not in (0, accelerator.num_processes):
        raise CheckpointError(
            f"{folder} holds an optimizer that ZeRO cut for {ranks} processes, and this run has "
            f"{accelerator.num_processes}: strop makes no universal checkpoints. Go on with {ranks}, or {new}"
        )


def in_shards_alone(folder: Path) -> bool:
    """Whether the weights of a checkpoint lie in DeepSpeed's files only: ZeRO-3 gathers none for it by itself."""
    return any(folder.glob("global_step*")) and not any(folder.glob("*model*.safetensors"))


def read_shards(folder: Path) -> dict[str, Any]:
    """The whole weights, from DeepSpeed's files.

    Raises:
        CheckpointError: DeepSpeed is not installed.
    """
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError as error:
        raise CheckpointError(
            f"{folder} holds its weights in shards of DeepSpeed, which is not installed. Install it "
            "(pip install 'strop[deepspeed]'), or write them whole with the zero_to_fp32.py of that folder."
        ) from error
    weights: dict[str, Any] = get_fp32_state_dict_from_zero_checkpoint(str(folder))
    return weights
