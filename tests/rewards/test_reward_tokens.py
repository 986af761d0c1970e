from __future__ import annotations

import pytest

from strop.data.cases import Case
from strop.data.encode import Encoder
from strop.data.kinds import DatasetKind
from strop.data.options import TokenizeOptions
from strop.data.trees import TreeBuilder
from strop.errors import ConfigError, DataError
from strop.rewards.reward_tokens import RewardTokenizer

USER, EOS = {"role": "user", "content": "hi"}, "<|im_end|>"


def said(text):
    return [{"role": "assistant", "content": text}]


def test_plain_text_ends_in_eos_once_and_begins_with_bos_once(make_tokenizer):
    tokenizer = make_tokenizer(chat=False, bos="<bos>")
    decoded = [tokenizer.decode(ids) for ids in RewardTokenizer(tokenizer).whole(["ab", "ab"], ["cd", f"cd{EOS}"])]
    assert decoded == [f"<bos>abcd{EOS}"] * 2
    bare = RewardTokenizer(tokenizer, append_eos=False).whole(["ab"], [""])
    assert tokenizer.decode(bare[0]) == "<bos>ab"


def test_an_empty_completion_is_its_end(make_tokenizer):
    tokenizer = make_tokenizer(chat=False)
    assert tokenizer.decode(RewardTokenizer(tokenizer).whole(["ab"], [""])[0]) == f"ab{EOS}"


def test_the_prompt_keeps_its_tokens(make_tokenizer):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4, "c": 5}
    merged = Tokenizer(models.BPE(vocabulary, [("a", "b")], unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=merged, eos_token="</s>", unk_token="<unk>")
    assert tokenizer("ab", add_special_tokens=False)["input_ids"] == [4]
    assert RewardTokenizer(tokenizer).whole(["a", "c"], ["b", "ab"]) == [[2, 3, 1], [5, 4, 1]]


def test_conversations_go_through_the_template_and_end_at_the_end_of_turn(tokenizer):
    text = f"<|im_start|>user\nhi{EOS}\n<|im_start|>assistant\nyo{EOS}"
    ids = RewardTokenizer(tokenizer).whole([[USER]], [said("yo")])[0]
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    with_line_break = RewardTokenizer(tokenizer, strip_after_eos=False).whole([[USER]], [said("yo")])[0]
    assert with_line_break == tokenizer(f"{text}\n", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    "after",
    [
        [{"role": "tool", "content": "42"}],
        [{"role": "user", "content": "why"}],
        [{"role": "assistant", "content": "so", "train": False}],
    ],
    ids=lambda after: after[0]["role"],
)
def test_a_conversation_is_read_to_its_end_as_in_training(tokenizer, after):
    answers = [said("yo") + after, said("no") + after]
    options = TokenizeOptions()
    builder = TreeBuilder(DatasetKind.PREFERENCE, Encoder(tokenizer, options), options)
    (pair,) = builder.build_all([Case("preference", [USER], answers, chat=True)])
    read = RewardTokenizer(tokenizer).whole([[USER]] * 2, answers)
    assert read == [pair.prompt_ids + ids for ids in pair.completions]
    assert tokenizer.decode(read[0]).endswith(f"{after[0]['content']}{EOS}")


def test_what_is_one_token_is_read(make_tokenizer):
    tokenizer = make_tokenizer(chat=False)
    end = tokenizer.eos_token_id
    assert RewardTokenizer(tokenizer).whole([""], [""]) == [[end]]
    bare = RewardTokenizer(tokenizer, append_eos=False).whole(["", "a"], ["a", ""])
    assert bare == [tokenizer("a", add_special_tokens=False)["input_ids"]] * 2


def test_mixed_rows_keep_their_places(tokenizer):
    made = RewardTokenizer(tokenizer)
    mixed = made.whole(["ab", [USER], "cd", "hi"], ["x", said("yo"), "y", said("yo")])
    assert mixed[0] == made.whole(["ab"], ["x"])[0] and mixed[2] == made.whole(["cd"], ["y"])[0]
    assert mixed[1] == mixed[3] == made.whole([[USER]], [said("yo")])[0]


def test_a_begun_answer_is_continued(tokenizer):
    made = RewardTokenizer(tokenizer)
    begun = made.whole([[USER, said("y")[0]]], [said("o")])
    assert begun == made.whole([[USER]], [said("yo")])


def test_steps_are_tokenised_one_by_one(tokenizer):
    made = RewardTokenizer(tokenizer, step_separator="\n\n")
    ((ids, ends),) = made.steps(["q:"], ["one\n\ntwo\n\n \n\n"])
    assert tokenizer.decode(ids) == "q:one\n\ntwo\n\n"
    assert [tokenizer.decode(ids[: end + 1]) for end in ends] == ["q:one\n\n", "q:one\n\ntwo\n\n"]
    ((ids, ends),) = made.steps([[USER]], [said("one")])
    assert tokenizer.decode(ids) == f"<|im_start|>user\nhi{EOS}\n<|im_start|>assistant\none\n\n" and len(ends) == 1
    assert made.steps(["q"], [""])[0][1] == []


def test_a_missing_or_failing_template(make_tokenizer):
    with pytest.raises(ConfigError, match="no chat template"):
        RewardTokenizer(make_tokenizer(chat=False)).whole([[USER]], [said("yo")])
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system please') }}"
    with pytest.raises(DataError, match="no system please"):
        RewardTokenizer(tokenizer).whole([[USER]], [said("yo")])
