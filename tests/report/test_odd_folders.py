"""Folders that no run of strop left so: the report is made of what can be read, or one sentence says why not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from strop.cli import main

LINE = '{"step": 1, "loss": 0.5, "rewards/margins": 0.1}\n'
DEEP = "[" * 5000
ESCAPES = "\x1b]0;gone\x07\x1b[2J\u2028\u0085\x00\udcff"

TEXTS: dict[str, dict[str, str | bytes]] = {
    "metrics are no objects": {"metrics.jsonl": "1\n[1]\nnull\ntrue\n"},
    "metrics are empty": {"metrics.jsonl": ""},
    "metrics are bytes": {"metrics.jsonl": bytes(range(256)) * 50},
    "metrics are deep": {"metrics.jsonl": LINE + DEEP + "\n"},
    "steps are words": {"metrics.jsonl": '{"step": "one", "loss": 1}\n{"step": null, "loss": 2}\n{"loss": 3}\n'},
    "steps are lists": {"metrics.jsonl": '{"step": [1], "loss": 1}\n{"step": {"a": 1}, "loss": 2}\n'},
    "steps are not finite": {"metrics.jsonl": '{"step": NaN, "loss": 1}\n{"step": Infinity, "loss": 2}\n'},
    "steps go back": {"metrics.jsonl": '{"step": 5, "loss": 1}\n{"step": -7, "loss": 2}\n{"step": 1e308, "loss": 3}\n'},
    "values are not finite": {"metrics.jsonl": '{"step": 1, "loss": NaN, "reward": -Infinity, "kl": 1e999}\n'},
    "values are huge": {"metrics.jsonl": '{"step": 1, "loss": 1e308}\n{"step": 2, "loss": -1e308}\n' * 30},
    "whole numbers are huge": {"metrics.jsonl": '{"step": 1, "loss": ' + "9" * 400 + "}\n" + LINE},
    "steps are huge": {"metrics.jsonl": '{"step": ' + "9" * 400 + ', "loss": 1}\n' + LINE},
    "digits without end": {"metrics.jsonl": '{"step": 1, "loss": ' + "9" * 5000 + "}\n" + LINE},
    "values are lists": {"metrics.jsonl": '{"step": 1, "loss": [1], "reward": {"a": 1}, "kl": "x"}\n'},
    "names are odd": {"metrics.jsonl": json.dumps({"step": 1, "": 1, ESCAPES: 2, "<script>": 3, "[/red]": 4}) + "\n"},
    "the run's totals are words": {"metrics.jsonl": '{"step": 1, "train_runtime": "long", "train_loss": true}\n'},
    "a negative time": {"metrics.jsonl": '{"step": 1, "train_runtime": -5.0, "num_tokens": -1, "loss": 0}\n'},
    "samples are no objects": {"metrics.jsonl": LINE, "samples.jsonl": '1\n"x"\n[]\n'},
    "samples have odd steps": {
        "samples.jsonl": '{"step": "a", "prompt": "p"}\n{"step": 1, "prompt": "p"}\n{"step": null, "prompt": "p"}\n'
    },
    "samples have lists as steps": {"samples.jsonl": '{"step": [1], "prompt": "p"}\n{"step": {}, "prompt": "p"}\n'},
    "samples have odd prompts": {
        "samples.jsonl": '{"step": 1, "prompt": 5, "completion": null}\n'
        '{"prompt": [1, {"role": []}], "completion": {}}\n'
    },
    "samples have odd rewards": {
        "samples.jsonl": '{"step": 1, "prompt": "p", "rewards": [1], "notes": 3}\n'
        '{"step": 1, "prompt": "p", "rewards": {"a": NaN, "b": []}, "notes": ["x"]}\n'
    },
    "samples act": {"samples.jsonl": json.dumps({"step": 1, "prompt": ESCAPES, "completion": "<script>x</script>"})},
    "config is a list": {"metrics.jsonl": LINE, "config.yaml": "- 1\n- 2\n"},
    "config is broken": {"metrics.jsonl": LINE, "config.yaml": "a: [1\nb: }"},
    "config is a tag": {"metrics.jsonl": LINE, "config.yaml": "!!python/object/apply:os.system ['exit 1']"},
    "config is deep": {"metrics.jsonl": LINE, "config.yaml": DEEP},
    "config has odd values": {
        "metrics.jsonl": LINE,
        "config.yaml": "method: [dpo]\n1: 2\nnull: x\nlearning_rate: .nan\n"
        "beta: {a: 1}\nseed: 2026-01-01\nloss_type: !!set {a}\n",
    },
    "config refers to itself": {"metrics.jsonl": LINE, "config.yaml": "a: &a [*a]\nloss_type: *a\n"},
    "config has many aliases": {
        "config.yaml": "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9))
    },
    "data are words": {"metrics.jsonl": LINE, "data.json": '{"train": 3, "eval": "x"}'},
    "data have odd parts": {
        "data.json": '{"train": {"left_out": [1], "lengths": 3, "findings": {"a": 1}, "sample": "x", "tokenized": "x"}}'
    },
    "data have odd inner parts": {
        "data.json": json.dumps(
            {
                "train": {
                    "rows_read": "many",
                    "complete": False,
                    "tokenized": None,
                    "source": ["x"],
                    "left_out": {"a": 1, "b": {"count": "x"}},
                    "lengths": {"prompt": 3, "completion": {"mean": []}},
                    "findings": [1, {"row": [], "column": 3, "place": {}, "severity": None}],
                    "sample": {"parts": [1, {"tokens": 3}, {"tokens": ["a"], "mask": None, "length": "x"}]},
                }
            }
        )
    },
    "data are deep": {"metrics.jsonl": LINE, "data.json": DEEP},
    "facts are odd": {
        "metrics.jsonl": LINE,
        "run.json": '{"versions": [1, 2], "layout": {"a": 1}, "started": ["x"]}',
    },
    "summary is odd": {
        "summary.json": json.dumps(
            {"before": 1e999, "after": True, "tables": [{"columns": 3, "rows": 4}, {"rows": [1, [2]]}], "title": ["x"]}
        )
    },
    "summary has odd numbers": {
        "summary.json": '{"before": NaN, "after": 0.5, "seconds": "long", "tables": {"rows": 1}, "note": ["x"]}'
    },
    "lines end strangely": {
        "metrics.jsonl": '{"step": 1, "loss": 1, "note": "a\u2028b\u0085c"}\r\n\x0c{"step": 2, "loss": 2}'
    },
}


def is_a_folder(folder: Path) -> None:
    for name in ("metrics.jsonl", "config.yaml"):
        (folder / name).mkdir(parents=True)


def is_a_loop(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text(LINE)
    for name in ("samples.jsonl", "sub"):
        (folder / name).symlink_to(folder / name)


def holds_itself(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text(LINE)
    (folder / "again").symlink_to(folder)


def is_a_pipe(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text(LINE)
    os.mkfifo(folder / "samples.jsonl")


def page_is_a_folder(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text(LINE)
    (folder / "report.html" / "x").mkdir(parents=True)


def has_a_name_of_bytes(folder: Path) -> None:
    inner = Path(os.fsdecode(os.fsencode(folder) + b"/sub-\xff"))
    inner.mkdir()
    (inner / "metrics.jsonl").write_text(LINE)


PLACES: list[Callable[[Path], None]] = [
    is_a_folder, is_a_loop, holds_itself, is_a_pipe, page_is_a_folder, has_a_name_of_bytes
]  # fmt: skip


class Tags(HTMLParser):
    """Names of all tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)


def check(folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Report on a folder as the command does; the page's text, or "" where a sentence says why there is none."""
    status = main(["report", str(folder)])
    out, said = capfd.readouterr()
    if status:
        assert status == 2 and said.startswith("strop report: ") and len(said) < 2000 and not out
        assert said.isprintable() or said.replace("\n", "").isprintable()
        return ""
    page = (folder / "report.html").read_bytes().decode("utf-8")
    tags = Tags()
    tags.feed(page)
    assert tags.seen.count("script") == 2, "the page's data and the page's script"
    assert not {"\x1b", "\x00", "\x07"} & set(page)
    return page


@pytest.mark.parametrize("name", TEXTS)
def test_odd_files(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for file, text in TEXTS[name].items():
        (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    assert check(tmp_path, capfd)


@pytest.mark.parametrize("make", PLACES, ids=lambda make: make.__name__)
def test_odd_places(make: Callable[[Path], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make(tmp_path)
    page = check(tmp_path, capfd)
    assert page or make in (is_a_folder, page_is_a_folder)


def test_every_line_that_can_be_read_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(LINE.encode() + b"\xff\n" + DEEP.encode() + b'\n{"step": "x", "kl": 3.25}')
    page = check(tmp_path, capfd)
    assert "0.5" in page and "3.25" not in page and "metrics.jsonl: 3 of 4 lines" in page
