"""What online runs keep of their completions: samples.jsonl, and the table in the terminal, at every log."""

from __future__ import annotations

import io
import json
import sys

import pytest
from rich.console import Console

from strop.testing.cases import letters_reward, make_trainer
from strop.watch.progress import LiveView
from strop.watch.samples import show_samples


def even_length(completion_ids, **columns):
    return [1.0 if len(ids) % 2 == 0 else None for ids in completion_ids]


def test_samples_hold_every_reward_and_the_advantage(tmp_path, capsys):
    options = {"num_generations": 2, "logging_steps": 2, "max_steps": 4, "stop_token_ids": list(range(4, 200, 6))}
    trainer = make_trainer(
        "grpo", tmp_path, trainer={"reward_funcs": [letters_reward, even_length]}, reward_weights=[1.0, 0.5],
        log_completions=True, num_completions_to_print=2, **options,
    )  # fmt: skip
    trainer.train()
    rows = [
        json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "samples.jsonl").read_text().splitlines()
    ]
    assert sorted({row["step"] for row in rows}) == [1, 3] and len(rows) == 2 * 4  # updates that the policy had seen
    for row in rows:
        assert {"prompt", "completion", "finish_reason", "rewards", "reward", "advantage"} <= row.keys()
        first, second = row["rewards"]["letters_reward"], row["rewards"]["even_length"]
        assert row["reward"] == pytest.approx(first + 0.5 * (second or 0.0))
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    assert all(a["prompt"] == b["prompt"] and a["advantage"] == pytest.approx(-b["advantage"]) for a, b in pairs)
    assert any(a["advantage"] for a, _ in pairs)
    out = capsys.readouterr().out
    assert out.count("completion") >= 2 and out.count("advantage") == 2


def test_the_table_shows_the_best_and_the_worst(capsys):
    rows = [{"prompt": f"p{i % 2}", "completion": f"c{i}", "reward": float(i), "advantage": 0.0} for i in range(6)]
    show_samples(rows, 2, console=Console(width=100))
    out = capsys.readouterr().out
    assert "c5" in out and "c0" in out and "c3" not in out
    show_samples(rows, 6, unique_prompts=True, console=Console(width=100))
    out = capsys.readouterr().out
    assert out.count("p0") == out.count("p1") == 1


def test_text_of_a_model_does_nothing_in_the_terminal(capsys):
    evil = "\x1b]8;;http://x\x07click\x1b[2J [/red][bold]"
    rows = [{"prompt": evil, "completion": evil, "reward": 1.0, "notes": {evil: evil}}]
    console = Console(width=200, force_terminal=False)
    show_samples(rows, 1, console=console)
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "[/red]" in out


def test_a_table_beside_the_live_view_takes_its_place_and_does_not_write_across_it(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(written, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", written)
    monkeypatch.setenv("TERM", "xterm")
    view = LiveView("grpo", 10, 0, Console(force_terminal=True, width=80, color_system=None, legacy_windows=False))
    view.live.auto_refresh = False
    view.start()
    view.live.refresh()
    before = len(written.getvalue())
    show_samples([{"prompt": "p", "completion": "c", "reward": 1.0}], 1)
    view.stop()
    after = written.getvalue()[before:]
    assert "\x1b[2K" in after[: after.index("prompt")], "the view is wiped away before the table is printed"
