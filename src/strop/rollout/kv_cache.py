"""Where keys and values live during a rollout: prompts once, and preallocated slots for what each row adds.

A row is one completion being written. Its keys are in one or two places:

* shared prompts: the prompt's keys are stored once, all its completions read them, and a slot holds only the
  completion's own tokens. Best where a prompt has several completions.
* forked prompts: the prompt's keys are copied into the slot, and a slot holds prompt and completion. Best for one or
  two completions per prompt, and for CUDA graphs, because every step then has one shape.

Active rows are always slots 0..R-1, so the batch of a step is a plain slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from strop.device import sent

_CLEAR_AHEAD = 64  # columns
NO_SLOTS: Any = None


@dataclass(slots=True)
class StepPlan:
    """The rows of one decoding step, as attention needs them.

    Row r writes its new key at `own[r]` of its slot and sits at position `base[r] + own[r]` of its sequence, where
    `base` is the length of the shared prompt (0 where the prompt was forked into the slot).
    """

    own: torch.Tensor  # (R,) keys already in each row's slot
    positions: torch.Tensor  # (R,) position of the new token
    capacity: int  # keys of a slot to look at: max(own) + 1, or a bucket above it
    lockstep: int | None = None  # the common value of `own` where all rows have the same, else None
    groups: list[PromptGroup] = field(default_factory=list)  # empty where prompts were forked
    order: torch.Tensor | None = None  # (R,) rows sorted by prompt; None where they are already
    inverse: torch.Tensor | None = None  # (R,) undoes `order`
    _biases: dict[tuple, Any] = field(default_factory=dict)  # (R, 1, 1, T), (1, 1, n * groups, T), None: no bias

    @property
    def num_rows(self) -> int:
        return int(self.own.shape[0])

    def forget_biases(self) -> None:
        """Compute the biases anew at the next use."""
        self._biases.clear()

    def own_range(self, window: int | None) -> tuple[int, int]:
        """Columns of the slots that some row can see."""
        if self.lockstep is None or window is None:
            return 0, self.capacity
        return max(0, self.lockstep - window + 1), self.capacity

    def own_bias(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """0 where a row may look at a column of its slot, -inf elsewhere, (R, 1, 1, T); None where it may everywhere.

        With a window of w a row sees columns `own - w < j <= own`; those before column 0 are in the shared prompt.
        """
        name = ("own", window, dtype)
        if name not in self._biases:
            first, stop = self.own_range(window)
            if self.lockstep is not None and stop == self.lockstep + 1:
                self._biases[name] = None
            else:
                column = torch.arange(first, stop, device=self.own.device)[None, :]  # (1, T)
                hidden = column > self.own[:, None]  # (R, T)
                if window is not None:
                    hidden = hidden | (column <= self.own[:, None] - window)
                self._biases[name] = _bias(hidden, dtype)[:, None, None]
        return self._biases[name]

    def prompt_bias(self, group: PromptGroup, window: int, groups: int, dtype: torch.dtype) -> torch.Tensor:
        """As `own_bias`, for the window's edge inside a shared prompt: (1, 1, n * groups, T)."""
        name = ("prompt", group.start, window, dtype)
        if name not in self._biases:
            first = group.first_visible(window)[0]
            column = torch.arange(first, group.length, device=self.own.device)[None, :]  # (1, T)
            placed = self.positions if self.order is None else self.positions[self.order]  # (R,) like the groups
            edge = placed[group.start : group.stop, None] - window  # (n, 1)
            per_row = _bias(column <= edge, dtype)  # (n, T)
            self._biases[name] = per_row.repeat_interleave(groups, 0)[None, None]
        return self._biases[name]


@dataclass(slots=True)
class PromptGroup:
    """The rows `start:stop` of the sorted order, which all continue one shared prompt."""

    prompt: int  # key of the prompt in the cache
    length: int  # tokens of the prompt
    start: int
    stop: int
    positions: list[int]  # position of each row's new token

    def first_visible(self, window: int | None) -> tuple[int, int]:
        """The first prompt column that some row sees, and the first that all rows see."""
        if window is None:
            return 0, 0
        return max(0, min(self.positions) - window + 1), max(0, max(self.positions) - window + 1)


@dataclass(slots=True)
class LayerCache:
    """Keys and values of one attention layer; its slots are made when the first keys arrive, whose sizes they take."""

    num_slots: int
    capacity: int  # keys a slot can hold
    keys: torch.Tensor = NO_SLOTS  # (slots, Hk, capacity, D)
    values: torch.Tensor = NO_SLOTS  # (slots, Hk, capacity, Dv)
    prompts: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # (1, Hk, P, D), (1, Hk, P, Dv)
    _cleared: int = 0  # columns of the slots that hold numbers rather than uninitialised memory

    def reserve(self, columns: int) -> None:
        """Make the first `columns` of every slot safe to read.

        A column that is excluded for one row still meets a softmax weight of 0 there, and 0 * NaN is NaN. Cleared as
        the rows grow: clearing all at once would touch memory that short completions never need.
        """
        if self.keys is None or columns <= self._cleared:
            return
        stop = min(self.capacity, max(columns, self._cleared + _CLEAR_AHEAD))
        self.keys[:, :, self._cleared : stop].zero_()
        self.values[:, :, self._cleared : stop].zero_()
        self._cleared = stop

    def store_prompt(
        self, prompt: int, key: torch.Tensor, value: torch.Tensor, above: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the keys of one prompt, (1, Hk, P, D), behind those of the part `above` it; all of them."""
        if self.keys is None:
            self.keys = key.new_empty(self.num_slots, key.shape[1], self.capacity, key.shape[3])
            self.values = value.new_empty(self.num_slots, value.shape[1], self.capacity, value.shape[3])
        if above is None:
            self.prompts[prompt] = key.contiguous().clone(), value.contiguous().clone()
        else:
            keys, values = self.prompts[above]
            self.prompts[prompt] = torch.cat([keys, key], 2), torch.cat([values, value], 2)
        return self.prompts[prompt]

    def fork(self, prompt: int, slots: torch.Tensor) -> None:
        """Copy a prompt's keys into the beginning of the given slots, (n,)."""
        key, value = self.prompts[prompt]
        self.reserve(key.shape[2])
        self.keys[slots, :, : key.shape[2]] = key
        self.values[slots, :, : value.shape[2]] = value

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` keys of one slot into another."""
        self.keys[target, :, :length] = self.keys[source, :, :length]
        self.values[target, :, :length] = self.values[source, :, :length]

    def row(self, slot: int, length: int, prompt: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """A copy of a row's keys and values: those of its shared prompt, if it has one, and `length` of its slot."""
        own = self.keys[slot : slot + 1, :, :length], self.values[slot : slot + 1, :, :length]
        if prompt is None:
            return own[0].clone(), own[1].clone()
        keys, values = self.prompts[prompt]
        return torch.cat([keys, own[0]], 2), torch.cat([values, own[1]], 2)

    def append(self, plan: StepPlan, key: torch.Tensor, value: torch.Tensor) -> None:
        """Write each row's new key and value, (R, Hk, 1, D), into its slot."""
        rows = plan.num_rows
        if plan.lockstep is not None:
            self.keys[:rows, :, plan.lockstep] = key[:, :, 0]
            self.values[:rows, :, plan.lockstep] = value[:, :, 0]
        else:
            row = torch.arange(rows, device=key.device)
            self.keys[row, :, plan.own] = key[:, :, 0]
            self.values[row, :, plan.own] = value[:, :, 0]


class KVCache:
    """The layers' caches of one model, made as the layers are met."""

    def __init__(self, num_slots: int, capacity: int) -> None:
        self.num_slots = num_slots
        self.capacity = capacity
        self.layers: dict[int, LayerCache] = {}  # by id of the attention module

    def layer(self, module: torch.nn.Module) -> LayerCache:
        if id(module) not in self.layers:
            self.layers[id(module)] = LayerCache(self.num_slots, self.capacity)
        return self.layers[id(module)]

    def reserve(self, columns: int) -> None:
        for layer in self.layers.values():
            layer.reserve(columns)

    def fork(self, where: Mapping[int, Sequence[int]], device: torch.device) -> None:
        """Copy prompts into slots, prompt -> slots, in every layer; one copy down for all of them."""
        if not where:
            return
        places = sent([slot for slots in where.values() for slot in slots], device, dtype=torch.long)
        for prompt, slots in zip(where, places.split([len(slots) for slots in where.values()]), strict=True):
            for layer in self.layers.values():
                layer.fork(prompt, slots)

    def move(self, source: int, target: int, length: int) -> None:
        for layer in self.layers.values():
            layer.move(source, target, length)

    def row(self, slot: int, length: int, prompt: int | None) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        return {name: layer.row(slot, length, prompt) for name, layer in self.layers.items()}

    def take(self, parts: Mapping[int, Mapping[int, tuple[torch.Tensor, torch.Tensor]]]) -> None:
        """Store parts of prompts that are computed already: key -> keys and values of every layer."""
        for part, layers in parts.items():
            for name, stored in layers.items():
                layer = self.layers.setdefault(name, LayerCache(self.num_slots, self.capacity))
                layer.prompts[part] = stored

    def keep_prompts(self, needed: Callable[[int], bool]) -> None:
        for layer in self.layers.values():
            for prompt in [p for p in layer.prompts if not needed(p)]:
                del layer.prompts[prompt]


def _bias(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -math.inf)
