from __future__ import annotations

import pytest

from strop.engine.windows import StepSampler, StreamWindows, WindowLoader, epoch_order
from strop.records import Example


def steps_of(sampler: StepSampler) -> list[list[int]]:
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return [
        [row for batch in batches[i : i + sampler.batches_per_step] for row in batch]
        for i in range(0, len(batches), sampler.batches_per_step)
    ]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("rows", [1, 7, 8, 23])
def test_the_rows_of_a_step_do_not_depend_on_the_number_of_processes(world, rows):
    alone = steps_of(StepSampler(rows, 4, seed=3))
    shares = [steps_of(StepSampler(rows, 4, seed=3, rank=r, world_size=world)) for r in range(world)]
    for step, whole in enumerate(alone):
        assert sorted(row for share in shares for row in share[step]) == sorted(whole)
    assert sorted(row for step in alone for row in step) == list(range(rows))


def test_epochs_differ_and_repeat_by_seed_and_number():
    first, second = (epoch_order(20, seed=1, epoch=e, shuffle=True) for e in (0, 1))
    assert first != second and sorted(first) == sorted(second)
    assert first == epoch_order(20, seed=1, epoch=0, shuffle=True)
    assert epoch_order(5, seed=1, epoch=0, shuffle=False) == [0, 1, 2, 3, 4]


def test_drop_last_leaves_out_the_short_window():
    assert StepSampler(10, 4, drop_last=True).num_steps == 2
    assert StepSampler(10, 4).num_steps == 3


def test_accumulation_places_follow_as_empty_batches():
    assert [len(b) for b in StepSampler(6, 4, batches_per_step=2)] == [4, 0, 2, 0]


def test_a_stream_is_shared_out_like_a_set():
    stream = [Example([1], [[i]], row=i) for i in range(10)]
    shares = [
        [[e.row for e in part] for part in StreamWindows(stream, 4, batches_per_step=1, rank=r, world_size=2)]
        for r in range(2)
    ]
    assert shares == [[[0, 2], [4, 6], [8]], [[1, 3], [5, 7], [9]]]


def test_the_loader_hands_on_the_epoch():
    sampler = StepSampler(6, 3, seed=0)
    loader = WindowLoader([Example([1], [[i]], row=i) for i in range(6)], sampler)
    loader.set_epoch(4)
    assert sampler.epoch == 4
    assert [[e.row for e in batch] for batch in loader] == steps_of(sampler)
