"""Which completion is in which slot: rows wait, enter free slots, write tokens, stop, and make room for others."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from strop.device import sent
from strop.rollout.kv_cache import PromptGroup, StepPlan
from strop.rollout.stopping import StopRule


@dataclass(slots=True)
class Row:
    """One completion being written."""

    prompt: int  # number of the distinct prompt
    index: int  # index of the prompt in the call
    sample: int  # index of the sample of that prompt
    length: int  # tokens of the prompt
    limit: int  # most tokens it may write
    uniforms: np.ndarray  # (limit,) its own random numbers
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)  # nats
    finish: str | None = None  # "stop" or "length" once it is done

    @property
    def uniform(self) -> float:
        """The random number that its next token is drawn with."""
        return float(self.uniforms[len(self.ids)])

    def accept(self, token: int, logp: float, stop: StopRule) -> None:
        """Write one token, and finish where it is the last."""
        self.ids.append(token)
        self.logps.append(logp)
        if stop.reached(self.ids):
            self.finish = "stop"
        elif len(self.ids) >= self.limit:
            self.finish = "length"


@dataclass(slots=True)
class Move:
    """A row's keys go to another slot."""

    source: int
    target: int
    length: int  # keys in the slot


class Scheduler:
    """Slots 0..num_slots-1 and the rows in them.

    Args:
        rows: in the order they should enter, by rising number of their distinct prompt.
        num_slots: most rows at a time.
        share_prompts: whether a slot holds the completion only (the prompt is read from a shared place).
    """

    def __init__(self, rows: Sequence[Row], num_slots: int, share_prompts: bool) -> None:
        self.waiting = deque(rows)
        self.slots: list[Row | None] = [None] * num_slots
        self.share_prompts = share_prompts

    @property
    def active(self) -> list[Row]:
        """The rows of the next step, slot by slot; valid after `compact`."""
        return [row for row in self.slots if row is not None]

    @property
    def free_slots(self) -> list[int]:
        return [slot for slot, row in enumerate(self.slots) if row is None]

    def retire(self) -> list[Row]:
        """Take finished rows out of their slots."""
        done = []
        for slot, row in enumerate(self.slots):
            if row is not None and row.finish is not None:
                done.append(row)
                self.slots[slot] = None
        return done

    def compact(self) -> list[Move]:
        """Close the gaps: the last rows move into the first free slots."""
        moves = []
        rows = [slot for slot, row in enumerate(self.slots) if row is not None]
        for target in self.free_slots:
            if not rows or rows[-1] < target:
                break
            source = rows.pop()
            row = self.slots[source]
            assert row is not None
            moves.append(Move(source, target, self.own(row)))
            self.slots[target], self.slots[source] = row, None
        return moves

    def own(self, row: Row) -> int:
        """Keys that the row has in its slot: all its tokens but the newest, and the prompt where it is not shared."""
        return len(row.ids) - 1 + (0 if self.share_prompts else row.length)

    def awaited(self, prompt: int) -> bool:
        """Whether rows of this distinct prompt are still to enter."""
        return bool(self.waiting) and prompt >= self.waiting[0].prompt

    def plan(self, device: torch.device) -> tuple[torch.Tensor, StepPlan]:
        """The newest token of every active row, (R,), and the plan of the step that feeds them; one copy down."""
        rows = self.active
        own = [self.own(row) for row in rows]
        positions = [row.length + len(row.ids) - 1 for row in rows]
        lines = [[row.ids[-1] for row in rows], own, positions]
        order = sorted(range(len(rows)), key=lambda r: rows[r].prompt) if self.share_prompts else []
        if order != sorted(order):
            inverse = sorted(range(len(order)), key=order.__getitem__)
            lines += [order, inverse]
        packed = sent(lines, device, dtype=torch.long)  # (3 or 5, R)
        plan = StepPlan(
            own=packed[1],
            positions=packed[2],
            capacity=max(own) + 1,
            lockstep=own[0] if min(own) == max(own) else None,
        )
        if len(lines) > 3:
            plan.order, plan.inverse = packed[3], packed[4]
        plan.groups = _groups([rows[r] for r in order])
        return packed[0], plan


def _groups(rows: Sequence[Row]) -> list[PromptGroup]:
    """Where each prompt's rows are, of rows sorted by prompt."""
    groups: list[PromptGroup] = []
    for place, row in enumerate(rows):
        if not groups or groups[-1].prompt != row.prompt:
            groups.append(PromptGroup(row.prompt, row.length, place, place, []))
        groups[-1].stop = place + 1
        groups[-1].positions.append(row.length + len(row.ids) - 1)
    return groups


def as_rollout_lists(rows: Sequence[Row], num_prompts: int, n: int) -> dict[str, Any]:
    """Finished rows as the nested lists of a `Rollout`, [prompt][sample]."""
    grid: list[list[Row | None]] = [[None] * n for _ in range(num_prompts)]
    for row in rows:
        grid[row.index][row.sample] = row
    return {
        "completions": [[r.ids for r in line if r] for line in grid],
        "sampler_logps": [[r.logps for r in line if r] for line in grid],
        "finish_reasons": [[r.finish for r in line if r] for line in grid],
    }
