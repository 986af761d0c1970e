"""Rows of public data sets under their own column names: converted whole, or refused with the mapping to set."""

from __future__ import annotations

import json
from typing import Any

import pytest

from strop.data import check_rows, detect, load_rows, prepare
from strop.data.cases import read_cases
from strop.data.kinds import DatasetKind
from strop.data.layouts import LAYOUTS
from strop.data.options import TokenizeOptions
from strop.data.public_sets import Layout
from strop.errors import DataError
from strop.testing.tokenizers import toy_tokenizer


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


GPT = {"from": "gpt", "value": "good"}, {"from": "gpt", "value": "bad"}
ASKED = [system("be kind"), user("which ant?")]
PAIRS: list[tuple[str, dict[str, Any], Any]] = [
    ("Intel/orca_dpo_pairs", {"system": "be kind", "question": "which ant?"}, ASKED),
    ("Intel/orca_dpo_pairs", {"system": "", "question": "which ant?"}, [user("which ant?")]),
    ("argilla/distilabel-intel-orca-dpo-pairs", {"system": "be kind", "input": "which ant?", "rating": [9, 1]}, ASKED),
    ("jondurbin/truthy-dpo-v0.1", {"system": "be kind", "prompt": "which ant?", "source": "x"}, ASKED),
    ("LLaMA-Factory, Alpaca form", {"instruction": "which", "input": "ant?"}, "which\n\nant?"),
    ("LLaMA-Factory, Alpaca form", {"instruction": "which ant?", "input": ""}, "which ant?"),
    ("LLaMA-Factory, Alpaca form", {"instruction": "which ant?"}, "which ant?"),
    (
        "llamafactory/DPO-En-Zh-20k",
        {"conversations": [{"from": "human", "value": "which ant?"}], "chosen": GPT[0], "rejected": GPT[1]},
        [user("which ant?")],
    ),
    ("a form with messages", {"messages": [user("which ant?")]}, [user("which ant?")]),
    ("a form with messages", {"messages": json.dumps([user("which ant?")])}, [user("which ant?")]),
    ("a form with question and context", {"question": "which?", "context": "an ant"}, "which?\n\nan ant"),
    ("a form with query", {"query": "which ant?"}, "which ant?"),
    ("a form with problem", {"problem": "which ant?"}, "which ant?"),
    ("a form with system_prompt", {"question": "which ant?", "system_prompt": "be kind"}, ASKED),
]
OWN_ANSWERS: list[tuple[str, dict[str, Any], Any]] = [
    ("ms-swift, query form", {"query": "which ant?", "response": "good", "rejected_response": "bad"}, "which ant?"),
    ("Vezora/Code-Preference-Pairs", {"input": "which ant?", "accepted": "good", "rejected": "bad"}, "which ant?"),
    (
        "lvwerra/stack-exchange-paired",
        {"question": "which ant?", "response_j": "good", "response_k": "bad"},
        "which ant?",
    ),
    (
        "PKU-Alignment/PKU-SafeRLHF",
        {"prompt": "which ant?", "response_0": "bad", "response_1": "good", "better_response_id": 1},
        "which ant?",
    ),
    (
        "stanfordnlp/SHP",
        {"history": "which ant?", "human_ref_A": "bad", "human_ref_B": "good", "labels": 0},
        "which ant?",
    ),
    (
        "nvidia/HelpSteer3",
        {"context": [user("which ant?")], "response1": "good", "response2": "bad", "overall_preference": -2},
        [user("which ant?")],
    ),
    (
        "berkeley-nest/Nectar",
        {"prompt": "which ant?", "answers": [{"answer": "bad", "rank": 7.0}, {"answer": "good", "rank": 1.0}]},
        "which ant?",
    ),
    (
        "openbmb/UltraFeedback",
        {
            "instruction": "which ant?",
            "completions": [{"response": "good", "overall_score": 9}, {"response": "bad", "overall_score": 2}],
        },
        "which ant?",
    ),
    (
        "HuggingFaceH4/stack-exchange-preferences",
        {"question": "which ant?", "answers": [{"text": "bad", "pm_score": 0}, {"text": "good", "pm_score": 3}]},
        "which ant?",
    ),
    (
        "lmsys/chatbot_arena_conversations",
        {
            "conversation_a": [user("which ant?"), bot("bad")],
            "conversation_b": [user("which ant?"), bot("good")],
            "winner": "model_b",
        },
        [user("which ant?")],
    ),
    (
        "lmsys/lmsys-arena-human-preference-55k",
        {
            "prompt": '["which ant?"]',
            "response_a": '["bad"]',
            "response_b": '["good"]',
            "winner_model_a": 0,
            "winner_model_b": 1,
        },
        "which ant?",
    ),
    (
        "openai/summarize_from_feedback",
        {"info": {"post": "which ant?"}, "summaries": [{"text": "bad"}, {"text": "good"}], "choice": 1},
        "which ant?",
    ),
]
ANSWERED: list[tuple[str, dict[str, Any], Any]] = [
    ("yahma/alpaca-cleaned", {"instruction": "which", "input": "ant?", "output": "good"}, "which\n\nant?"),
    ("yahma/alpaca-cleaned", {"instruction": "which ant?", "output": "good", "system": "be kind"}, ASKED),
    ("databricks/databricks-dolly-15k", {"instruction": "a", "context": "b", "response": "good"}, "a\n\nb"),
    ("databricks/databricks-dolly-15k", {"instruction": "a", "response": "good", "prompt": "seed"}, "a"),
    ("openai/gsm8k", {"question": "which ant?", "answer": "good"}, "which ant?"),
    ("Open-Orca/OpenOrca", {"system_prompt": "be kind", "question": "which ant?", "response": "good"}, ASKED),
    ("meta-math/MetaMathQA", {"query": "which ant?", "response": "good", "type": "x"}, "which ant?"),
    ("m-a-p/CodeFeedback-Filtered-Instruction", {"query": "which ant?", "answer": "good"}, "which ant?"),
    ("ise-uiuc/Magicoder-OSS-Instruct-75K", {"problem": "which ant?", "solution": "good"}, "which ant?"),
    ("nvidia/OpenMathInstruct-2", {"problem": "which ant?", "generated_solution": "good"}, "which ant?"),
    ("agentica-org/DeepScaleR-Preview-Dataset", {"problem": "which ant?", "answer": "good"}, "which ant?"),
    ("nvidia/HelpSteer2", {"prompt": "which ant?", "response": "good", "helpfulness": 3}, "which ant?"),
    (
        "nvidia/Llama-Nemotron-Post-Training-Dataset",
        {"input": [user("which ant?")], "output": "good", "system_prompt": "be kind"},
        ASKED,
    ),
]
TURNS: list[tuple[str, dict[str, Any]]] = [
    ("LDJnr/Capybara", {"conversation": [{"input": "which ant?", "output": "good"}], "source": "x"}),
    ("stingning/ultrachat", {"id": "1", "data": ["which ant?", "good"]}),
    ("llamafactory/alpaca_gpt4_zh", {"instruction": "which ant?", "output": "good", "history": []}),
]


def said(value: Any) -> Any:
    """The text of an answer, whether it is text or one message."""
    return value if isinstance(value, str) else value[0]["content"]


@pytest.mark.parametrize(("example", "row", "prompt"), PAIRS + OWN_ANSWERS, ids=lambda value: str(value)[:40])
def test_pairs_of_public_sets_keep_their_prompts(example: str, row: dict[str, Any], prompt: Any) -> None:
    row = row if (example, row, prompt) in OWN_ANSWERS else {"chosen": "good", "rejected": "bad", **row}
    (case,) = read_cases(row, DatasetKind.PREFERENCE, TokenizeOptions())
    assert (case.layout, case.prompt, [said(c) for c in case.completions]) == (example, prompt, ["good", "bad"])
    good, bad = read_cases(row, DatasetKind.UNPAIRED_PREFERENCE, TokenizeOptions())
    assert (good.prompt, bad.prompt, good.extras["label"], bad.extras["label"]) == (prompt, prompt, True, False)
    (asked,) = read_cases(row, DatasetKind.PROMPT_ONLY, TokenizeOptions())
    assert asked.prompt == prompt or row.get("prompt")  # a prompt that is there is taken as it is
    assert detect([row]).kind is DatasetKind.PREFERENCE


@pytest.mark.parametrize(("example", "row", "prompt"), ANSWERED, ids=lambda value: str(value)[:40])
def test_answers_of_public_sets_keep_their_prompts(example: str, row: dict[str, Any], prompt: Any) -> None:
    for kind in (DatasetKind.LANGUAGE_MODELING, DatasetKind.PROMPT_COMPLETION):
        (case,) = read_cases(row, kind, TokenizeOptions())
        assert (case.layout, case.prompt, said(case.completions[0])) == (example, prompt, "good")
    (labelled,) = read_cases({**row, "label": False}, DatasetKind.UNPAIRED_PREFERENCE, TokenizeOptions())
    assert (labelled.prompt, labelled.extras["label"]) == (prompt, False)
    assert detect([row]).kind is DatasetKind.PROMPT_COMPLETION
    if "prompt" not in row:
        (asked,) = read_cases(row, DatasetKind.PROMPT_ONLY, TokenizeOptions())
        assert asked.prompt == prompt and row.items() <= asked.extras["columns"].items()  # what a reward may look at


@pytest.mark.parametrize(("example", "row"), TURNS, ids=lambda value: str(value)[:40])
def test_turns_of_public_sets_become_messages(example: str, row: dict[str, Any]) -> None:
    (case,) = read_cases(row, DatasetKind.LANGUAGE_MODELING, TokenizeOptions())
    assert (case.layout, case.completions) == (example, [[user("which ant?"), bot("good")]])
    assert detect([row]).kind is DatasetKind.LANGUAGE_MODELING


def test_every_layout_is_tried() -> None:
    tried = {entry[0] for entry in [*PAIRS, *OWN_ANSWERS, *ANSWERED, *TURNS]}
    assert tried == {layout.example for layout in LAYOUTS} and len(tried) >= 25


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        ({"user_query": "which of the ants?"}, "prompt=user_query"),
        ({"question": "which?", "instruction": "say"}, "prompt=question+instruction"),
        ({"article": "a long article about ants", "title": "ants"}, "prompt=article"),
        ({"messages": "which ant is it?"}, None),
        ({"id": "7", "source": "ant set", "prompt_id": "a1b2"}, None),
    ],
)
def test_a_hidden_prompt_is_an_error_that_names_the_mapping(row: dict[str, Any], mapping: str | None) -> None:
    rows = [{**row, "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(3)]
    if mapping is None:
        assert check_rows(rows, "preference").trees == 3
        return
    with pytest.raises(DataError, match="'prompt': is missing, but") as caught:
        check_rows(rows, "preference")
    assert f"--columns {mapping})" in str(caught.value)
    assert check_rows(load_rows(rows, columns=mapping), "preference").trees == 3


def test_answers_that_repeat_their_question_hide_nothing() -> None:
    row = {"question": "which ant?", "chosen": "Q: which ant? A: good", "rejected": "Q: which ant? A: bad"}
    (case,) = read_cases({**row, "title": "x"}, DatasetKind.PREFERENCE, TokenizeOptions())
    assert case.prompt in ("which ant?", "Q: which ant? A: "[:-1])


def test_ties_are_left_out_and_counted() -> None:
    row = {"prompt": "p", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}]}
    better = {"prompt": "p", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]}
    assert check_rows([row, better], "preference").left_out["identical"].count == 1


@pytest.mark.parametrize(
    ("mapping", "problem"),
    [
        ("prompt", "is no mapping"),
        ("prompt=a+", "is no mapping"),
        ("prompt=q", "'q': no such column"),
        ("a=x+y", "joined"),
    ],
)
def test_a_mapping_that_does_not_fit(mapping: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        list(load_rows([{"x": "text", "y": ["list"]}], columns=mapping))


WRONG: tuple[Any, ...] = (3, "x", True, [], [3, 4], ["a", "b"], {"a": 1}, [{"a": 1}, {"a": 2}], [{}, {}])


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.example)
def test_wrong_values_under_the_columns_of_a_layout_are_named(layout: Layout) -> None:
    """Whatever stands in them: rows in order, or an error that names the row, with a kind said and without."""
    kind = {"pair": "preference", "completion": "prompt_completion", "messages": "language_modeling"}[layout.gives]
    for value in WRONG:
        row = dict.fromkeys(sorted(layout.used - {""}), value)
        for said in (kind, "prompt_only" if layout.prompt else kind, None):
            try:
                check_rows([row] * 2, said)
            except DataError as error:
                assert "row 0" in str(error) or "none of the 2 rows" in str(error), (value, said, error)


def test_the_whole_prompt_reaches_the_tokens() -> None:
    row = {"instruction": "the good", "input": "ant", "chosen": " ran", "rejected": " sat"}
    tokenizer = toy_tokenizer()
    example = prepare([row], "preference", tokenizer)[0]
    assert tokenizer.decode(example.prompt_ids) == "the good\n\nant"


def test_the_layout_and_unused_text_columns_are_said() -> None:
    row = {"question": "which ant?", "chosen": "good", "rejected": "bad", "note": "a note", "id": 3, "messages": []}
    messages = [finding.message for finding in check_rows([row], "preference").findings]
    assert "1 row has the columns of Intel/orca_dpo_pairs, and is read as such" in messages
    assert "text columns that are not used: 'note'" in messages
    answered = {"question": "which ant?", "answer": "good"}
    prompts = [finding.message for finding in check_rows([answered], "prompt_only").findings]
    assert not any("not used" in message for message in prompts)  # a reward may use them
