import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from strop.report import write_report
from strop.report.sections import duration, recent

SHOWN = (
    "my-run", "1 min 15 s", "rewards/margins", "my_own", "Chosen reward minus rejected reward.", "stone backward:",
    "<2>", "user: hi", "1,024", "same text", "Remove it", "and 2 more tokens", "sigmoid, sft", "exotic_setting",
    "torch", "All 4 settings", "4 of 4 sampled completions",
)  # fmt: skip
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Checker(HTMLParser):
    """Collects the text of a page and whether every element is closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []
        self.text: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style",):
            self.text.append(data)


def check(path: Path) -> tuple[str, Checker]:
    page = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert not checker.problems and not checker.open
    return " ".join(" ".join(checker.text).split()), checker


def a_run(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True)
    lines = [{"step": i, "loss": 0.7 - 0.01 * i, "rewards/margins": 0.02 * i, "my_own": i} for i in range(1, 31)]
    lines += [{"step": 30, "eval_loss": 0.45}, {"step": 30, "train_runtime": 75.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    samples = [{"step": s, "prompt": "stone backward:", "completion": f"<{s}>", "reward": s / 2} for s in (0, 1, 2)]
    samples += [
        {"step": 2, "prompt": [{"role": "user", "content": "hi"}], "completion": "x", "rewards": {"a": 1, "b": 2}}
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    config = {"method": "dpo", "learning_rate": 1e-4, "loss_type": ["sigmoid", "sft"], "exotic_setting": 5, **changes}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    finding = {
        "row": 3,
        "column": "chosen",
        "severity": "warning",
        "message": "same text",
        "fix": "Remove it",
        "place": "p, line 4",
    }
    part = {"name": "chosen", "tokens": [" e", "nots", "</s>"], "ids": [1, 2, 3], "mask": [0, 1, 1], "length": 5}
    train = {
        "source": "pairs.jsonl", "kind": "preference", "rows_read": 1024, "trees": 1018, "truncated": 3,
        "left_out": {"too_long": {"count": 6, "why": "w", "rows": []}}, "lengths": {"prompt": {"min": 2, "max": 9}},
        "findings": [finding], "sample": {"row": 0, "parts": [part]},
    }  # fmt: skip
    (folder / "data.json").write_text(json.dumps({"train": train}))
    (folder / "run.json").write_text(json.dumps({"versions": {"torch": "2.13"}, "started": "2026-01-01 10:00:00"}))
    return folder


def test_one_run_shows_everything_it_has(tmp_path: Path) -> None:
    path = write_report(a_run(tmp_path / "my-run"))
    assert path == tmp_path / "my-run" / "report.html"
    text, _ = check(path)
    for expected in SHOWN:
        assert expected in text, expected


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    path = write_report(a_run(tmp_path / "run"))
    _, checker = check(path)
    assert not [link for link in checker.links if not link.startswith("#")]
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page and "@import" not in page and "url(" not in page and "http" not in page


def test_html_in_data_stays_text(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", evil="<script>alert(1)</script>")
    rows = [{"step": 1, "prompt": "</pre><b>p", "completion": "<img src=x>", "notes": {"golden": "<u>gold"}}]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "metrics.jsonl").write_text('{"step": 1, "<i>loss": 1}\n')
    text, _ = check(write_report(folder))
    for written in ("<script>alert(1)</script>", "</pre><b>p", "<img src=x>", "<i>loss", "golden", "<u>gold"):
        assert written in text


def test_a_pipeline_is_one_page_with_its_summary(tmp_path: Path) -> None:
    a_run(tmp_path / "sft", method="sft")
    a_run(tmp_path / "dpo")
    summary = {
        "title": "Spell", "metric": "words right", "before": 0.2125, "after": 0.91, "seconds": 171,
        "note": "noisy by design",
        "tables": [{"title": "Accuracy", "columns": ["", "greedy"], "rows": [["after DPO", "91.0%"]]}],
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text, checker = check(write_report(tmp_path))
    for expected in ("Spell", "words right", "21.2%", "91.0%", "2 min 51 s", "noisy by design"):
        assert expected in text
    page = (tmp_path / "report.html").read_text()
    anchors = [link[1:] for link in checker.links]
    assert anchors == ["run-dpo", "run-sft"] or anchors == ["run-sft", "run-dpo"]
    assert all(f'id="{anchor}"' in page for anchor in anchors)


def test_metrics_out_of_range_come_with_advice(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text('{"step": 1, "rewards/margins": -0.5, "rewards/accuracies": 0.9}\n')
    text, _ = check(write_report(folder))
    assert "1 of 2 metrics with a known range ended in it." in text
    assert "check that the columns are not swapped" in text


def test_a_run_that_has_only_begun_can_be_reported(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("method: sft\n")
    text, _ = check(write_report(folder))
    assert "No metrics were logged." in text


def test_long_runs_stay_small(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lines = (json.dumps({"step": i, **{f"metric_{k}": (i * k) % 97 for k in range(20)}}) + "\n" for i in range(5000))
    (folder / "metrics.jsonl").write_text("".join(lines))
    path = write_report(folder)
    check(path)
    assert path.stat().st_size < 2_000_000
    assert len(re.findall("<svg", path.read_text())) == 20


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (42, "42 s"), (59.7, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_recent_is_the_last_tenth() -> None:
    assert recent([(i, float(i)) for i in range(20)]) == 18.5
    assert recent([(1, 4.0)]) == 4.0


EVIL = "</td><script>alert(1)</script>\x1b]0;title\x07\u202e\ud800"


def test_no_string_of_any_file_acts(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", evil=EVIL, loss_type=[EVIL])

    def poisoned(value: object) -> object:
        if isinstance(value, dict):
            return {key: poisoned(each) for key, each in value.items()}
        if isinstance(value, list):
            return [poisoned(each) for each in value]
        return EVIL if isinstance(value, str) else value

    data = json.loads((folder / "data.json").read_text())
    data["train"]["sample"]["row"] = EVIL
    (folder / "data.json").write_text(json.dumps(poisoned(data)))
    for name in ("metrics.jsonl", "samples.jsonl"):
        rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        more = {EVIL: 1.0, "eval_" + EVIL: 0.5, "prompt": EVIL, "completion": EVIL, "notes": {EVIL: EVIL}}
        evil = [{**row, **more} for row in rows]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in evil))
    (folder / "run.json").write_text(json.dumps({"versions": {EVIL: EVIL}, "started": EVIL, "layout": EVIL}))
    path = write_report(folder)
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page
    assert "&lt;script&gt;alert(1)" in page
    check(path)
