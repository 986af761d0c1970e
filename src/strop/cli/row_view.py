"""Some rows as the model will see them, what it learns apart from what it only reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from strop.plain_text import bounded, visible

if TYPE_CHECKING:
    from strop.data import DataReport

ROWS = 3
LONGEST = 600
"""Characters of a part that are shown."""
LEARNED, READ = "bold green", "dim"


@dataclass(frozen=True)
class Shown:
    """A row: its number, and its parts by name, each as pieces of text with whether they are learned."""

    row: int
    parts: dict[str, list[tuple[str, bool]]]


def as_the_model_sees(
    rows: Any, kind: str, model: str, method: str | None, name: str
) -> tuple[DataReport, list[Shown]]:
    """The report of rows prepared with a model's tokenizer as the method's defaults have it, and the first of them."""
    from strop.data import TokenizeOptions, prepare
    from strop.data.report import runs_of, sample_of
    from strop.model.load import load_tokenizer

    options = options_of(method) if method else TokenizeOptions()
    tokenizer = load_tokenizer(model)
    dataset = prepare(rows, kind, tokenizer, options, name=name)
    shown = []
    for example in islice(dataset, ROWS):
        parts = sample_of(example, tokenizer)["parts"]
        shown.append(Shown(example.row, {part["name"]: runs_of(part) for part in parts}))
    return dataset.report, shown


def options_of(method: str) -> Any:
    """How a method's rows are tokenised where nothing is set."""
    from strop.methods.registry import BY_VERB

    found = BY_VERB[method]
    return found.trainer().facts(found.config()(use_cpu=True), defaultdict(lambda: None)).tokenize


def as_text(rows: Any, kind: str) -> list[Shown]:
    """The first rows that can be used, as prompt and completions; which tokens are learned needs a tokenizer."""
    return list(islice(_texts(rows, kind), ROWS))


def _texts(rows: Any, kind: str) -> Iterator[Shown]:
    from strop.data import DatasetKind, TokenizeOptions
    from strop.data.cases import read_cases
    from strop.report.samples import readable

    for number, row in enumerate(rows):
        for case in read_cases(row, DatasetKind(kind), TokenizeOptions()):
            if case.left_out is None:
                names = {1: ["completion"], 2: ["chosen", "rejected"]}.get(len(case.completions), [])
                names += [f"step {i}" for i in range(1, len(case.completions) + 1)] if not names else []
                prompt = {"prompt": [(readable(case.prompt), False)]} if case.prompt else {}
                completions = {name: [(readable(c), True)] for name, c in zip(names, case.completions, strict=True)}
                yield Shown(number, prompt | completions)


def show(rows: list[Shown]) -> None:
    """Print rows: what is learned in colour, or in double brackets where there is none."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    coloured = console.is_terminal and not console.no_color
    for row in rows:
        console.print(Text(f"  row {row.row}, what is learned " + ("in green:" if coloured else "in [[ ]]:")))
        for name, runs in row.parts.items():
            line = Text(f"    {name}: ")
            for text, learned in runs:
                text = visible(bounded(text, LONGEST)).replace("\n", "\n      ")
                line.append(text if coloured or not learned else f"[[{text}]]", LEARNED if learned else READ)
            console.print(line)
