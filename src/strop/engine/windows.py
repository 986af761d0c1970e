"""Which rows make an optimizer step: a window of the epoch's order, shared out over the ranks.

The order of an epoch depends on the seed and the epoch's number alone, and a step's window on the order alone; so
the rows of a step are the same for every number of processes and after every resume. The parent trainer counts
batches, `gradient_accumulation_steps` to a step: the first batch of a step carries all rows of this rank, the
others are empty.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from strop.records import Example
from strop.watch.say import say

LONG_EVALUATION = 100_000
"""Rows of a stream after which an evaluation without a bound is told of."""


def epoch_order(num_rows: int, *, seed: int, epoch: int, shuffle: bool) -> list[int]:
    """Row numbers in the order of one epoch; a function of its arguments only."""
    if not shuffle:
        return list(range(num_rows))
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (2**63 - 1))
    return torch.randperm(num_rows, generator=generator).tolist()


@dataclass(eq=False)
class StepSampler:
    """Batch sampler of one rank: for each optimizer step its share of the window, then empty batches.

    `rows_per_step` counts over all ranks. The last window of an epoch may be short (`drop_last` leaves it out). A
    rank may get no row of a short window; the trainer then computes a zero-weight stand-in.
    """

    num_rows: int
    rows_per_step: int
    _: KW_ONLY
    batches_per_step: int = 1
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    epoch: int = 0

    @property
    def num_steps(self) -> int:
        whole, rest = divmod(self.num_rows, self.rows_per_step)
        return whole if self.drop_last else whole + bool(rest)

    @property
    def batch_size(self) -> int:
        return max(1, self.rows_per_step // self.world_size)

    def __len__(self) -> int:
        return self.num_steps * self.batches_per_step

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order(self.epoch)
        for step in range(self.num_steps):
            yield self.share(order, step)
            yield from ([] for _ in range(self.batches_per_step - 1))

    def order(self, epoch: int) -> list[int]:
        return epoch_order(self.num_rows, seed=self.seed, epoch=epoch, shuffle=self.shuffle)

    def share(self, order: list[int], step: int) -> list[int]:
        """This rank's rows of a window of an epoch's order."""
        window = order[step * self.rows_per_step : (step + 1) * self.rows_per_step]
        return window[self.rank :: self.world_size]

    def rows_of(self, number: int) -> list[int]:
        """This rank's rows of a window that is counted from the start of the run, over all epochs."""
        epoch, step = divmod(number, self.num_steps)
        return self.share(self.order(epoch), step)


@dataclass(eq=False)
class StreamWindows(IterableDataset):
    """The same shares cut from a stream of examples; every rank reads the stream and keeps its own rows.

    With `repeat` the stream is walked again when it ends (under the number of the pass, where it has `set_epoch`), so
    that the n-th window is the same for every run, and for a resumed one, which passes over the windows before it.
    """

    stream: Iterable[Example]
    rows_per_step: int
    _: KW_ONLY
    batches_per_step: int
    rank: int
    world_size: int
    repeat: bool = False
    most: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Passes over the stream are counted here, not by the parent, which never sees its end."""

    def __iter__(self) -> Iterator[list[Example]]:
        for epoch in itertools.count():
            if hasattr(self.stream, "set_epoch"):
                self.stream.set_epoch(epoch)
            empty = True
            for window in self._windows():
                empty = False
                yield list(window[self.rank :: self.world_size])
                yield from ([] for _ in range(self.batches_per_step - 1))
            if not self.repeat or empty:
                return

    def _windows(self) -> Iterator[list[Example]]:
        """Windows of one pass over the stream, or its first `most` examples; the last may be short."""
        examples = itertools.islice(self.stream, self.most)
        while window := list(itertools.islice(examples, self.rows_per_step)):
            yield window


class WindowLoader(DataLoader):
    """Loads a map-style dataset by a sampler, or `StreamWindows`, which this process reads, with None; hands on
    `set_epoch` to what is behind it.

    Its own generator keeps it from drawing on the global random state, which an evaluation would then move.
    """

    def __init__(self, dataset: Any, sampler: StepSampler | None, **settings: Any) -> None:
        own = torch.Generator()
        if sampler is None:
            super().__init__(dataset, batch_size=None, generator=own)
        else:  # examples stay as they are: layout happens when the whole step is known
            super().__init__(dataset, batch_sampler=sampler, collate_fn=list, generator=own, **settings)

    def set_epoch(self, epoch: int) -> None:
        target = self.dataset if isinstance(self.dataset, IterableDataset) else self.batch_sampler
        target.set_epoch(epoch)  # type: ignore[union-attr]


def ranks_of(args: Any) -> dict[str, Any]:
    return {"rank": args.process_index, "world_size": args.world_size}


def train_loader(dataset: Any, args: Any, size: int, *, steps: int, shuffle: bool) -> WindowLoader:
    """Windows of `size` rows over all ranks, each of which serves `steps` optimizer steps."""
    if not hasattr(dataset, "__len__"):
        batches = args.gradient_accumulation_steps * steps
        return WindowLoader(StreamWindows(dataset, size, batches_per_step=batches, repeat=True, **ranks_of(args)), None)
    return WindowLoader(
        dataset,
        window_sampler(dataset, args, size, steps=steps, shuffle=shuffle),
        num_workers=args.dataloader_num_workers,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        in_order=args.dataloader_in_order,
    )


def window_sampler(dataset: Any, args: Any, size: int, *, steps: int, shuffle: bool) -> StepSampler:
    """Which rows of a set with a length make the windows of `train_loader`."""
    return StepSampler(
        len(dataset),
        size,
        batches_per_step=args.gradient_accumulation_steps * steps,
        seed=args.data_seed if args.data_seed is not None else args.seed,
        shuffle=shuffle,
        drop_last=args.dataloader_drop_last,
        **ranks_of(args),
    )


def eval_loader(dataset: Any, args: Any, most: int | None = None) -> WindowLoader:
    """Windows of `eval_batch_size` rows for each rank, in the order of the rows; of the first `most` of them."""
    size = args.eval_batch_size * args.world_size
    if not hasattr(dataset, "__len__"):
        stream = dataset if most else told_when_long(dataset, args)
        return WindowLoader(StreamWindows(stream, size, batches_per_step=1, most=most, **ranks_of(args)), None)
    rows = min(len(dataset), most or len(dataset))
    return WindowLoader(dataset, StepSampler(rows, size, shuffle=False, **ranks_of(args)))


def told_when_long(stream: Iterable[Example], args: Any) -> Iterator[Example]:
    """The stream; one that goes on and on says which setting ends it."""
    for number, example in enumerate(stream, start=1):
        if number == LONG_EVALUATION:
            say(args, f"Warning: an evaluation has read {number:,} rows of a stream; max_eval_rows would end it there.")
        yield example
