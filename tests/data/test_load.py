"""From whatever a user has to rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from strop.data.load import load_rows
from strop.data.rows import RowStream
from strop.errors import DataError, SetupError


def jsonl(path: Path, *numbers: int) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps({"n": n}) + "\n" for n in numbers))
    return path


def numbers(rows: object) -> list[int]:
    return [row["n"] for row in rows]  # type: ignore[attr-defined]


def test_lists_and_splits() -> None:
    assert numbers(load_rows([{"n": 1}, {"n": 2}])) == [1, 2]
    assert numbers(load_rows({"train": [{"n": 1}], "test": [{"n": 2}]}, split="test")) == [2]
    rows = load_rows([{"n": 1}])
    assert load_rows(rows) is rows
    assert numbers(load_rows([{"n": 1}], columns={"n": "m"}).map(lambda row: {"n": row["m"]})) == [1]


def test_columns_must_be_there() -> None:
    with pytest.raises(DataError, match=r"'questoin': no such column. Did you mean 'question'"):
        load_rows([{"question": "q"}], columns={"questoin": "prompt"})
    assert list(load_rows([{"a": 1, "b": 2}, {"b": 3}], columns=["a"])) == [{"a": 1}, {}]


def test_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    assert numbers(load_rows(pandas.DataFrame({"n": [1, 2]}))) == [1, 2]


def test_iterables() -> None:
    class Again:
        def __iter__(self):
            return iter([{"n": 1}])

    stream = load_rows(Again())
    assert isinstance(stream, RowStream) and numbers(stream) == numbers(stream) == [1]
    with pytest.raises(DataError, match="walked more than once"):
        load_rows(iter([{"n": 1}]))


def test_files_and_folders(tmp_path: Path) -> None:
    first, second = jsonl(tmp_path / "d" / "train-0.jsonl", 1), jsonl(tmp_path / "d" / "train-1.jsonl", 2)
    jsonl(tmp_path / "d" / "test.jsonl", 3)
    assert numbers(load_rows([first, second])) == [1, 2]
    assert numbers(load_rows(tmp_path / "d")) == [1, 2] and numbers(load_rows(tmp_path / "d", split="test")) == [3]
    jsonl(tmp_path / "e" / "data" / "pairs.jsonl", 4)
    assert numbers(load_rows(tmp_path / "e")) == [4]
    with pytest.raises(DataError, match=r"no file for the split 'dev'.*found test.jsonl, train-0.jsonl"):
        load_rows(tmp_path / "d", split="dev")


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ([], "list of rows is empty"),
        ([{"n": 1}, 3], "row 1: a int, not a dict"),
        ({"n": [1, 2]}, "A dict of columns"),
        ({"train": [{"n": 1}]}, "no split 'dev'; found 'train'"),
        (3, "A int cannot be read as rows"),
        ("./nothing.jsonl", "no such file"),
        ("/nowhere/at/all", "does not exist either"),
        ("what is this?", "no such file"),
        ("", "path of the rows is empty"),
        ("https://host/a.jsonl", "an address, not a file. Download it first"),
        ("a\0b.jsonl", "holds no zero byte"),
        ("./" + "a" * 5000 + ".jsonl", "cannot be read: File name too long"),
        ("~no-such-user/a.jsonl", "no such file"),
        (b"a.jsonl", "Bytes cannot be read as rows"),
        ([{1: "a"}], "row 0: the column name 1 is no string"),
        ("/dev/null", "neither a file nor a folder"),
    ],
)
def test_what_cannot_be_loaded(source: object, wanted: str) -> None:
    with pytest.raises(DataError, match=wanted):
        load_rows(source, split="dev" if isinstance(source, dict) else "train")


def test_a_misspelt_file_is_found(tmp_path: Path) -> None:
    jsonl(tmp_path / "pairs.jsonl", 1)
    with pytest.raises(DataError, match=r"Did you mean '.*/pairs\.jsonl'"):
        load_rows(tmp_path / "piars.jsonl")


def test_empty_datasets() -> None:
    import datasets

    with pytest.raises(DataError, match="holds no rows"):
        load_rows(datasets.Dataset.from_list([]))


def test_a_damaged_saved_dataset(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match="the saved dataset is damaged"):
        load_rows(tmp_path)


def test_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SetupError, match=r"'strop-tests/no-such-set': no such path here.*HF_HUB_OFFLINE is set"):
        load_rows("strop-tests/no-such-set")


def test_hub_problems_have_designed_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*args: object, **kwargs: object) -> None:
        raise problem

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    problem: Exception = ConnectionError("no route")
    with pytest.raises(SetupError, match=r"ConnectionError: no route.*Check the name"):
        load_rows("a/b")
    problem = ValueError("Unknown split \"dev\". Should be one of ['train'].")
    with pytest.raises(DataError, match=r"Dataset 'a/b': Unknown split"):
        load_rows("a/b", split="dev")


def test_a_link_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"It is a link to '.*gone\.jsonl', which does not exist"):
        load_rows(tmp_path / "a.jsonl")


def test_files_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "a.jsonl", 1)
    for problem, wanted in (
        (PermissionError(13, "Permission denied"), "may not be read"),
        (OSError(5, "Input/output error"), "cannot be read: Input/output error"),
    ):

        def refuse(*args: object, problem: OSError = problem, **kwargs: object) -> None:
            raise problem

        monkeypatch.setattr(Path, "open", refuse)
        with pytest.raises(DataError, match=wanted):
            load_rows(path)
