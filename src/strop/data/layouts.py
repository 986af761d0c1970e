"""Layouts of public data sets under other column names, and what to do where a prompt may hide in another column.

A row in a known layout is given strop's columns while it is read; what the table does not know is never guessed:
where no prompt was found and a column may hold one, the row is an error that names the mapping to set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from strop.data.findings import RowProblem
from strop.data.kinds import ACCEPTED, FORMS, DatasetKind, form_of, is_label
from strop.data.options import TokenizeOptions
from strop.data.public_sets import PAIR_READERS, TURN_READERS
from strop.data.rows import join_columns
from strop.records import Row

PROMPT_NAMES = frozenset(
    {"instruction", "input", "question", "query", "problem", "context", "system", "system_prompt", "user", "history"}
    | {"user_prompt", "conversations", "conversation", "messages", "dialogue", "dialog", "chat"}
)
"""Columns that hold a prompt or a part of it wherever they hold text."""
PROMPT_STEMS = ("prompt", "instruct", "question", "query", "input", "problem", "context", "post", "article", "dialog")
"""Parts of the names of columns that may hold a prompt, if their text has several words."""


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
    *(
        Layout(example, needs, prompt, read=read)
        for example, needs, prompt, read in PAIR_READERS
    ),
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
    *(
        Layout(example, needs, "", read=read, gives="messages")
        for example, needs, read in TURN_READERS
    ),
)  # fmt: skip

GIVES = {
    DatasetKind.PREFERENCE: ("pair",),
    DatasetKind.UNPAIRED_PREFERENCE: ("pair", "completion"),
    DatasetKind.PROMPT_ONLY: ("pair", "completion"),
    DatasetKind.LANGUAGE_MODELING: ("completion", "messages"),
    DatasetKind.PROMPT_COMPLETION: ("completion", "messages"),
}


def adapt(row: Row, kind: DatasetKind | None, options: TokenizeOptions) -> tuple[Row, Layout | None]:
    """A row in strop's columns, and the layout it came in; the row itself where it has them already.

    `kind` is what the rows are for; None: what they look like.
    """
    present = tuple(name for name, value in row.items() if value is not None)
    candidates = _candidates(present, kind)
    if not candidates or not _is_wanting(row, kind, options):
        return row, None
    for layout in candidates:
        # a labelled answer may come in any layout of answers, but what tells good from bad must be there
        labelled = kind is not DatasetKind.UNPAIRED_PREFERENCE or layout.gives == "pair" or is_label(row.get("label"))
        if labelled and not _hidden_prompts(row, layout.used | {"prompt"}):
            return _converted(row, layout, kind), layout
    return row, None


@lru_cache(1024)
def _candidates(present: tuple[str, ...], kind: DatasetKind | None) -> tuple[Layout, ...]:
    """The layouts whose columns are all there, those that use most of them first."""
    gives = GIVES.get(kind, ()) if kind is not None else ("pair", "completion", "messages")
    found = [layout for layout in LAYOUTS if layout.gives in gives and set(layout.needs) <= set(present)]
    return tuple(sorted(found, key=lambda layout: -len(layout.used & set(present))))


def _is_wanting(row: Row, kind: DatasetKind | None, options: TokenizeOptions) -> bool:
    """Whether a row lacks strop's columns, or a part of its prompt, as it is."""
    form = form_of(row, FORMS if kind is None else ACCEPTED[kind], options)
    if form == "pair":
        implicit = row.get("prompt") is None and not _begins_both(row)
        return implicit or (isinstance(row.get("prompt"), str) and bool(row.get("system")))
    return form is None or (kind is None and form == "prompt")


def _begins_both(row: Row) -> bool:
    """Whether chosen and rejected are whole conversations with the same first message, so that they hold the prompt."""
    first = [
        value[0] if isinstance(value, list) and len(value) > 1 else None for value in (row["chosen"], row["rejected"])
    ]
    return first[0] is not None and first[0] == first[1]


def _converted(row: Row, layout: Layout, kind: DatasetKind | None) -> Row:
    kept = row if kind is DatasetKind.PROMPT_ONLY else {k: v for k, v in row.items() if k not in layout.used}
    new = layout.read(row) if layout.read is not None else {ours: row[theirs] for ours, theirs in layout.renames}
    if layout.prompt:
        prompt = _parsed(join_columns(row, layout.prompt.split("+")))
        if layout.system and layout.system in row:
            said = [] if not row[layout.system] else [{"role": "system", "content": row[layout.system]}]
            prompt = [*said, *([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)]
        new = {"prompt": prompt, **new}
    if kind is DatasetKind.PROMPT_ONLY and "prompt" in new:
        new = {"prompt": new["prompt"]}
    return {**kept, **new}


def _parsed(value: Any) -> Any:
    """Messages out of a string that holds them as JSON; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _hidden_prompts(row: Mapping[str, Any], used: frozenset[str]) -> list[str]:
    """Columns that are not used and may hold the prompt or a part of it."""
    return [name for name, value in row.items() if name not in used and may_be_prompt(name, value)]


def may_be_prompt(name: str, value: Any) -> bool:
    """Whether a column looks as if it held a prompt."""
    if isinstance(value, list):
        return name in PROMPT_NAMES and bool(value) and isinstance(value[0], dict)
    if not isinstance(value, str) or not value.strip():
        return False
    return name in PROMPT_NAMES or (any(stem in name.lower() for stem in PROMPT_STEMS) and len(value.split()) > 2)


def refuse_hidden_prompt(row: Row, shared: str) -> None:
    """Raise `RowProblem` for a pair of texts without a prompt, if another column may hold it.

    `shared` is what both answers begin with; a column that is repeated there is no hidden prompt.
    """
    hidden = [name for name in _hidden_prompts(row, frozenset()) if not _repeats(row[name], shared)]
    if hidden:
        mapping = f"prompt={'+'.join(hidden)}"
        raise RowProblem(
            "prompt",
            f"is missing, but {' and '.join(map(repr, hidden))} may hold it",
            f'Set columns="{mapping}" (on the command line --columns {mapping}), or remove what is no prompt',
        )


def _repeats(value: Any, shared: str) -> bool:
    return isinstance(value, str) and value.strip() in shared
