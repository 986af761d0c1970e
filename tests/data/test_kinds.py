"""Detection by columns in a fixed order, over every row."""

from __future__ import annotations

from typing import Any

import pytest

from strop.data import DatasetKind, detect
from strop.data.kinds import ACCEPTED, DETECTED, FITS, FORMS, NEEDS, rename_hint
from strop.data.options import TokenizeOptions
from strop.errors import DataError

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"text": "t"}, "language_modeling"),
        ({"messages": TALK}, "language_modeling"),
        ({"conversations": [{"from": "human", "value": "x"}]}, "language_modeling"),
        ({"prompt": "p"}, "prompt_only"),
        ({"prompt": TALK[:1]}, "prompt_only"),
        ({"prompt": "p", "completion": "c"}, "prompt_completion"),
        ({"prompt": TALK[:1], "completion": TALK[1:]}, "prompt_completion"),
        ({"prompt": "p", "completion": "c", "label": True}, "unpaired_preference"),
        ({"prompt": "p", "completion": "c", "label": "sports"}, "prompt_completion"),
        ({"messages": TALK, "label": False}, "unpaired_preference"),
        ({"chosen": "a", "rejected": "b"}, "preference"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "preference"),
        ({"prompt": TALK[:1], "chosen": TALK[1:], "rejected": TALK[1:]}, "preference"),
        ({"prompt": "p", "completions": ["a"], "labels": [1]}, "stepwise"),
        ({"input_ids": [1]}, "tokenized"),
        ({"chosen_ids": [1], "rejected_ids": [2]}, "tokenized"),
        # several at once: the order is fixed
        ({"text": "t", "prompt": "p", "chosen": "a", "rejected": "b", "messages": TALK}, "preference"),
        ({"rejected": "b", "messages": TALK, "chosen": "a"}, "preference"),
        ({"prompt": "p", "messages": TALK}, "language_modeling"),
        ({"text": None, "prompt": "p"}, "prompt_only"),
    ],
)
def test_detect(row: dict[str, Any], kind: str) -> None:
    for columns in (row, dict(reversed(row.items()))):
        found = detect([columns, columns])
        assert found.kind == kind and sum(found.forms.values()) == 2


def test_every_row_is_looked_at() -> None:
    with pytest.raises(DataError, match=r"999 prompt_only \(first: row 0\), 1 language_modeling \(first: row 999\)"):
        detect([{"prompt": "p"}] * 999 + [{"text": "t"}])
    with pytest.raises(DataError, match=r"1 without known columns \(first: row 1\)"):
        detect([{"text": "t"}, {"body": "t"}])


def test_a_missing_value_is_no_other_kind() -> None:
    rows = [{"prompt": "p", "completion": "c", "label": True}, {"prompt": "p", "completion": "c", "label": None}]
    assert detect(rows).kind == "unpaired_preference"
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": None, "rejected": "b"}]
    assert detect(rows).kind == "preference"


def test_nothing_to_detect() -> None:
    with pytest.raises(DataError, match="there are no rows"):
        detect([])
    with pytest.raises(DataError, match="no columns at all"):
        detect([{}])


def test_the_text_field_may_have_another_name() -> None:
    assert detect([{"body": "t"}], TokenizeOptions(dataset_text_field="body")).kind == "language_modeling"


def test_rename_hints() -> None:
    assert '"prompt=instruction,completion=output"' in rename_hint(["instruction", "output"])
    assert '"chosen=accepted"' in rename_hint(["accepted", "rejected"], DatasetKind.PREFERENCE)
    assert '"prompt=promt"' in rename_hint(["promt"], DatasetKind.PROMPT_ONLY)
    assert rename_hint(["x1", "x2"]) == ""
    assert '"messages=mes\'sages"' in rename_hint(["mes'sages"])


def test_names_alike_are_looked_for_among_the_first_of_a_wide_table() -> None:
    wide = [f"x{number}" for number in range(20_000)]
    assert '"prompt=promt"' in rename_hint(["promt", *wide]) and rename_hint([*wide, "promt"]) == ""
    assert '"prompt=question"' in rename_hint([*wide, "question"])  # known by name, and found wherever it stands


def test_tables_are_complete() -> None:
    assert set(DETECTED) == set(FORMS)
    assert set(ACCEPTED) == set(NEEDS) == set(FITS) == set(DatasetKind)
    assert all(form in FORMS for forms in ACCEPTED.values() for form in forms)
