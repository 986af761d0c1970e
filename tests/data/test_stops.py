"""Stop ids (rules R4 and R13)."""

from __future__ import annotations

import pytest
from tests.support.tokenizers import toy_tokenizer

from strop.data import cut_after_stop, ends_in_stop, stop_ids


def test_stop_set() -> None:
    tokenizer = toy_tokenizer()
    assert stop_ids(tokenizer) == {2} == stop_ids(tokenizer, 2)
    assert stop_ids(tokenizer, [4, 2]) == {2, 4} and stop_ids(toy_tokenizer("no_eos"), 4) == {4}
    assert stop_ids(toy_tokenizer("no_eos")) == set()


def test_only_the_end_of_the_completion_counts() -> None:
    assert ends_in_stop([5, 2], {2, 4}) and not ends_in_stop([2, 5], {2}) and not ends_in_stop([], {2})


@pytest.mark.parametrize(
    ("ids", "kept", "finished"),
    [
        ([5, 6, 2, 7, 2], [5, 6, 2], True),
        ([5, 6], [5, 6], False),
        ([2], [2], True),
        ([4, 2], [4], True),
        ([], [], False),
    ],
)
def test_cut_after_stop(ids: list[int], kept: list[int], finished: bool) -> None:
    assert cut_after_stop(ids, {2, 4}) == (kept, finished)
