"""Packs: full but never overfull, nothing lost, every scored token once (rule R14)."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.data import RowStream, pack, prepare, tree_cost
from strop.data.packing import best_fit, cut_tree, take_piece
from strop.errors import ConfigError, DataError
from strop.records import Example
from strop.testing.tokenizers import toy_tokenizer


def trees(*sizes: int) -> list[Example]:
    return [Example([], [[1000 * row + t for t in range(size)]], row=row) for row, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "capacity", "wanted"),
    [
        ([5, 5, 5], 10, [[0, 1], [2]]),
        ([7, 6, 3, 4], 10, [[0, 2], [1, 3]]),
        ([9, 5, 4, 3, 1], 10, [[0], [1, 2, 4], [3]]),
        ([10, 10], 10, [[0], [1]]),
        ([2, 8, 6, 4, 3, 7], 10, [[0, 1], [2, 3], [4, 5]]),
        ([], 10, []),
    ],
)
def test_best_fit(sizes: list[int], capacity: int, wanted: list[list[int]]) -> None:
    assert sorted(map(sorted, best_fit(sizes, capacity))) == wanted


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_bfd_keeps_every_tree_whole(sizes: list[int]) -> None:
    data = trees(*sizes)
    packed = pack(data, 20)
    found = list(packed)
    assert sorted(tree.row for members in found for tree in members) == list(range(len(sizes)))
    assert all(tree is data[tree.row] for members in found for tree in members)
    assert [tree_cost(members) for members in found] == list(packed.lengths) and max(packed.lengths) <= 20
    # Best fit: two packs that would fit together do not exist side by side.
    loads = sorted(packed.lengths)
    assert len(loads) < 2 or loads[0] + loads[1] > 20


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.lists(st.integers(0, 1), min_size=1, max_size=30)), min_size=1, max_size=12
    ),
    st.integers(2, 12),
    st.sampled_from(["wrapped", "bfd_split"]),
)
def test_cut_packs_score_every_token_once(shapes: list[tuple[int, list[int]]], room: int, strategy: str) -> None:
    data = [
        Example(list(range(100 * row, 100 * row + p)), [[100 * row + p + t for t in range(len(mask))]], [mask], row=row)
        for row, (p, mask) in enumerate(shapes)
    ]

    def scored(examples: list[Example]) -> Counter[tuple[int, int]]:
        """(token before it, token) of every scored token."""
        found: Counter[tuple[int, int]] = Counter()
        for example in examples:
            ids = example.prompt_ids + example.completions[0]
            mask = [0] * len(example.prompt_ids) + example.mask(0)
            found.update((ids[t - 1], ids[t]) for t in range(1, len(ids)) if mask[t])
        return found

    packed = pack(data, room, strategy)
    packs = list(packed)
    assert all(tree_cost(members) <= room for members in packs)
    pieces = [piece for members in packs for piece in members]
    assert scored(pieces) == scored(data)
    assert all(len(piece.completions[0]) > 0 for piece in pieces)


def test_wrapped_packs_follow_the_order() -> None:
    packs = list(pack(trees(4, 5, 3), 6, "wrapped"))
    ids = [[piece.prompt_ids + piece.completions[0] for piece in members] for members in packs]
    assert ids == [[[0, 1, 2, 3], [1000, 1001]], [[1001, 1002, 1003, 1004], [2000, 2001]], [[2001, 2002]]]
    assert packs[1][0].prompt_ids == [1001] and packs[1][0].completions == [[1002, 1003, 1004]]


def test_pieces() -> None:
    example = Example([1, 2], [[3, 4, 5, 6]], [[1, 0, 0, 1]], row=7, extras={"columns": {}})
    assert cut_tree(example, 3, 3) == [(0, 3, 3), (4, 6, 2)]
    assert take_piece(example, 0, 6) is example
    assert take_piece(example, 0, 3) == Example([1, 2], [[3]], None, row=7, extras={"columns": {}})
    assert take_piece(example, 4, 6) == Example([5], [[6]], None, row=7, extras={"columns": {}})


def test_long_trees_are_refused_or_split() -> None:
    with pytest.raises(DataError, match="1 trees are longer than a pack of 6") as caught:
        pack(trees(3, 9), 6)
    assert "row 1: 9 tokens" in str(caught.value)
    assert max(pack(trees(3, 9), 6, "bfd_split").lengths) <= 6


def test_pairs_are_packed_whole_and_never_cut() -> None:
    pair = Example([1], [[2, 3], [4]], row=0)
    assert list(pack([pair, pair], 8)) == [[pair, pair]]
    for strategy, room in (("wrapped", 8), ("bfd_split", 3)):
        with pytest.raises(ConfigError, match="one completion"):
            pack([pair], room, strategy)


def test_wrong_settings() -> None:
    with pytest.raises(ConfigError, match=r"'bfdd'.*Did you mean 'bfd'"):
        pack(trees(1), 8, "bfdd")
    with pytest.raises(ConfigError, match="2 or more"):
        pack(trees(1), 1)


def test_prepared_sets_and_streams() -> None:
    rows = [{"text": "the good ant " * (i % 4 + 1)} for i in range(30)]
    data = prepare(rows, "language_modeling", toy_tokenizer())
    packed = pack(data, 40)
    assert packed.report is data.report and len(packed) < 30
    stream = pack(prepare(RowStream(lambda: iter(rows)), "language_modeling", toy_tokenizer()), 40)
    assert list(stream) == list(packed)


def test_packs_can_be_looked_at_by_column() -> None:
    packed = pack(trees(3, 2, 4), 6)
    assert packed.column_names == ["input_ids", "labels", "seq_lengths"]
    assert packed["seq_lengths"] == [[3], [2, 4]]
    assert packed["input_ids"] == packed["labels"] == [[0, 1, 2], [1000, 1001, 2000, 2001, 2002, 2003]]
    assert packed[1]["seq_lengths"] == [2, 4] and packed[0]["labels"] == [0, 1, 2]
    with pytest.raises(KeyError, match="this row has"):
        packed["chosen_ids"]
