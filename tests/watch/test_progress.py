from __future__ import annotations

from types import SimpleNamespace

import pytest
from rich.console import Console

from strop.watch.progress import ProgressDisplay

STATE = SimpleNamespace(is_world_process_zero=True, max_steps=10, global_step=3)
ARGS = SimpleNamespace(disable_tqdm=False, method="dpo")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_metric_may_be_called_anything(terminal, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    display = ProgressDisplay(Console(force_terminal=terminal, width=200))
    display.on_train_begin(ARGS, STATE, None)
    assert (display.live is not None) == terminal
    for logs in ({"loss": 1.0, "[/red]": 2.0, "\x1b[2J": 3.0}, {"eval_[/red]x_loss": 1.0}):
        display.on_log(ARGS, STATE, None, logs)
    if display.live is not None:
        display.live.refresh()
    display.on_train_end(ARGS, STATE, None)
    out = capsys.readouterr().out
    assert "[/red]" in out and "\x1b[2J" not in out
