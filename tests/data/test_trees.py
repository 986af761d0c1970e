"""Golden tables: the rules of tokenisation for each kind of row, over toy tokenizers.

R5 and R6 stand in test_truncate.py, R8 to R11 in test_conversation_trees.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.tokenizers import toy_tokenizer
from tests.support.trees import (
    ASKED,
    LABELLED,
    LANGUAGE,
    PAIRS,
    PROMPTS,
    STEPS,
    assistant,
    build,
    learned,
    texts,
    user,
)

from strop.data import TokenizeOptions, prepare
from strop.errors import ConfigError, DataError

# ---- R1 boundary

GOO = {"prompt": "goo", "completion": "d ant"}


@pytest.mark.parametrize(
    ("boundary", "prompt", "completion"),
    [("auto", "goo", "d ant</s>"), ("separate", "goo", "d ant</s>"), ("common_prefix", "", "good ant</s>")],
)
def test_boundary_where_tokens_merge(boundary: str, prompt: str, completion: str) -> None:
    ids = toy_tokenizer("plain")("good ant")["input_ids"]
    example = build(GOO, LANGUAGE, boundary=boundary)
    assert texts(example) == (prompt, [completion])
    merged = example.completions[0][0] == ids[0]
    assert merged == (boundary == "common_prefix")


def test_boundary_error_names_the_row() -> None:
    with pytest.raises(DataError, match=r"row 0: the prompt's tokens are no prefix.*agree on 0 of the prompt's 2"):
        build(GOO, LANGUAGE, boundary="error")


def test_boundary_error_of_a_lazy_set_comes_with_the_row() -> None:
    rows = [{"prompt": "the", "completion": " ant"}, GOO]
    data = prepare(rows, LANGUAGE, toy_tokenizer(), TokenizeOptions(boundary="error"), eager_rows=0)
    assert texts(data[0]) == ("the", [" ant</s>"])
    with pytest.raises(DataError, match="row 1: the prompt's tokens are no prefix"):
        data[1]


def test_boundary_of_a_pair_is_one_for_both() -> None:
    row = {"prompt": "the goo", "chosen": "d ant", "rejected": " bee"}
    example = build(row, PAIRS, boundary="common_prefix")
    assert texts(example) == ("the", [" good ant</s>", " goo bee</s>"])
    separate = build(row, PAIRS)
    assert texts(separate) == ("the goo", ["d ant</s>", " bee</s>"])


def test_no_space_is_learned_that_nobody_wrote() -> None:
    """SentencePiece puts a space before every text; what is tokenised apart must not get one in its middle."""
    assert toy_tokenizer("prefix_space").decode(toy_tokenizer("prefix_space").encode("d")) == " d"
    assert texts(build(GOO, LANGUAGE, "prefix_space")) == (" goo", ["d ant</s>"])
    steps = build({"prompt": "p", "completions": ["one", "two"], "labels": [1, 0]}, STEPS, "prefix_space")
    assert texts(steps) == (" p", ["one\ntwo\n"])


def test_boundary_is_reported() -> None:
    report = prepare([GOO], LANGUAGE, toy_tokenizer(), TokenizeOptions(boundary="common_prefix")).report
    assert any("learned as part of the answer" in f.message and f.severity == "warning" for f in report.findings)


CHAT_MERGE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
"""A template without separators, so that prompt and answer can merge."""


@pytest.mark.parametrize(
    ("boundary", "prompt", "completion"),
    [("auto", "", "good ant"), ("common_prefix", "", "good ant"), ("separate", "goo", "d ant")],
)
def test_boundary_of_chat(boundary: str, prompt: str, completion: str) -> None:
    row = {"prompt": [user("goo")], "completion": [assistant("d ant")]}
    example = build(row, LANGUAGE, "chatml", boundary=boundary, chat_template=CHAT_MERGE)
    assert texts(example) == (prompt, [completion])


def test_boundary_of_chat_with_several_turns() -> None:
    row = {"prompt": [user("goo")], "completion": [assistant("d ant"), user(" bee"), assistant(" cat")]}
    for boundary, prompt, scored in (("separate", "goo", "d ant cat"), ("common_prefix", "", "good ant cat")):
        example = build(row, LANGUAGE, "chatml", boundary=boundary, chat_template=CHAT_MERGE)
        assert texts(example) == (prompt, ["good ant bee cat".removeprefix(prompt)])
        assert learned(example) == [scored]


def test_boundary_of_a_chat_pair_is_one_for_both() -> None:
    row = {"prompt": [user("the goo")], "chosen": [assistant("d ant")], "rejected": [assistant(" bee")]}
    example = build(row, PAIRS, "chatml", chat_template=CHAT_MERGE)
    assert texts(example) == ("the", [" good ant", " goo bee"])


# ---- R2 one BOS


@pytest.mark.parametrize(
    ("variant", "first"),
    [("plain", "he"), ("no_bos", "he"), ("auto_bos", "<s>"), ("auto_both", "<s>")],
)
@pytest.mark.parametrize("said", ["hello", "<s>hello"])
def test_bos_once(variant: str, first: str, said: str) -> None:
    tokenizer = toy_tokenizer(variant)
    for row, kind in (
        ({"text": said}, LANGUAGE),
        ({"prompt": said, "completion": " ant"}, LANGUAGE),
        ({"prompt": said}, PROMPTS),
        ({"prompt": said, "completions": ["a"], "labels": [1]}, STEPS),
        ({"prompt": said, "chosen": " a", "rejected": " b"}, PAIRS),
    ):
        example = build(row, kind, variant)
        ids = example.prompt_ids + (example.completions[0] if example.completions else [])
        assert ids.count(tokenizer.convert_tokens_to_ids("<s>")) == int(first == "<s>" or said.startswith("<s>"))
        if first == "<s>":
            assert tokenizer.decode(ids[0]) == "<s>"


def test_bos_of_a_template_is_the_only_one() -> None:
    example = build({"prompt": [user("hi")], "completion": [assistant("yes")]}, LANGUAGE, "llama")
    assert texts(example, "llama") == ("<s>[U] hi [/U]", [" yes</s>"])


# ---- R3 EOS once, at the end


@pytest.mark.parametrize("variant", ["plain", "no_bos", "no_pad", "pad_is_eos", "auto_bos", "auto_both"])
@pytest.mark.parametrize("said", [" hello", " hello</s>", " a</s> b"])
def test_eos_ends_plain_text_once(variant: str, said: str) -> None:
    bare = said.removesuffix("</s>")
    wanted = bare + "</s>"
    assert texts(build({"prompt": "the", "completion": said}, LANGUAGE, variant))[1] == [wanted]
    assert texts(build({"text": "the" + said}, LANGUAGE, variant))[1][0].endswith("the" + wanted)
    pair = build({"prompt": "the", "chosen": said, "rejected": " no"}, PAIRS, variant)
    assert texts(pair)[1] == [wanted, " no</s>"]
    assert texts(build({"prompt": "the", "completion": said, "label": True}, LABELLED, variant))[1] == [wanted]


def test_eos_is_judged_by_ids() -> None:
    """Text that spells EOS but is not tokenised as EOS does not end the completion."""
    tokenizer = toy_tokenizer("plain", split_special_tokens=True)
    example = prepare([{"prompt": "the", "completion": " a</s>"}], LANGUAGE, tokenizer)[0]
    assert example.completions[0].count(tokenizer.eos_token_id) == 1
    assert len(example.completions[0]) > 3


def test_eos_can_be_named_or_left_away() -> None:
    row = {"prompt": "the", "completion": " ant"}
    assert texts(build(row, LANGUAGE, append_eos=False))[1] == [" ant"]
    assert texts(build(row, LANGUAGE, eos_token="<|im_end|>"))[1] == [" ant<|im_end|>"]
    with pytest.raises(ConfigError, match=r"eos_token is '<\|im_ende\|>'.*Did you mean '<\|im_end\|>'"):
        build(row, LANGUAGE, eos_token="<|im_ende|>")


def test_missing_eos_is_reported() -> None:
    data = prepare([{"text": "hello ant"}], LANGUAGE, toy_tokenizer("no_eos"))
    assert texts(data[0])[1] == ["hello ant"]
    assert any("no EOS token" in finding.message for finding in data.report.findings)


@pytest.mark.parametrize("variant", ["chatml", "chatml_pad_is_eos"])
@pytest.mark.parametrize(("strip", "tail"), [(True, ""), (False, "\n")])
def test_chat_ends_in_its_own_end_of_turn(variant: str, strip: bool, tail: str) -> None:
    row = {"prompt": [user("hi")], "chosen": [assistant("yes")], "rejected": [assistant("no")]}
    example = build(row, PAIRS, variant, strip_after_eos=strip)
    assert texts(example, variant) == (ASKED, [f"yes<|im_end|>{tail}", f"no<|im_end|>{tail}"])
    whole = build({"messages": [user("hi"), assistant("yes")]}, LANGUAGE, variant, strip_after_eos=strip)
    assert texts(whole, variant) == ("", [ASKED + f"yes<|im_end|>{tail}"])


def test_a_template_that_does_not_end_in_a_stop_token_is_reported() -> None:
    row = {"prompt": [user("hi")], "completion": [assistant("yes")]}
    data = prepare([row], LANGUAGE, toy_tokenizer("chatml_other_eos"))
    assert texts(data[0])[1] == ["yes<|im_end|>\n"]
    assert any("does not end the answer in a stop token" in finding.message for finding in data.report.findings)
    named = prepare([row], LANGUAGE, toy_tokenizer("chatml_other_eos"), TokenizeOptions(eos_token="<|im_end|>"))
    assert texts(named[0])[1] == ["yes<|im_end|>"]
    assert not any("stop token" in finding.message for finding in named.report.findings)


def test_further_stop_ids_count_as_ends() -> None:
    end = toy_tokenizer().convert_tokens_to_ids("<|im_end|>")
    row = {"prompt": "the", "completion": " ant<|im_end|>"}
    assert texts(build(row, LANGUAGE))[1] == [" ant<|im_end|></s>"]
    assert texts(build(row, LANGUAGE, stop_token_ids=(end,)))[1] == [" ant<|im_end|>"]


# ---- R7 masks come from lengths


@pytest.mark.parametrize("row", [{"prompt": "a</s> b", "completion": " c</s> d"}, {"text": "x</s> y"}])
def test_padding_id_and_eos_in_text_change_no_mask(row: dict[str, Any]) -> None:
    variants = [build(row, LANGUAGE, variant) for variant in ("plain", "pad_is_eos", "no_pad")]
    assert variants[0].loss_mask is None
    assert all(example == variants[0] for example in variants)


def test_an_empty_prompt_leaves_the_first_token_unscored() -> None:
    example = build({"prompt": "", "completion": "hello"}, LANGUAGE)
    assert example.prompt_ids == [] and example.loss_mask is None
    with pytest.raises(DataError, match="no token is left to be scored"):
        build({"prompt": "", "completion": "e"}, LANGUAGE, append_eos=False)
    assert build({"prompt": "", "completion": "e"}, LANGUAGE, "auto_bos", append_eos=False).num_tokens == 2


def test_language_modeling_is_one_completion() -> None:
    example = build({"text": "hello world"}, LANGUAGE)
    assert texts(example) == ("", ["hello world</s>"]) and example.loss_mask is None


def test_completion_only_loss() -> None:
    row = {"prompt": "the", "completion": " ant"}
    assert texts(build(row, LANGUAGE)) == ("the", [" ant</s>"])
    assert texts(build(row, LANGUAGE, completion_only_loss=True)) == ("the", [" ant</s>"])
    assert texts(build(row, LANGUAGE, completion_only_loss=False)) == ("", ["the ant</s>"])
    chat = {"prompt": [user("hi")], "completion": [assistant("yes")]}
    assert texts(build(chat, LANGUAGE, "chatml", completion_only_loss=False), "chatml")[1] == [ASKED + "yes<|im_end|>"]
    # A whole text may be cut inside its prompt and still be learned from.
    assert build(row, LANGUAGE, completion_only_loss=False, max_length=2).num_tokens == 2


def test_score_prompt_is_passed_on() -> None:
    row = {"prompt": "the", "chosen": " a", "rejected": " b"}
    assert build(row, PAIRS, score_prompt=True).score_prompt and not build(row, PAIRS).score_prompt


# ---- labelled, prompts, steps, ids


def test_labelled_rows() -> None:
    example = build({"prompt": "the", "completion": " ant", "label": False, "id": 7}, LABELLED)
    assert texts(example) == ("the", [" ant</s>"])
    assert example.extras == {"columns": {"id": 7}, "label": False, "prompt": "the"}


def test_prompts_carry_what_reward_functions_need() -> None:
    example = build({"prompt": [user("hi")], "answer": 3, "n": None}, PROMPTS, "chatml")
    assert example.completions == []
    assert example.extras == {"columns": {"answer": 3, "n": None}, "prompt": [user("hi")]}
    with pytest.raises(DataError, match="the prompt has no tokens"):
        build({"prompt": ""}, PROMPTS)
    with pytest.raises(DataError, match="max_length is 2"):
        build({"prompt": "the good ant"}, PROMPTS, max_length=2)
    assert len(build({"prompt": "the good ant"}, PROMPTS, max_prompt_length=2).prompt_ids) == 2


def test_steps() -> None:
    row = {"prompt": "goo", "completions": ["d one", "two"], "labels": [True, 0.25]}
    example = build(row, STEPS, "auto_bos")
    assert texts(example) == ("<s>goo", ["d one\ntwo\n"])
    assert learned(example) == ["\n\n"] and example.extras["labels"] == [1.0, 0.25]
    # Tokenised one by one: no merges across borders.
    encode = toy_tokenizer().encode
    assert example.completions[0] == encode("d one") + encode("\n") + encode("two") + encode("\n")


def test_steps_with_a_long_separator_are_marked_at_its_last_token() -> None:
    row = {"prompt": "p", "completions": ["one", "two"], "labels": [1, 0]}
    example = build(row, STEPS, step_separator=" ;;\n")
    separator = toy_tokenizer().encode(" ;;\n")
    assert len(separator) > 1
    ends = [t for t, on in enumerate(example.mask(0)) if on]
    assert [example.completions[0][: end + 1][-len(separator) :] for end in ends] == [separator, separator]


def test_steps_that_are_cut_lose_their_labels() -> None:
    row = {"prompt": "p", "completions": ["a", "b", "c"], "labels": [1, 0, 1]}
    example = build(row, STEPS, max_length=5)
    assert sum(example.mask(0)) == 2 and example.extras["labels"] == [1.0, 0.0]
    with pytest.raises(DataError, match="no step end is left"):
        build({**row, "completions": ["a b c d", "b", "c"]}, STEPS, max_length=3)


def test_inline_marks_leave_the_text() -> None:
    row = {"prompt": "p", "completion": "Step 1: a [+] Step 2: b [-]"}
    example = build(row, STEPS, label_format="inline")
    assert texts(example)[1] == ["Step 1: a\nStep 2: b\n"] and example.extras["labels"] == [1.0, 0.0]


def test_steps_after_a_conversation() -> None:
    example = build({"prompt": [user("hi")], "completions": ["a"], "labels": [1]}, STEPS, "chatml")
    assert texts(example, "chatml") == (ASKED, ["a\n"])


def test_rows_that_bring_their_ids() -> None:
    row = {"input_ids": [10, 11, 12, 13, 14, 0, 0], "labels": [-100, -100, 12, -100, 14, -100, -100],
           "attention_mask": [1, 1, 1, 1, 1, 0, 0], "id": 3}  # fmt: skip
    example = build(row, LANGUAGE)
    assert (example.prompt_ids, example.completions, example.loss_mask) == ([10, 11], [[12, 13, 14]], [[1, 0, 1]])
    assert example.extras == {"columns": {"id": 3}}
    masked = build({"input_ids": [10, 11, 12], "completion_mask": [0, 1, 1], "assistant_masks": [1, 1, 0]}, LANGUAGE)
    assert (masked.prompt_ids, masked.completions) == ([10], [[11]])
    pair = build({"prompt_ids": [10], "chosen_ids": [11, 12], "rejected_ids": [13]}, PAIRS)
    assert (pair.prompt_ids, pair.completions) == ([10], [[11, 12], [13]])
    implicit = build({"chosen_ids": [10, 11, 12], "rejected_ids": [10, 11]}, PAIRS)
    assert (implicit.prompt_ids, implicit.completions) == ([10], [[11, 12], [11]])
    labelled = build({"prompt_ids": [10], "completion_ids": [11], "label": 1}, LABELLED)
    assert labelled.extras["label"] is True and labelled.completions == [[11]]
    assert build({"input_ids": [10, 11]}, PROMPTS).prompt_ids == [10, 11]


# ---- for any text

text = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(prompt=text, completion=text, boundary=st.sampled_from(["separate", "common_prefix"]))
def test_ids_stand_for_the_text_and_end_in_one_eos(prompt: str, completion: str, boundary: str) -> None:
    tokenizer = toy_tokenizer("auto_bos")
    row = {"prompt": prompt, "completion": completion}
    example = prepare([row], LANGUAGE, tokenizer, TokenizeOptions(boundary=boundary))[0]
    assert tokenizer.decode(example.prompt_ids + example.completions[0]) == f"<s>{prompt}{completion}</s>"
    assert example.completions[0].count(tokenizer.eos_token_id) == 1
    if boundary == "separate":
        assert tokenizer.decode(example.completions[0]) == completion + "</s>"
