"""Public data sets whose rows need more than other names: answers in lists, winners by number, turns in pairs.

Each reader makes `chosen` and `rejected` (or `messages`) of one row. A tie is no preference: both answers become the
same text, and the row is left out and counted as such.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from strop.data.findings import RowProblem, kind_of_value
from strop.records import Row


def _pair(first: Any, second: Any, preference: float) -> Row:
    """Chosen and rejected by a number: above 0 the first is better, below 0 the second, 0 is a tie."""
    if preference == 0:
        return {"chosen": first, "rejected": first}
    return {"chosen": first, "rejected": second} if preference > 0 else {"chosen": second, "rejected": first}


def _best_and_worst(answers: Any, column: str, text: str, score: str, *, low_is_best: bool = False) -> Row:
    """The pair of the best and the worst of a list of scored answers."""
    wrong = not isinstance(answers, list) or len(answers) < 2
    if wrong or not all(isinstance(a, dict) and a.get(score) is not None for a in answers):
        raise RowProblem(
            column, f"is {kind_of_value(answers)}", f"Write two or more objects with {text!r} and {score!r}"
        )
    ranked = sorted(answers, key=lambda answer: answer[score], reverse=not low_is_best)
    best, worst = ranked[0], ranked[-1]
    return _pair(best[text], worst[text], 0 if best[score] == worst[score] else 1)


def _choice(value: Any, column: str, first: Any, second: Any) -> int:
    """1 where a column names the first answer, -1 for the second."""
    if value not in (first, second):
        raise RowProblem(column, f"is {kind_of_value(value)}", f"Write {first!r} or {second!r}")
    return 1 if value == first else -1


def _json_turn(value: Any) -> str:
    """The only text of a JSON list that holds one."""
    texts = json.loads(value)
    if not isinstance(texts, list) or len(texts) != 1 or not isinstance(texts[0], str):
        raise RowProblem("prompt", "holds several turns as JSON", "Write one prompt per row, or messages")
    return texts[0]


def _arena(row: Row) -> Row:
    winner = row["winner"]
    preference = 0 if str(winner).startswith("tie") else _choice(winner, "winner", "model_a", "model_b")
    return _pair(row["conversation_a"], row["conversation_b"], preference)


def _arena_55k(row: Row) -> Row:
    preference = int(row["winner_model_a"]) - int(row["winner_model_b"])
    answers = _pair(_json_turn(row["response_a"]), _json_turn(row["response_b"]), preference)
    return {"prompt": _json_turn(row["prompt"]), **answers}


def _summaries(row: Row) -> Row:
    first, second = (summary["text"] for summary in row["summaries"])
    info = row["info"]
    return {
        "prompt": info.get("post") or info["article"],
        **_pair(first, second, _choice(row["choice"], "choice", 0, 1)),
    }


PAIR_READERS: tuple[tuple[str, tuple[str, ...], str, Callable[[Row], Row]], ...] = (
    (
        "PKU-Alignment/PKU-SafeRLHF",
        ("prompt", "response_0", "response_1", "better_response_id"),
        "prompt",
        lambda r: _pair(r["response_0"], r["response_1"], _choice(r["better_response_id"], "better_response_id", 0, 1)),
    ),
    (
        "stanfordnlp/SHP",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        "history",
        lambda r: _pair(r["human_ref_A"], r["human_ref_B"], _choice(r["labels"], "labels", 1, 0)),
    ),
    (
        "nvidia/HelpSteer3",
        ("context", "response1", "response2", "overall_preference"),
        "context",
        lambda r: _pair(r["response1"], r["response2"], -r["overall_preference"]),
    ),
    (
        "berkeley-nest/Nectar",
        ("prompt", "answers"),
        "prompt",
        lambda r: _best_and_worst(r["answers"], "answers", "answer", "rank", low_is_best=True),
    ),
    (
        "openbmb/UltraFeedback",
        ("instruction", "completions"),
        "instruction",
        lambda r: _best_and_worst(r["completions"], "completions", "response", "overall_score"),
    ),
    (
        "HuggingFaceH4/stack-exchange-preferences",
        ("question", "answers"),
        "question",
        lambda r: _best_and_worst(r["answers"], "answers", "text", "pm_score"),
    ),
    ("lmsys/chatbot_arena_conversations", ("conversation_a", "conversation_b", "winner"), "", _arena),
    (
        "lmsys/lmsys-arena-human-preference-55k",
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b"),
        "",
        _arena_55k,
    ),
    ("openai/summarize_from_feedback", ("info", "summaries", "choice"), "", _summaries),
)
"""Data set, its columns, the columns of its prompt (empty: the reader makes it), the reader."""


def _turns(questions_and_answers: Any) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for pair in questions_and_answers
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _history(row: Row) -> Row:
    question = "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)
    said = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    return {"messages": [*said, *_turns([*(row["history"] or ()), (question, row["output"])])]}


def _alternating(row: Row) -> Row:
    texts = row["data"]
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]}


TURN_READERS: tuple[tuple[str, tuple[str, ...], Callable[[Row], Row]], ...] = (
    (
        "LDJnr/Capybara",
        ("conversation",),
        lambda r: (
            {"messages": _turns([(turn["input"], turn["output"]) for turn in r["conversation"]])}
            if all("input" in turn for turn in r["conversation"])
            else {"messages": r["conversation"]}
        ),
    ),
    ("stingning/ultrachat", ("data",), _alternating),
    ("llamafactory/alpaca_gpt4_zh", ("instruction", "output", "history"), _history),
)
"""Data set, its columns, the reader."""
