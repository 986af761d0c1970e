"""The live view says everything at 80 columns, and a plain line elsewhere."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from strop.watch.progress import LiveView, NotebookView, ProgressDisplay, clock

ARGS: Any = SimpleNamespace(method="online_dpo", disable_tqdm=False)
LOGS = {"loss": 0.6931, "rewards/margins": 0.1234, "rewards/accuracies": 0.75, "grad_norm": 12.3456, "kl": 0.01}


def state(step: int, total: int = 12000) -> Any:
    return SimpleNamespace(
        is_world_process_zero=True, max_steps=total, global_step=step, num_input_tokens_seen=step * 100
    )


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, legacy_windows=False)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_step_times_and_numbers_are_never_cut_away(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strop.watch.progress.time.monotonic", lambda: 0.0)
    view = LiveView("online_dpo", 12000, 3000, terminal(width))
    view.step, view.tokens, view.metrics = 3400, 340000, "loss 0.6931  rewards/margins 0.1234  kl 0.01  " + "x" * 300
    monkeypatch.setattr("strop.watch.progress.time.monotonic", lambda: 4000.0)
    console = terminal(width)
    console.print(view)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 2 and all(len(line) <= width for line in lines)
    assert "online_dpo 3400/12000" in lines[0] and "1:06:40 gone, 23:53:20 left" in lines[0]
    assert "loss 0.6931" in lines[1]
    assert ("85 tokens/s" in lines[0]) == (width >= 80)


def test_a_run_in_a_terminal_and_elsewhere() -> None:
    console = terminal(80)
    display = ProgressDisplay(console)
    display.on_train_begin(ARGS, state(0), None)
    assert display.view is not None
    display.on_step_end(ARGS, state(1), None)
    display.on_log(ARGS, state(1), None, logs=LOGS)
    assert display.view.step == 1 and display.view.metrics.startswith("loss 0.6931")
    display.on_train_end(ARGS, state(1), None)
    last = console.file.getvalue().splitlines()[-1]  # type: ignore[attr-defined]
    assert "online_dpo 1/12000  loss 0.6931" in last and "kl 0.01" in last, "the view is wiped away, its numbers stay"
    plain = Console(file=io.StringIO(), width=80)
    display = ProgressDisplay(plain)
    display.on_train_begin(ARGS, state(0), None)
    display.on_log(ARGS, state(1), None, logs=LOGS)
    text = plain.file.getvalue()  # type: ignore[attr-defined]
    assert display.view is None and text.startswith("online_dpo     1/12000  loss 0.6931  rewards/margins 0.1234")
    display.on_log(ARGS, state(0, total=0), None, logs={"eval_loss": 0.7})
    assert plain.file.getvalue().endswith("online_dpo before training  eval_loss 0.7\n")  # type: ignore[attr-defined]


@pytest.mark.parametrize(("seconds", "said"), [(None, "-"), (0.2, "0:00"), (65, "1:05"), (7800, "2:10:00")])
def test_times(seconds: float | None, said: str) -> None:
    assert clock(seconds) == said


def test_a_notebook_has_one_output_that_is_written_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    output = SimpleNamespace(update=shown.append)
    fake = SimpleNamespace(HTML=str, display=lambda text, display_id: (shown.append(text), output)[1])
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=fake))
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    monkeypatch.setattr(NotebookView, "LEAST_SECONDS", 0.0)
    console = Console(file=io.StringIO(), force_jupyter=True)
    display = ProgressDisplay(console)
    display.on_train_begin(ARGS, state(0), None)
    display.on_log(ARGS, state(1), None, logs={"loss": 0.5, "<b>": 1.0})
    display.on_step_end(ARGS, state(1), None)
    display.on_train_end(ARGS, state(1), None)
    assert len(shown) == 3 and "0/12000" in shown[0] and "1/12000" in shown[1]
    assert "loss 0.5" in shown[2] and "&lt;b&gt; 1" in shown[2] and "<progress" in shown[2]
