"""Cutting trees (rules R5, R6): no limit is exceeded, whatever the lengths; what is cut has no EOS."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.tokenizers import toy_tokenizer

from strop.data import DatasetKind, TokenizeOptions, prepare
from strop.data.truncate import Tokenized, cut_flat, cut_prompt, overlong, scored, truncate
from strop.errors import DataError
from strop.records import Example
from strop.testing.tokenizers import DEFAULT_SYSTEM

LANGUAGE, PAIRS = DatasetKind.LANGUAGE_MODELING, DatasetKind.PREFERENCE
SYSTEM = f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def build(row: dict[str, Any], kind: DatasetKind, variant: str = "plain", **options: Any) -> Example:
    return prepare([row], kind, toy_tokenizer(variant), TokenizeOptions(**options))[0]


def texts(example: Example) -> tuple[str, list[str]]:
    """Prompt and completions as text, special tokens included."""
    decode = toy_tokenizer().decode
    return decode(example.prompt_ids), [decode(ids) for ids in example.completions]


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


@settings(max_examples=150, deadline=None)
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


# ---- golden tables of R5 and R6

LONG = {"prompt": "the good ant", "chosen": " saw the bee", "rejected": " ran"}
"""5 prompt tokens; 8 and 4 completion tokens, EOS included."""


def test_lengths_of_the_truncation_table() -> None:
    example = build(LONG, PAIRS)
    assert (len(example.prompt_ids), [len(ids) for ids in example.completions]) == (5, [8, 4])


@pytest.mark.parametrize(
    ("mode", "max_length", "prompt", "chosen", "rejected"),
    [
        ("keep_start", 13, "the good ant", " saw the bee</s>", " ran</s>"),
        ("keep_start", 12, "the good ant", " saw the bee", " ran</s>"),
        ("keep_start", 8, "the good ant", " saw", " ran"),
        ("keep_start", 7, "the good ant", " sa", " r"),
        ("keep_end", 13, "the good ant", " saw the bee</s>", " ran</s>"),
        ("keep_end", 12, "he good ant", " saw the bee</s>", " ran</s>"),
        ("keep_end", 10, " ant", " saw the bee</s>", " ran</s>"),
        ("keep_end", 9, "t", " saw the bee</s>", " ran</s>"),
        ("keep_end", 6, "", " saw the be", " ran</s>"),
    ],
)
def test_truncation(mode: str, max_length: int, prompt: str, chosen: str, rejected: str) -> None:
    example = build(LONG, PAIRS, max_length=max_length, truncation_mode=mode)
    assert texts(example) == (prompt, [chosen, rejected])
    assert max(len(example.prompt_ids) + len(ids) for ids in example.completions) <= max_length


def test_truncation_leaves_out_prompts_that_fill_the_length() -> None:
    with pytest.raises(DataError, match="prompt fills max_length"):
        build(LONG, PAIRS, max_length=5)
    report = prepare([LONG, {**LONG, "prompt": "the"}], PAIRS, toy_tokenizer(), TokenizeOptions(max_length=5)).report
    assert report.left_out["prompt_too_long"].first == [(0, "prompt: 5 tokens, max_length is 5")]
    assert report.trees == 1


def test_truncation_leaves_out_pairs_that_become_the_same() -> None:
    row = {"prompt": "the", "chosen": " good ant", "rejected": " good bee"}
    with pytest.raises(DataError, match="the same once they are cut to length"):
        build(row, PAIRS, max_length=3)


def test_no_eos_after_truncation() -> None:
    eos = toy_tokenizer().eos_token_id
    whole = build({"text": "the good ant saw the bee"}, LANGUAGE)
    assert whole.completions[0].count(eos) == 1
    for length in range(2, len(whole.completions[0])):
        for mode, ends in (("keep_start", 0), ("keep_end", 1)):
            cut = build({"text": "the good ant saw the bee"}, LANGUAGE, max_length=length, truncation_mode=mode)
            assert len(cut.completions[0]) == length and cut.completions[0].count(eos) == ends
            assert cut.extras["truncated"] is True


def test_keep_end_keeps_bos() -> None:
    example = build(
        {"text": "the good ant saw the bee"}, LANGUAGE, "auto_bos", max_length=4, truncation_mode="keep_end"
    )
    assert texts(example)[1][0].startswith("<s>") and texts(example)[1][0].endswith("e</s>")
    pair = build(LONG, PAIRS, "auto_bos", max_length=10, truncation_mode="keep_end")
    assert texts(pair) == ("<s>t", [" saw the bee</s>", " ran</s>"])
    short = build(LONG, PAIRS, "auto_bos", max_length=4, truncation_mode="keep_end")
    assert texts(short) == ("<s>", [" saw", " ran"])


def test_keep_end_keeps_the_system_header() -> None:
    row = {"prompt": [user("one two three four five six seven")], "completion": [assistant("yes")]}
    size = len(build(row, LANGUAGE, "chatml").prompt_ids)
    cut = build(row, LANGUAGE, "chatml", max_length=size - 4, truncation_mode="keep_end")
    prompt = texts(cut)[0]
    assert prompt.startswith(SYSTEM) and prompt.endswith("seven<|im_end|>\n<|im_start|>assistant\n")
    assert "one" not in prompt and texts(cut)[1] == ["yes<|im_end|>"]
    own = {"prompt": [{"role": "system", "content": "sys"}, *row["prompt"]], "completion": row["completion"]}
    size = len(build(own, LANGUAGE, "chatml").prompt_ids)
    cut = build(own, LANGUAGE, "chatml", max_prompt_length=size - 6)
    assert texts(cut)[0].startswith("<|im_start|>system\nsys<|im_end|>\n")
    assert len(cut.prompt_ids) == size - 6


def test_part_limits() -> None:
    example = build(LONG, PAIRS, max_prompt_length=2, max_completion_length=3)
    assert len(example.prompt_ids) == 2 and [len(ids) for ids in example.completions] == [3, 3]
    assert texts(example)[0].endswith("nt")
    whole = build({"text": "the good ant"}, LANGUAGE, max_completion_length=3)
    assert len(whole.completions[0]) == 3


def test_reward_models_leave_long_rows_out() -> None:
    with pytest.raises(DataError, match="longer than the limit"):
        build(LONG, PAIRS, max_length=12, filter_overlong=True)
    assert texts(build(LONG, PAIRS, max_length=13, filter_overlong=True))[1] == [" saw the bee</s>", " ran</s>"]
    with pytest.raises(DataError, match="9 tokens, max_length is 5"):
        build({"text": "the good ant bee"}, LANGUAGE, max_length=5, filter_overlong=True)
