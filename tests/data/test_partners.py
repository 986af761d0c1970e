"""KTO's mismatched completions (rule R12): fixed per set, never one's own, ids joined without tokenising again."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.data import RowStream, TokenizeOptions, mismatched, prepare
from strop.data.partners import find_partners
from strop.errors import ConfigError
from strop.testing.tokenizers import toy_tokenizer


def rows(*cases: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"prompt": p, "completion": c, "label": i % 2 == 0} for i, (p, c) in enumerate(cases)]


@pytest.mark.parametrize(
    ("prompts", "completions", "wanted"),
    [
        ([1, 2, 3], [1, 2, 3], [1, 2, 0]),
        ([1, 1, 2, 2], [1, 2, 3, 4], [2, 2, 0, 0]),
        ([1, 1, 1], [1, 2, 3], [-1, -1, -1]),
        ([1, 2, 3], [9, 9, 9], [-1, -1, -1]),
        ([1, 2, 3], [9, 9, 8], [2, 2, 0]),
        ([1], [1], [-1]),
        ([], [], []),
        ([1, 2, 1, 3], [5, 6, 7, 6], [1, 2, 3, 0]),
        ([1, 2], [1, 2], [1, 0]),
    ],
)
def test_find_partners(prompts: list[int], completions: list[int], wanted: list[int]) -> None:
    assert list(find_partners(prompts, completions)) == wanted


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=14))
def test_the_first_row_that_differs_in_both(pairs: list[tuple[int, int]]) -> None:
    prompts, completions = [p for p, _ in pairs], [c for _, c in pairs]
    size = len(pairs)
    found = find_partners(array("Q", prompts), array("Q", completions))
    for row in range(size):
        order = [(row + step) % size for step in range(1, size)]
        wanted = next((j for j in order if prompts[j] != prompts[row] and completions[j] != completions[row]), -1)
        assert found[row] == wanted


def test_like_rows_cost_no_quadratic_walk() -> None:
    size = 200_000
    assert set(find_partners(array("Q", [1]) * size, array("Q", range(size)))) == {-1}


def test_ids_are_joined(calls: Counter[str]) -> None:
    tokenizer = toy_tokenizer()
    data = prepare(rows(("goo", "d ant"), ("the", " bee"), ("cat", " dog")), "unpaired_preference", tokenizer)
    before = dict(calls)
    joined = mismatched(data)
    assert joined["completion_ids"] == [tree.completions[0] for tree in data]
    assert "completion_ids" in joined.column_names
    found = list(joined)
    assert dict(calls) == before
    for i, example in enumerate(found):
        j = (i + 1) % 3
        assert example.prompt_ids == data[i].prompt_ids
        assert example.completions == [data[i].completions[0], data[j].completions[0]]
        assert (
            example.extras["partner"] == j and example.extras["label"] == data[i].extras["label"] and example.row == i
        )
    assert len(joined) == 3
    assert joined.__getitems__([2, 0]) == [found[2], found[0]] and joined[-1] == found[2]


def test_the_same_cut_holds_for_the_partner() -> None:
    data = prepare(
        rows(("the good ant", " a"), ("p", " saw the bad bee and the cat")),
        "unpaired_preference",
        toy_tokenizer(),
        TokenizeOptions(max_length=9),
    )
    first, second = list(mismatched(data))
    assert len(first.prompt_ids) + len(first.completions[1]) == 9
    assert first.completions[1] == data[1].completions[0][:4] and second.completions[1] == data[0].completions[0]


def test_rows_without_a_partner_say_so() -> None:
    data = prepare(rows(("p", " a"), ("p", " b")), "unpaired_preference", toy_tokenizer())
    for i, example in enumerate(mismatched(data)):
        assert example.completions == data[i].completions and example.extras["partner"] is None


def test_masks_of_either_side() -> None:
    user, bot = (lambda t: {"role": "user", "content": t}), (lambda t: {"role": "assistant", "content": t})
    cases = [([user("q")], [bot("a")]), ([user("r")], [bot("b"), user("x"), bot("c")])]
    data = prepare(rows(*cases), "unpaired_preference", toy_tokenizer("chatml"))  # type: ignore[arg-type]
    first, second = list(mismatched(data))
    assert first.loss_mask == [data[0].mask(0), data[1].mask(0)] and 0 in first.loss_mask[1]
    assert second.loss_mask == [data[1].mask(0), data[0].mask(0)]


def test_pairs_split_into_answers_find_other_prompts() -> None:
    pairs = [{"prompt": f"p{i}", "chosen": f" c{i}", "rejected": f" r{i}"} for i in range(3)]
    found = list(mismatched(prepare(pairs, "unpaired_preference", toy_tokenizer())))
    assert [example.extras["partner"] for example in found] == [2, 2, 4, 4, 0, 0]


def test_stand_ins_get_partners_of_their_own() -> None:
    """Row 1 is unusable; row 2 stands in for it, both in its own place and as the partner of row 0."""
    cases = rows(("p0", " c0"), ("long " * 40, " c1"), ("p2", " c2"), ("p3", " c3"))
    data = prepare(cases, "unpaired_preference", toy_tokenizer(), TokenizeOptions(max_length=30), eager_rows=0)
    found = list(mismatched(data))
    assert [(example.row, example.extras["partner"]) for example in found] == [(0, 2), (2, 3), (2, 3), (3, 0)]
    same = [{**case, "prompt": "p0"} if i == 2 else case for i, case in enumerate(cases)]
    data = prepare(same, "unpaired_preference", toy_tokenizer(), TokenizeOptions(max_length=30), eager_rows=0)
    assert mismatched(data)[0].extras["partner"] is None


def test_other_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match="these are language_modeling"):
        mismatched(prepare([{"text": "a b"}], "language_modeling", toy_tokenizer()))


def test_a_stream_pairs_with_a_tree_that_follows_and_differs_in_both() -> None:
    rows = [
        {"prompt": f"the ant {number // 2}", "completion": f" {said}", "label": True}
        for number, said in enumerate(["good", "bad", "good", "bee", "cat"])
    ]
    stream = mismatched(
        prepare(RowStream(lambda: iter(rows)), "unpaired_preference", toy_tokenizer(), TokenizeOptions(max_length=64))
    )
    known = mismatched(prepare(rows, "unpaired_preference", toy_tokenizer(), TokenizeOptions(max_length=64)))
    found, wanted = list(stream), list(known)
    assert [example.extras["partner"] for example in found] == [3, 2, 4, 4, None]
    assert found[:4] == wanted[:4]  # the last one is paired around the end, which a stream does not have


@pytest.mark.parametrize("streamed", [False, True])
def test_a_mismatched_completion_fits_the_learned_positions(streamed: bool) -> None:
    rows = [
        {"prompt": "the good ant saw the bad bee", "completion": " ran", "label": True},
        {"prompt": "hello", "completion": " and the cat ran to the dog", "label": False},
        {"prompt": "the end", "completion": " yes", "label": True},
    ]
    options = TokenizeOptions(learned_positions=20)
    source = RowStream(lambda: iter(rows)) if streamed else rows
    first = next(iter(mismatched(prepare(source, "unpaired_preference", toy_tokenizer(), options))))
    assert first.extras["partner"] == 1
    assert len(first.prompt_ids) + max(map(len, first.completions)) <= 20
    assert first["completion_ids"] == first.completions[0] and "chosen_ids" not in first
