"""Cutting trees: no limit is exceeded, whatever the lengths."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.data.options import TokenizeOptions
from strop.data.truncate import Tokenized, cut_flat, cut_prompt, overlong, scored, truncate


def tree(prompt: int, *completions: int) -> Tokenized:
    return Tokenized(list(range(prompt)), [list(range(100, 100 + size)) for size in completions])


@pytest.mark.parametrize(
    ("room", "header", "bos", "wanted"),
    [
        (6, 2, 1, [0, 1, 2, 3, 4, 5]),
        (5, 2, 1, [0, 1, 3, 4, 5]),
        (3, 2, 1, [0, 1, 5]),
        (2, 2, 1, [0, 5]),
        (1, 2, 1, [0]),
        (1, 2, 0, [5]),
        (0, 2, 1, []),
        (-3, 2, 1, []),
    ],
)
def test_cut_prompt(room: int, header: int, bos: int, wanted: list[int]) -> None:
    assert cut_prompt([0, 1, 2, 3, 4, 5], room, header, bos) == wanted


def test_masks_are_cut_with_their_ids() -> None:
    found = Tokenized([1], [[2, 3, 4], [5]], [[0, 1, 1], [1]])
    found = truncate(found, TokenizeOptions(max_length=3), 0, 0)
    assert (found.completions, found.masks, found.flags) == ([[2, 3], [5]], [[0, 1], [1]], ("truncated",))


@settings(max_examples=200, deadline=None)
@given(
    prompt=st.integers(0, 12),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    limit=st.integers(1, 25),
    mode=st.sampled_from(["keep_start", "keep_end"]),
    header=st.integers(0, 4),
)
def test_any_tree_fits_after_the_cut(prompt: int, sizes: list[int], limit: int, mode: str, header: int) -> None:
    header = min(header, prompt)
    bos = min(1, header)
    whole = tree(prompt, *sizes)
    options = TokenizeOptions(max_length=limit, truncation_mode=mode)
    fits = overlong(whole, options) is None
    found = truncate(tree(prompt, *sizes), options, header, bos)
    if fits:
        assert found == whole
        return
    if mode == "keep_start" and prompt >= limit:
        assert found.left_out is not None and found.left_out[0] == "prompt_too_long"
        return
    assert overlong(found, options) is None and all(found.completions) and "truncated" in found.flags
    for ids, original in zip(found.completions, whole.completions, strict=True):
        assert ids == original[: len(ids)]
    if mode == "keep_start":
        assert found.prompt_ids == whole.prompt_ids
    else:
        assert found.prompt_ids[:bos] == whole.prompt_ids[:bos] or limit <= bos
        assert max(sizes) >= limit or max(map(len, found.completions)) == max(sizes) or bos
        # Everything that fits is used.
        assert len(found.prompt_ids) + max(map(len, found.completions)) == limit


def test_cut_flat() -> None:
    ids, mask = [9, 1, 2, 3], [0, 1, 1, 1]
    assert cut_flat(ids, mask, TokenizeOptions(), 1) == (ids, mask, False)
    assert cut_flat(ids, mask, TokenizeOptions(max_length=3), 1) == ([9, 1, 2], [0, 1, 1], True)
    tail = TokenizeOptions(max_length=3, truncation_mode="keep_end")
    assert cut_flat(ids, mask, tail, 1) == ([9, 2, 3], [0, 1, 1], True)
    assert cut_flat(ids, mask, tail, 0) == ([1, 2, 3], [1, 1, 1], True)


def test_scored() -> None:
    assert (
        scored([], [1, 1, 1]) == 2 and scored([5], [1, 1, 1]) == 3 and scored([], [0, 1]) == 1 and scored([], []) == 0
    )
