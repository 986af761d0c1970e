"""Packs of ids, for scripts that pack by hand."""

from __future__ import annotations

import pytest
from datasets import Dataset

from strop.errors import ConfigError
from strop.scripts.packs import pack_dataset, truncate_dataset

ROWS = Dataset.from_dict({"input_ids": [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10], [11]], "name": ["a", "b", "c", "d"]})


def test_best_fit_keeps_rows_whole_and_cuts_the_longest() -> None:
    assert pack_dataset(ROWS, 4)[:] == {
        "input_ids": [[1, 2, 3, 4], [8, 9, 10, 11], [6, 7]],
        "seq_lengths": [[4], [3, 1], [2]],
    }


def test_splitting_loses_nothing() -> None:
    packed = pack_dataset(ROWS, 4, strategy="bfd_split")[:]
    assert sorted(i for row in packed["input_ids"] for i in row) == list(range(1, 12))
    assert [sum(lengths) for lengths in packed["seq_lengths"]] == [len(row) for row in packed["input_ids"]]
    assert max(map(len, packed["input_ids"])) == 4 and len(packed["input_ids"]) == 3


def test_wrapping_fills_every_pack() -> None:
    assert pack_dataset(ROWS, 4, strategy="wrapped")[:] == {"input_ids": [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11]]}


def test_columns_are_packed_alike_and_streams_too() -> None:
    rows = ROWS.remove_columns("name").map(lambda row: {"mask": [i % 2 for i in row["input_ids"]]})
    for strategy in ("bfd", "bfd_split", "wrapped"):
        for row in pack_dataset(rows.to_iterable_dataset(), 4, strategy=strategy):
            assert row["mask"] == [i % 2 for i in row["input_ids"]]


def test_what_cannot_be_packed_is_said() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'bfd'"):
        pack_dataset(ROWS, 4, strategy="bdf")
    with pytest.raises(ConfigError, match="at least one"):
        pack_dataset(ROWS, 0)
    with pytest.raises(ConfigError, match="none of text holds lists"):
        pack_dataset(Dataset.from_dict({"text": ["a"]}), 4)


def test_truncation_cuts_lists_alone() -> None:
    assert truncate_dataset(ROWS, 2)[:] == {
        "input_ids": [[1, 2], [6, 7], [8, 9], [11]],
        "name": ["a", "b", "c", "d"],
    }


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_rows_with_a_format_are_packed_and_cut_as_they_are(kind: str) -> None:
    rows = ROWS.remove_columns("name").with_format(kind)
    for strategy in ("bfd", "bfd_split", "wrapped"):
        packed = pack_dataset(rows, 4, strategy=strategy)
        assert packed.format["type"] == kind
        assert packed.to_dict() == pack_dataset(ROWS, 4, strategy=strategy).to_dict()
    assert truncate_dataset(rows, 2).to_dict() == truncate_dataset(ROWS.remove_columns("name"), 2).to_dict()
