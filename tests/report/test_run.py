import json
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from strop.errors import SetupError
from strop.report.run import Run, find_runs, read_run


def write(folder: Path, lines: list[str], **documents: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    for name, content in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def points(run: Run) -> dict[str, list[tuple[float, float]]]:
    return {name: list(map(tuple, curve.tolist())) for name, curve in run.metrics.curves.items()}


def test_series_are_sorted_finite_and_the_last_of_a_step(tmp_path: Path) -> None:
    lines = [
        '{"step": 20, "loss": 0.5, "rewards/margins": null, "note": "x", "flag": true}',
        '{"step": 10, "loss": 0.9}',
        '{"step": 20, "loss": 0.4, "eval_loss": 0.6}',
        '{"step": 20, "train_runtime": 12.5, "train_loss": 0.6, "total_flos": 1, "eval_runtime": 3, "epoch": 1}',
    ]
    run = read_run(write(tmp_path / "a", lines))
    assert points(run) == {"loss": [(10, 0.9), (20, 0.4)], "eval_loss": [(20, 0.6)]}
    assert run.metrics.totals == {"train_loss": 0.6, "train_runtime": 12.5}
    assert run.metrics.last_step == 20 and run.unread == []


def test_a_line_cut_off_by_a_crash_is_told_and_left_out(tmp_path: Path) -> None:
    run = read_run(write(tmp_path, ['{"step": 1, "loss": 1}', '{"step": 2, "lo']))
    assert points(run) == {"loss": [(1, 1.0)]}
    assert run.unread == ["metrics.jsonl: 1 of 2 lines are not JSON objects of a step (first: line 2); left out."]


def test_unreadable_documents_do_not_stop_the_report(tmp_path: Path) -> None:
    write(tmp_path, ["{}"], data={"train": {"rows_read": 3}, "odd": 7})
    (tmp_path / "config.yaml").write_text("a: [1\nb: }")
    (tmp_path / "run.json").write_text("[1, 2]")
    run = read_run(tmp_path)
    assert run.config == {} and run.facts == {} and run.data == {"train": {"rows_read": 3}}
    assert len(run.unread) == 2 and run.unread[0].startswith("config.yaml cannot be read:")
    assert run.unread[1] == "run.json holds a list and not names with values; left out."


def test_runs_of_a_pipeline_come_in_the_order_they_started(tmp_path: Path) -> None:
    write(tmp_path / "sft", ["{}"], run={"started": "2026-01-01 10:00:00"})
    write(tmp_path / "dpo", ["{}"], run={"started": "2026-01-01 10:05:00"})
    write(tmp_path / "areward", ["{}"], run={"started": "2026-01-01 10:03:00"})
    four = datetime(2026, 1, 1, 10, 4).astimezone(timezone(timedelta(hours=-7)))  # this machine's 10:04, said in UTC-7
    write(tmp_path / "abc", ["{}"], run={"started": four.isoformat(" ")})
    write(tmp_path / "unknown", ["{}"], run={"started": "some day"})
    write(tmp_path / "checkpoint-10", ["{}"])
    (tmp_path / "empty").mkdir()
    assert [run.name for run in find_runs(tmp_path)] == ["unknown", "sft", "areward", "abc", "dpo"]


@pytest.mark.parametrize("backwards", [True, False])
def test_runs_of_one_moment_come_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    """A file system lists folders in an order of its own, and its clock may tick slowly."""
    for name in ("b", "a", "c"):
        write(tmp_path / name, ["{}"])
        os.utime(tmp_path / name / "metrics.jsonl", (5, 5))
    listed = sorted(tmp_path.iterdir(), reverse=backwards)
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(listed))
    assert [run.name for run in find_runs(tmp_path)] == ["a", "b", "c"]


@pytest.mark.parametrize(("name", "said"), [("none", "is not a folder"), ("empty", "holds no run")])
def test_a_folder_without_a_run_is_refused(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SetupError, match=said):
        find_runs(tmp_path / name)


def test_damaged_lines_of_the_record_are_counted(tmp_path: Path) -> None:
    """They carry no checksum: a line that can be read is believed, one that cannot costs itself alone."""
    good = b'{"step": 1, "prompt": "p", "completion": "c"}\n'
    for name in ("samples.jsonl", "alarms.jsonl"):
        (tmp_path / name).write_bytes(good + good[:20] + b"\xff\x00" + good[20:-3] + b"\n" + good)
    run = read_run(tmp_path)
    assert len(run.samples) == len(run.alarms) == 2
    assert run.unread == [
        f"{name}: 1 of 3 lines are not JSON objects of a step (first: line 2); left out."
        for name in ("samples.jsonl", "alarms.jsonl")
    ]
