"""The errors that strop raises on purpose: what is wrong, what was given, what to do.

Every message is complete on its own, so the command line prints it without a traceback. Problems of
one kind are collected first and raised together (`StropError.collect`), before anything expensive.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from strop.plain_text import bounded, visible

_PROBLEM, _MOST = 2000, 20  # characters of one of many problems; and how many of them are shown


class StropError(Exception):
    """Base of all errors raised on purpose. `str(error)` is the whole message for the user.

    Messages quote what files and servers sent, so a message does nothing in a terminal and is bounded.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(bounded(visible(arg)) if isinstance(arg, str) else arg for arg in args))

    @classmethod
    def collect(cls, title: str, problems: Sequence[str], *, advice: str = "") -> StropError:
        """One error out of many problems of a kind: a title, a line for each of the first, and what to do."""
        lines = [title, *(f"  - {bounded(problem, _PROBLEM)}" for problem in problems[:_MOST])]
        if len(problems) > _MOST:
            lines.append(f"  ... and {len(problems) - _MOST} more")
        return cls("\n".join([*lines, advice] if advice else lines))


class ConfigError(StropError, ValueError):
    """A setting is unknown, out of range, or contradicts another one."""


class DataError(StropError, ValueError):
    """Rows cannot be used: the message names file, row, column, cause and fix."""


class SetupError(StropError, RuntimeError):
    """Something outside the config and the data is missing: a package, a model, a device, disk space."""


class CheckpointError(StropError, RuntimeError):
    """A checkpoint is incomplete, damaged, or belongs to another run."""


class LostRankError(StropError, RuntimeError):
    """Another process of the run died or stalled: the message names it and the checkpoint to go on from."""


class NonFiniteError(StropError, ArithmeticError):
    """The loss or its gradient is not finite: the message names the rows and where the batch is kept."""


class RewardError(StropError, RuntimeError):
    """A reward function returned the wrong thing, raised, hung or died."""


class RolloutError(StropError, RuntimeError):
    """A rollout engine stalled, answered wrongly or died."""


class MissingNameError(StropError, ImportError):
    """A script imports a name that is not here: the message says what to use, for all such names of the file."""


SPOKEN = {
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "accumulation_steps": "gradient_accumulation_steps",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "steps": "max_steps",
    "scheduler": "lr_scheduler_type",
    "warmup": "warmup_steps",
    "data": "dataset",
    "out": "output_dir",
    "output": "output_dir",
    "max_seq_len": "max_length",
    "lora_rank": "lora_r",
    "rank": "lora_r",
    "simpo": "CPO",
}
"""What people call a setting -> its name."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'beta'?"` for the nearest known name, or the empty string."""
    known = list(islice(known, 1000))  # bounded: 20,000 take seconds
    if SPOKEN.get(name) in known:
        return f" Did you mean '{SPOKEN[name]}'?"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def folder_beside(name: str) -> str:
    """The same for a folder that is not there, from those that are in its place."""
    try:
        return did_you_mean(name, (str(path) for path in Path(name).parent.iterdir() if path.is_dir()))
    except OSError:
        return ""
