"""Any rows, any tokenizer, any limit: what is learned is what was written, it ends once, every row is accounted for.

Rows are random, tokens of control among their words. The runs of CI repeat the same examples; the slow ones draw new
ones and print what reproduces a failure.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.tokenizers import VARIANTS, toy_tokenizer

from strop.data import ExampleDataset, TokenizeOptions, prepare
from strop.data.kinds import FORMS
from strop.errors import DataError
from strop.records import Example
from strop.testing.tokenizers import DEFAULT_SYSTEM

PLAIN = [name for name in VARIANTS if VARIANTS[name][1] is None]
CHATML = [name for name in VARIANTS if name.startswith("chatml")]
CONTROL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
WORDS = (" good", " ant", "\n", "  ", "\t", "é", "今日", "🙂", "e\u0301", "\u200b", "\ufeff", "0", "'s", ".", "\x00")

letters = st.characters(codec="utf-8")
words = st.one_of(st.sampled_from(WORDS), st.text(letters, max_size=4))
plain_text = st.lists(words, max_size=8).map("".join)
mixed_text = st.lists(st.one_of(words, st.sampled_from(CONTROL)), max_size=8).map("".join)
any_text = st.one_of(
    mixed_text, st.sampled_from(("<s>", "</s>", "<s> the")).flatmap(lambda t: mixed_text.map(t.__add__))
)
limits = st.one_of(st.none(), st.integers(1, 40))
modes = st.sampled_from(["keep_start", "keep_end"])

tokenizer_of = lru_cache(maxsize=None)(toy_tokenizer)
Property = Callable[..., None]


def checked_often(*strategies: Any, examples: int, slow: int = 1500) -> Callable[[Property], Any]:
    """A test of CI with the same examples each time, or with `-m slow` many new ones."""
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]

    def decorate(check: Property) -> Any:
        few = settings(max_examples=examples, deadline=None, derandomize=True, database=None)
        many = settings(max_examples=slow, deadline=None, print_blob=True, database=None, suppress_health_check=quiet)

        @pytest.mark.parametrize("profile", [few, pytest.param(many, marks=pytest.mark.slow)], ids=["few", "many"])
        def test(profile: settings) -> None:
            profile(given(*strategies)(check))()

        test.__doc__ = check.__doc__
        return test

    return decorate


def prepared(rows: list[Any], kind: str, variant: str, **options: Any) -> ExampleDataset | None:
    """The set, None if nothing can be learned from any row; the error must say so."""
    try:
        return prepare(rows, kind, tokenizer_of(variant), TokenizeOptions(**options))  # type: ignore[return-value]
    except DataError as error:
        assert f"none of the {len(rows)} rows can be learned from" in str(error), str(error)
        return None


def text_of(variant: str, ids: list[int]) -> str:
    return tokenizer_of(variant).decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def branches(example: Example) -> list[list[int]]:
    return [example.prompt_ids + ids for ids in example.completions]


def accounted(data: ExampleDataset, rows: int) -> None:
    """Rows in = trees out + rows left out, each of the latter named."""
    kept = {example.row for example in data}
    named = {row for found in data.report.left_out.values() for row, _ in found.first}
    counted = sum(found.count for found in data.report.left_out.values())
    assert data.report.rows_read == rows and data.report.trees == len(data)
    assert len(data) + counted == rows and kept | named == set(range(rows)) and not kept & named


# ---- plain text

pair_rows = st.lists(
    st.fixed_dictionaries({"prompt": any_text, "chosen": any_text, "rejected": any_text}), min_size=1, max_size=5
)


@checked_often(pair_rows, st.sampled_from(PLAIN), examples=90)
def test_plain_text_is_learned_as_written(rows: list[dict[str, str]], variant: str) -> None:
    """decode(completion) is the completion and EOS, once; one prompt for both; BOS at most once."""
    tokenizer = tokenizer_of(variant)
    if variant == "prefix_space":  # it prints a space after every control token, too
        rows = [
            {key: value for key, value in row.items()}
            for row in rows
            if not any(c in "".join(row.values()) for c in CONTROL)
        ]
    data = prepared(rows, "preference", variant) if rows else None
    if data is None:
        return
    accounted(data, len(rows))
    eos = tokenizer.eos_token or ""
    for example in data:
        row = rows[example.row]
        own = len(tokenizer("", add_special_tokens=True)["input_ids"][:1]) if variant.startswith("auto") else 0
        assert example.prompt_ids.count(tokenizer.convert_tokens_to_ids("<s>")) == row["prompt"].count("<s>") + (
            own and not row["prompt"].startswith("<s>")
        )
        space = " " if variant == "prefix_space" and row["prompt"] and not row["prompt"][0].isspace() else ""
        bos = "<s>" if own and not row["prompt"].startswith("<s>") else ""
        assert text_of(variant, example.prompt_ids) == bos + space + row["prompt"]
        for name, ids in zip(("chosen", "rejected"), example.completions, strict=True):
            wanted = row[name] if eos and row[name].endswith(eos) else row[name] + eos
            found = text_of(variant, ids)
            assert found == wanted or (variant == "prefix_space" and not row["prompt"] and found == " " + wanted)
            assert not eos or ids[-1] == tokenizer.eos_token_id
            assert ids.count(tokenizer.eos_token_id) == wanted.count(eos) if eos else True
        assert example.loss_mask is None


@checked_often(pair_rows, st.sampled_from(PLAIN), st.integers(1, 40), modes, examples=80)
def test_cut_trees_are_parts_of_whole_ones(rows: list[dict[str, str]], variant: str, limit: int, mode: str) -> None:
    """Within the limit; completions lose their end and EOS with it; the prompt loses its start, for both alike."""
    whole = prepared(rows, "preference", variant)
    cut = prepared(rows, "preference", variant, max_length=limit, truncation_mode=mode)
    if cut is None or whole is None:
        return
    accounted(cut, len(rows))
    originals = {example.row: example for example in whole}
    for example in cut:
        original = originals[example.row]
        assert max(map(len, branches(example))) <= limit and all(example.completions)
        assert bool(example.extras.get("truncated")) == (branches(example) != branches(original))
        for ids, uncut in zip(example.completions, original.completions, strict=True):
            assert ids == uncut[: len(ids)]
        if mode == "keep_start":
            assert example.prompt_ids == original.prompt_ids
        else:
            tail = example.prompt_ids[1:] if example.prompt_ids[:1] == original.prompt_ids[:1] else example.prompt_ids
            assert not tail or original.prompt_ids[-len(tail) :] == tail
        if not any(len(branch) > limit for branch in branches(original)):
            assert branches(example) == branches(original)


def alone(text: str, variant: str) -> Example | None:
    """The tree of a text that is not cut."""
    data = prepared([{"text": text}], "language_modeling", variant)
    return None if data is None else data[0]


@checked_often(st.lists(any_text, min_size=1, max_size=5), st.sampled_from(PLAIN), limits, modes, examples=90)
def test_whole_texts(texts: list[str], variant: str, limit: int | None, mode: str) -> None:
    """A text is learned from its first token on, and ends once if it is whole."""
    tokenizer = tokenizer_of(variant)
    data = prepared(
        [{"text": text} for text in texts], "language_modeling", variant, max_length=limit, truncation_mode=mode
    )
    if data is None:
        return
    accounted(data, len(texts))
    eos = tokenizer.eos_token_id
    whole = {text: branches(e)[0] for text in texts if (e := alone(text, variant)) is not None}
    for example in data:
        ids = branches(example)[0]
        uncut = whole[texts[example.row]]
        bos = int(mode == "keep_end" and uncut[0] == tokenizer.bos_token_id and len(ids) > 1)
        assert ids == (
            uncut[: len(ids)] if mode == "keep_start" else uncut[:bos] + uncut[len(uncut) - len(ids) + bos :]
        )
        assert limit is None or len(ids) <= limit
        if example.extras.get("truncated"):
            assert len(ids) == limit
        elif eos is not None:
            inside = texts[example.row].count(tokenizer.eos_token)
            ended = texts[example.row].endswith(tokenizer.eos_token)
            assert ids[-1] == eos and ids.count(eos) == inside + (not ended)
        scored = sum(example.mask(0)) - (not example.prompt_ids)
        assert scored == len(ids) - 1 and scored >= 1


# ---- conversations

said = plain_text.filter(lambda text: "\x00" not in text)
turns = st.lists(st.tuples(said, said), min_size=1, max_size=3)
conversations = st.lists(st.tuples(st.one_of(st.none(), said), turns), min_size=1, max_size=3)


def messages(system: str | None, pairs: list[tuple[str, str]]) -> list[dict[str, str]]:
    opening = [] if system is None else [{"role": "system", "content": system}]
    roles = [("user", "assistant")] * len(pairs)
    return opening + [
        {"role": role, "content": text}
        for names, texts in zip(roles, pairs, strict=True)
        for role, text in zip(names, texts, strict=True)
    ]


@checked_often(conversations, st.sampled_from([v for v in CHATML if v != "chatml_think"]), examples=80)
def test_only_the_assistant_is_learned(drawn: list[Any], variant: str) -> None:
    """decode(ids[mask]) is what the assistant said, each turn with its end, whatever the others said."""
    rows = [{"messages": messages(system, pairs)} for system, pairs in drawn]
    data = prepared(rows, "language_modeling", variant, assistant_only_loss=True, eos_token="<|im_end|>")
    if data is None:
        return
    accounted(data, len(rows))
    for example in data:
        ids, mask = branches(example)[0], [0] * len(example.prompt_ids) + example.mask(0)
        learned = text_of(variant, [token for token, on in zip(ids, mask, strict=True) if on])
        _, pairs = drawn[example.row]
        assert learned == "".join(answer + "<|im_end|>" for _, answer in pairs)
        assert mask[-1] == 1 and text_of(variant, ids[-1:]) == "<|im_end|>"


@checked_often(conversations, st.sampled_from([*CHATML, "llama"]), limits, modes, examples=90)
def test_answers_to_conversations(drawn: list[Any], variant: str, limit: int | None, mode: str) -> None:
    """The last answer is the completion: it ends in the template's end of turn, once, if it is whole."""
    talks = [messages(system, pairs) for system, pairs in drawn]
    rows = [{"prompt": talk[:-1], "completion": talk[-1:]} for talk in talks]
    end = "</s>" if variant == "llama" else "<|im_end|>"
    data = prepared(rows, "prompt_completion", variant, max_length=limit, truncation_mode=mode, eos_token=end)
    if data is None:
        return
    accounted(data, len(rows))
    for example in data:
        (ids,) = example.completions
        assert limit is None or len(example.prompt_ids) + len(ids) <= limit
        answer = talks[example.row][-1]["content"]
        whole = (" " if variant == "llama" else "") + answer + end
        token = tokenizer_of(variant).convert_tokens_to_ids(end)
        if not example.extras.get("truncated"):
            assert text_of(variant, ids) == whole and ids.count(token) == 1 and ids[-1] == token
            system = drawn[example.row][0]
            shown = text_of(variant, example.prompt_ids)
            if variant in ("chatml", "chatml_pad_is_eos", "chatml_other_eos") and system is None:
                assert shown.startswith(f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>")
            assert variant != "llama" or example.prompt_ids.count(tokenizer_of(variant).bos_token_id) == 1
        elif limit is not None and len(tokenizer_of(variant)(whole, add_special_tokens=False)["input_ids"]) >= limit:
            assert token not in ids


# ---- the set as a whole

KINDS: dict[str, Any] = {
    "language_modeling": st.fixed_dictionaries({"text": any_text}),
    "prompt_completion": st.fixed_dictionaries({"prompt": any_text, "completion": any_text}),
    "preference": st.fixed_dictionaries({"prompt": any_text, "chosen": any_text, "rejected": any_text}),
    "unpaired_preference": st.fixed_dictionaries({"prompt": any_text, "completion": any_text, "label": st.booleans()}),
    "prompt_only": st.fixed_dictionaries({"prompt": any_text}),
    "stepwise": st.lists(any_text, min_size=1, max_size=3).flatmap(
        lambda steps: st.fixed_dictionaries(
            {
                "prompt": any_text,
                "completions": st.just(steps),
                "labels": st.lists(st.booleans(), min_size=len(steps), max_size=len(steps)),
            }
        )
    ),
}
any_kind = st.sampled_from(sorted(KINDS)).flatmap(
    lambda kind: st.tuples(st.just(kind), st.lists(KINDS[kind], min_size=1, max_size=6))
)


@checked_often(
    any_kind, st.sampled_from(sorted(VARIANTS)), limits, modes, st.randoms(use_true_random=False), examples=100
)
def test_no_row_gets_lost_or_depends_on_others(
    drawn: tuple[str, list[dict[str, Any]]], variant: str, limit: int | None, mode: str, shuffler: random.Random
) -> None:
    """Rows in another order, tokenised one by one, give the same trees; what is left out is counted and named."""
    kind, rows = drawn
    options = {"max_length": limit, "max_prompt_length": limit, "truncation_mode": mode}
    order = list(range(len(rows)))
    shuffler.shuffle(order)
    data = prepared(rows, kind, variant, **options)
    mixed = prepared([rows[i] for i in order], kind, variant, **options)
    alone = [prepared([row], kind, variant, **options) for row in rows]
    if data is None or mixed is None:
        assert data is mixed is None and not any(alone)
        return
    accounted(data, len(rows))

    def trees(found: Any, number: Callable[[int], int]) -> dict[int, Any]:
        return {number(e.row): (e.prompt_ids, e.completions, e.loss_mask, e.extras.get("labels")) for e in found}

    assert trees(data, int) == trees(mixed, order.__getitem__)
    single = {number: trees(one, int)[0] for number, one in enumerate(alone) if one is not None}
    assert trees(data, int) == single


GARBAGE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), any_text, st.binary(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "type", "text", "tool_calls"]), inner, max_size=3
        ),
    ),
    max_leaves=8,
)
COLUMNS = sorted({*itertools.chain(*FORMS.values()), "completion_mask", "seq_lengths", "attention_mask"})
COLUMNS += ["tools", "chat_template_kwargs", "margin", "images"]
garbage_rows = st.lists(st.dictionaries(st.sampled_from(COLUMNS), GARBAGE, max_size=5), min_size=1, max_size=3)


@checked_often(
    garbage_rows,
    st.sampled_from(sorted(KINDS)),
    st.sampled_from(["plain", "chatml_tools", "llama"]),
    st.booleans(),
    examples=100,
    slow=20_000,
)
def test_garbage_is_refused_or_named(rows: list[Any], kind: str, variant: str, skip: bool) -> None:
    """Columns that hold anything at all: a `StropError` that names the rows, or trees and an account of the rest."""
    from strop.errors import StropError

    try:
        data = prepare(rows, kind, tokenizer_of(variant), TokenizeOptions(skip_bad_rows=skip))
    except StropError as error:
        assert str(error).strip()
        return
    if kind != "unpaired_preference":  # there a pair becomes two trees
        accounted(data, len(rows))  # type: ignore[arg-type]
    data.report.render()
