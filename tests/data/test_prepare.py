"""The front door: kinds by name, conversions, findings, tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.tokenizers import toy_tokenizer

from strop.data import ExampleDataset, ExampleStream, RowStream, TokenizeOptions, check_rows, prepare
from strop.errors import ConfigError, DataError

PAIR = {"prompt": "p", "chosen": " a", "rejected": " b"}


def test_what_comes_back() -> None:
    assert isinstance(prepare([PAIR], "preference", toy_tokenizer()), ExampleDataset)
    stream = RowStream(lambda: iter([PAIR]))
    assert isinstance(prepare(stream, "preference", toy_tokenizer(), name="eval"), ExampleStream)
    assert prepare([PAIR], "preference", toy_tokenizer(), name="eval").report.name == "eval"


def test_kinds_by_name() -> None:
    with pytest.raises(ConfigError, match=r"kind is 'preferences'.*Did you mean 'preference'"):
        prepare([PAIR], "preferences", toy_tokenizer())


def test_files_go_straight_in(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello\nworld\n")
    assert len(prepare(str(tmp_path / "a.txt"), "language_modeling", toy_tokenizer())) == 2


def test_a_missing_template_is_said_at_once() -> None:
    row = {"prompt": [{"role": "user", "content": "q"}]}
    with pytest.raises(ConfigError, match=r"no chat template\. Give chat_template_path"):
        prepare([row], "prompt_only", toy_tokenizer())
    data = prepare([row], "prompt_only", toy_tokenizer(), TokenizeOptions(chat_template="{{ messages[0]['content'] }}"))
    assert toy_tokenizer().decode(data[0].prompt_ids) == "q"


def test_plain_rows_for_a_chat_model_are_mentioned() -> None:
    findings = prepare([{"text": "a b"}], "language_modeling", toy_tokenizer("chatml")).report.findings
    assert [f.severity for f in findings if "template is not applied" in f.message] == ["info"]
    chat = [{"prompt": [{"role": "user", "content": "q"}]}]
    assert not prepare(chat, "prompt_only", toy_tokenizer("chatml")).report.findings


def test_check_rows_needs_no_tokenizer() -> None:
    report = check_rows([PAIR, {**PAIR, "rejected": " a"}])
    assert (report.kind, report.rows_read, report.trees) == ("preference", 2, 1)
    assert "identical" in report.left_out and report.sample is None and report.lengths == {}
    assert check_rows(RowStream(lambda: iter([PAIR])), "preference").trees == 1
    with pytest.raises(ConfigError, match="say what its rows are for"):
        check_rows(RowStream(lambda: iter([PAIR])))


def test_check_and_prepare_find_the_same() -> None:
    rows: list[Any] = [PAIR, {**PAIR, "chosen": None}]
    with pytest.raises(DataError) as checked:
        check_rows(rows, "preference")
    with pytest.raises(DataError) as prepared:
        prepare(rows, "preference", toy_tokenizer())
    assert str(checked.value) == str(prepared.value)
    assert [finding.row for finding in checked.value.findings] == [1]  # type: ignore[attr-defined]


def test_tools_that_cannot_be_described() -> None:
    def tool(x):  # no hints
        return x

    row = {"prompt": [{"role": "user", "content": "q"}]}
    for tools, wanted in (((tool,), "function 'tool' cannot be described"), ((3,), "a int is no tool")):
        with pytest.raises(ConfigError, match=wanted):
            prepare([row], "prompt_only", toy_tokenizer("chatml_tools"), TokenizeOptions(tools=tools))
