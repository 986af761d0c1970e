"""Public data sets under other column names, and how their columns become strop's.

Most need other names only. Where answers stand in lists, winners are numbers or turns are pairs, a reader makes
`chosen` and `rejected` (or `messages`) of one row. A tie is no preference: both answers become the same text, and the
row is left out and counted as such.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from strop.data.findings import RowProblem, kind_of_value
from strop.records import Row


@dataclass(frozen=True, slots=True)
class Layout:
    """Column names of a public data set, and how they become strop's.

    `read` makes the columns that are not the prompt out of the row; where it is None, `renames` (ours, theirs) does.
    """

    example: str  # a public data set or tool that has it
    needs: tuple[str, ...]  # columns that must hold something
    prompt: str = ""  # columns that are the prompt, joined by blank lines; a missing one is left away
    system: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    read: Callable[[Row], Row] | None = None
    gives: str = "pair"  # "pair", "completion" or "messages"

    @property
    def used(self) -> frozenset[str]:
        """Columns that are read."""
        return frozenset((*self.needs, *self.prompt.split("+"), self.system, *(theirs for _, theirs in self.renames)))


def _answered(example: str, prompt: str, completion: str, system: str = "") -> Layout:
    needs = (prompt.split("+")[0], completion)
    return Layout(example, needs, prompt, system, (("completion", completion),), gives="completion")


def _compared(
    example: str, prompt: str, chosen: str = "chosen", rejected: str = "rejected", system: str = ""
) -> Layout:
    needs = (prompt.split("+")[0], chosen, rejected, *([system] if prompt == "prompt" and system else []))
    return Layout(example, needs, prompt, system, (("chosen", chosen), ("rejected", rejected)))


def _pair(first: Any, second: Any, preference: float) -> Row:
    """Chosen and rejected by a number: above 0 the first is better, below 0 the second, 0 is a tie."""
    if preference == 0:
        return {"chosen": first, "rejected": first}
    return {"chosen": first, "rejected": second} if preference > 0 else {"chosen": second, "rejected": first}


def _best_and_worst(row: Row, column: str, text: str, score: str, *, low_is_best: bool = False) -> Row:
    """The pair of the best and the worst of a list of scored answers."""
    answers = row[column]
    wrong = not isinstance(answers, list) or len(answers) < 2
    if wrong or not all(isinstance(a, dict) and a.get(score) is not None for a in answers):
        fix = f"Write two or more objects with {text!r} and {score!r}"
        raise RowProblem(column, f"is {kind_of_value(answers)}", fix)
    ranked = sorted(answers, key=lambda answer: answer[score], reverse=not low_is_best)
    best, worst = ranked[0], ranked[-1]
    return _pair(best[text], worst[text], 0 if best[score] == worst[score] else 1)


def _choice(row: Row, column: str, first: Any, second: Any) -> int:
    """1 where a column names the first answer, -1 for the second."""
    if row[column] not in (first, second):
        raise RowProblem(column, f"is {kind_of_value(row[column])}", f"Write {first!r} or {second!r}")
    return 1 if row[column] == first else -1


def _json_turn(value: Any) -> str:
    """The only text of a JSON list that holds one."""
    texts = json.loads(value)
    if not isinstance(texts, list) or len(texts) != 1 or not isinstance(texts[0], str):
        raise RowProblem("prompt", "holds several turns as JSON", "Write one prompt per row, or messages")
    return texts[0]


def _arena(row: Row) -> Row:
    preference = 0 if str(row["winner"]).startswith("tie") else _choice(row, "winner", "model_a", "model_b")
    return _pair(row["conversation_a"], row["conversation_b"], preference)


def _arena_55k(row: Row) -> Row:
    preference = int(row["winner_model_a"]) - int(row["winner_model_b"])
    answers = _pair(_json_turn(row["response_a"]), _json_turn(row["response_b"]), preference)
    return {"prompt": _json_turn(row["prompt"]), **answers}


def _summaries(row: Row) -> Row:
    first, second = (summary["text"] for summary in row["summaries"])
    prompt = row["info"].get("post") or row["info"]["article"]
    return {"prompt": prompt, **_pair(first, second, _choice(row, "choice", 0, 1))}


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
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[number % 2], "content": text} for number, text in enumerate(row["data"])]}


def _capybara(row: Row) -> Row:
    turns = row["conversation"]
    paired = all("input" in turn for turn in turns)
    return {"messages": _turns([(turn["input"], turn["output"]) for turn in turns]) if paired else turns}


LAYOUTS: tuple[Layout, ...] = (
    _compared("Intel/orca_dpo_pairs", "question", system="system"),
    _compared("argilla/distilabel-intel-orca-dpo-pairs", "input", system="system"),
    _compared("jondurbin/truthy-dpo-v0.1", "prompt", system="system"),
    _compared("LLaMA-Factory, Alpaca form", "instruction+input", system="system"),
    _compared("llamafactory/DPO-En-Zh-20k", "conversations", system="system"),
    _compared("a form with messages", "messages"),
    _compared("a form with question and context", "question+context"),
    _compared("a form with query", "query"),
    _compared("a form with problem", "problem"),
    _compared("ms-swift, query form", "query", "response", "rejected_response", "system"),
    _compared("Vezora/Code-Preference-Pairs", "input", "accepted"),
    _compared("lvwerra/stack-exchange-paired", "question", "response_j", "response_k"),
    _compared("a form with system_prompt", "question", system="system_prompt"),
    Layout(
        "PKU-Alignment/PKU-SafeRLHF", ("prompt", "response_0", "response_1", "better_response_id"), "prompt",
        read=lambda r: _pair(r["response_0"], r["response_1"], _choice(r, "better_response_id", 0, 1)),
    ),
    Layout(
        "stanfordnlp/SHP", ("history", "human_ref_A", "human_ref_B", "labels"), "history",
        read=lambda r: _pair(r["human_ref_A"], r["human_ref_B"], _choice(r, "labels", 1, 0)),
    ),
    Layout(
        "nvidia/HelpSteer3", ("context", "response1", "response2", "overall_preference"), "context",
        read=lambda r: _pair(r["response1"], r["response2"], -r["overall_preference"]),
    ),
    Layout(
        "berkeley-nest/Nectar", ("prompt", "answers"), "prompt",
        read=lambda r: _best_and_worst(r, "answers", "answer", "rank", low_is_best=True),
    ),
    Layout(
        "openbmb/UltraFeedback", ("instruction", "completions"), "instruction",
        read=lambda r: _best_and_worst(r, "completions", "response", "overall_score"),
    ),
    Layout(
        "HuggingFaceH4/stack-exchange-preferences", ("question", "answers"), "question",
        read=lambda r: _best_and_worst(r, "answers", "text", "pm_score"),
    ),
    Layout(
        "lmsys/chatbot_arena_conversations", ("conversation_a", "conversation_b", "winner"), read=_arena,
    ),
    Layout(
        "lmsys/lmsys-arena-human-preference-55k",
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b"), read=_arena_55k,
    ),
    Layout("openai/summarize_from_feedback", ("info", "summaries", "choice"), read=_summaries),
    _answered("yahma/alpaca-cleaned", "instruction+input", "output", "system"),
    _answered("databricks/databricks-dolly-15k", "instruction+input+context", "response", "system"),
    _answered("openai/gsm8k", "question+context", "answer"),
    _answered("Open-Orca/OpenOrca", "question", "response", "system_prompt"),
    _answered("meta-math/MetaMathQA", "query", "response"),
    _answered("m-a-p/CodeFeedback-Filtered-Instruction", "query", "answer"),
    _answered("ise-uiuc/Magicoder-OSS-Instruct-75K", "problem", "solution"),
    _answered("nvidia/OpenMathInstruct-2", "problem", "generated_solution"),
    _answered("agentica-org/DeepScaleR-Preview-Dataset", "problem", "answer"),
    _answered("nvidia/HelpSteer2", "prompt", "response", "system"),
    _answered("nvidia/Llama-Nemotron-Post-Training-Dataset", "input", "output", "system_prompt"),
    Layout("LDJnr/Capybara", ("conversation",), read=_capybara, gives="messages"),
    Layout("stingning/ultrachat", ("data",), read=_alternating, gives="messages"),
    Layout("llamafactory/alpaca_gpt4_zh", ("instruction", "output", "history"), read=_history, gives="messages"),
)  # fmt: skip
"""Where several fit a row, the first of those that use most of its columns is taken."""
