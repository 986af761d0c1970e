import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from strop.report import write_report
from strop.report.page import payload, read_book

SHOWN = (
    "my-run", "1 min 15 s", "rewards/margins", "my_own", "Chosen reward minus rejected reward.", "1,024", "same text",
    "Remove it", "and 2 more tokens", "sigmoid, sft", "exotic_setting", "torch", "All 4 settings", "Finished, step 30",
    "SmolLM2-135M", "LoRA, rank 16", "strop dpo --lora", "rewards: over the limit",
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
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def check(path: Path) -> tuple[str, Checker]:
    page = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert not checker.problems and not checker.open
    assert page.count("<script") == 2, "the page's data and the page's script"
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
    facts = {"versions": {"torch": "2.13"}, "started": "2026-01-01 10:00:00", "model": "SmolLM2-135M",
             "adapter": "LoRA, rank 16", "command": "strop dpo --lora"}  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts))
    alarm = {"step": 7, "alarm": "rewards", "text": "rewards: over the limit"}
    (folder / "alarms.jsonl").write_text(json.dumps(alarm) + "\n" + json.dumps({**alarm, "step": 9}) + "\n")
    return folder


def data_of(path: Path) -> dict[str, Any]:
    """What the page's script draws."""
    found = re.search(r'<script type="application/json" id="payload">(.*?)</script>', path.read_text(encoding="utf-8"))
    assert found is not None
    return json.loads(found[1])


def test_one_run_shows_everything_it_has(tmp_path: Path) -> None:
    path = write_report(a_run(tmp_path / "my-run"))
    assert path == tmp_path / "my-run" / "report.html"
    text, _ = check(path)
    for expected in SHOWN:
        assert expected in text, expected
    data = data_of(path)
    run = data["runs"][0]
    assert run["curves"]["loss"] == [list(range(1, 31)), [pytest.approx(0.7 - 0.01 * i) for i in range(1, 31)]]
    assert run["alarms"][0]["steps"] == [7, 9] and run["alarms"][0]["keys"] == ["loss"]
    assert [row["completion"] for row in run["samples"]] == ["<0>", "<1>", "<2>", "x"] and run["count"] == 4
    titles = [chart["title"] for chart in data["charts"]]
    assert titles == ["loss", "rewards/margins", "my_own"]
    assert data["charts"][0]["keys"] == ["loss", "eval_loss"]


@pytest.mark.parametrize(
    ("said", "facts", "total"),
    [
        ("Finished, step 30 of 30, 1 min 15 s", {"steps": 30}, True),
        ("Stopped, step 30 of 40, 1 min 15 s", {"steps": 40}, True),
        (
            "Failed, step 30 of 40: RuntimeError: a cable was pulled",
            {"failed": "RuntimeError: a cable was pulled"},
            False,
        ),
        ("Running, step 30 of 40", {}, False),
    ],
)
def test_the_head_says_how_the_run_ended(said: str, facts: dict[str, Any], total: bool, tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines if total else lines[:-1]) + "\n")
    (folder / "run.json").write_text(json.dumps({"steps": 40} | facts))
    text, _ = check(write_report(folder))
    assert said in text


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    path = write_report(a_run(tmp_path / "run"))
    _, checker = check(path)
    assert not [link for link in checker.links if not link.startswith("#")]
    page = path.read_text(encoding="utf-8")
    assert "@import" not in page and "url(" not in page and "default-src 'none'" in page
    assert set(re.findall(r"https?://[^\s\"']*", page)) == {"https://github.com/leeoniya/uPlot"}, "a comment"


def test_html_in_data_stays_text(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run", evil="<script>alert(1)</script>")
    rows = [{"step": 1, "prompt": "</pre><b>p", "completion": "<img src=x>", "notes": {"golden": "<u>gold"}}]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "metrics.jsonl").write_text('{"step": 1, "<i>loss": 1}\n')
    path = write_report(folder)
    text, _ = check(path)
    data = data_of(path)
    assert "<script>alert(1)</script>" in text and data["charts"][0]["title"] == "<i>loss"
    assert data["runs"][0]["samples"][0]["notes"] == {"golden": "<u>gold"}


def test_a_pipeline_is_one_page_with_its_summary(tmp_path: Path) -> None:
    a_run(tmp_path / "sft", method="sft")
    a_run(tmp_path / "dpo")
    summary = {
        "title": "Spell", "metric": "words right", "before": 0.2125, "after": 0.91, "seconds": 171,
        "note": "noisy by design",
        "tables": [{"title": "Accuracy", "columns": ["", "greedy"], "rows": [["after DPO", "91.0%"]]}],
    }  # fmt: skip
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    path = write_report(tmp_path)
    text, _ = check(path)
    for expected in ("Spell", "words right", "21.2%", "91.0%", "2 min 51 s", "noisy by design", "Settings that differ"):
        assert expected in text
    assert {run["name"] for run in data_of(path)["runs"]} == {"sft", "dpo"}


def test_runs_of_several_folders_are_compared_in_one_page(tmp_path: Path) -> None:
    first, second = a_run(tmp_path / "x" / "run"), a_run(tmp_path / "y" / "run", learning_rate=2e-4)
    text, _ = check(write_report(first, second, output=tmp_path / "both.html"))
    assert "learning_rate 1e-4 2e-4" in text and "exotic_setting 5 5" not in text
    names = [run["name"] for run in data_of(tmp_path / "both.html")["runs"]]
    assert names == [str(first), str(second)], "two runs of one name are told apart"


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
    assert "Running, step 0" in text


def test_long_runs_stay_small(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lines = (json.dumps({"step": i, **{f"metric_{k}": (i * k) % 97 for k in range(20)}}) + "\n" for i in range(5000))
    (folder / "metrics.jsonl").write_text("".join(lines))
    path = write_report(folder)
    check(path)
    assert path.stat().st_size < 1_500_000
    assert max(len(steps) for steps, _ in data_of(path)["runs"][0]["curves"].values()) <= 1200


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
    assert "\x1b" not in page and "\u202e" not in page and "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page and "\\u003cscript>alert(1)" in page
    check(path)


def test_no_sentence_is_empty(tmp_path: Path) -> None:
    """An alarm beside metrics of which no healthy range is known."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "my_own": 1}\n')
    (tmp_path / "alarms.jsonl").write_text('{"step": 1, "alarm": "kl", "text": "kl is over 1"}\n')
    (run,) = payload(read_book([tmp_path]))["runs"]
    assert "kl is over 1" in run["advice"] and "></p>" not in run["advice"]
