from __future__ import annotations

from strop.rewards.reading import batches_by_tokens


def test_batches_cover_everything_and_keep_the_budget():
    lengths = [5, 1, 9, 3, 3, 20, 2]
    batches = batches_by_tokens(lengths, 10)
    assert sorted(index for batch in batches for index in batch) == list(range(7))
    for batch in batches:
        assert max(lengths[i] for i in batch) * len(batch) <= 10 or len(batch) == 1
    assert batches[0] == [5]
    assert batches_by_tokens([], 10) == []
