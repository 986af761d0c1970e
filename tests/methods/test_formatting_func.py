"""`formatting_func` for a row, or for a batch of rows as tutorials of some years have it: the same texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from strop.errors import DataError
from strop.testing.cases import make_trainer

ROWS = [{"question": "ant bee", "answer": "cat"}, {"question": "dog", "answer": "elk fox gnu"}]
TEXTS = ["Q: ant bee A: cat", "Q: dog A: elk fox gnu"]


def of_row(row: dict[str, Any]) -> str:
    return f"Q: {row['question']} A: {row['answer']}"


def of_batch(batch: dict[str, Any]) -> list[str]:
    return [f"Q: {batch['question'][i]} A: {batch['answer'][i]}" for i in range(len(batch["question"]))]


def by_zip(batch: dict[str, Any]) -> list[str]:
    """Of a single row it makes a list, without an error, of its letters."""
    return [f"Q: {q} A: {a}" for q, a in zip(batch["question"], batch["answer"], strict=False)]


@pytest.mark.parametrize("function", [of_row, of_batch, by_zip])
@pytest.mark.parametrize("stream", [False, True])
def test_texts(function: Any, stream: bool, tmp_path: Path) -> None:
    rows = Dataset.from_list(ROWS)
    options = {"trainer": {"formatting_func": function}, "max_steps": 1}
    trainer = make_trainer("sft", tmp_path, rows=rows.to_iterable_dataset() if stream else rows, **options)
    made = [trainer.processing_class.decode(e.completions[0], skip_special_tokens=True) for e in trainer.train_dataset]
    assert made == TEXTS
    trainer.train()


def broken(row: dict[str, Any]) -> str:
    return str(row["missing"])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (broken, "raised KeyError for row 0: 'missing'"),
        (lambda row: 3, "returned int for row 0;"),
        (lambda row: ["a", "b"], "returned list for row 0;"),
        (
            lambda row: of_batch(row) if row["question"] != ["dog"] else [],
            "returned another number of texts for row 1;",
        ),
    ],
    ids=["raises", "number", "two", "later"],
)
def test_what_is_no_text_names_the_row(function: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a list for every column") as error:
        make_trainer("sft", tmp_path, rows=ROWS, trainer={"formatting_func": function})
    assert f"formatting_func {message}" in str(error.value)
