"""The live view says everything at 80 columns, and a plain line elsewhere."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl

from strop.methods.registry import BY_VERB
from strop.testing.cases import make_trainer
from strop.watch.progress import LiveView, NotebookView, ProgressDisplay, clock

ARGS: Any = SimpleNamespace(method="online_dpo", disable_tqdm=False, headline=())
LOGS = {"loss": 0.6931, "rewards/margins": 0.1234, "rewards/accuracies": 0.75, "grad_norm": 12.3456, "kl": 0.01}


def state(step: int, total: int = 12000) -> Any:
    return SimpleNamespace(
        is_world_process_zero=True, max_steps=total, global_step=step, num_input_tokens_seen=step * 100
    )


TIMES = ["14:05:19 gone", "100 h left", "243413 tokens/s", "123 GiB"]


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, legacy_windows=False)


@pytest.mark.parametrize("verb", BY_VERB)
@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_nothing_is_cut_away_whatever_the_numbers(verb: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strop.watch.progress.time.monotonic", lambda: 0.0)
    config = BY_VERB[verb].config()
    view = LiveView(BY_VERB[verb].prefix.lower(), 1_000_000, 0, terminal(width), config.headline)
    view.step, view.tokens = 123_456, 12_345_678_901
    named = [
        "loss",
        *config.headline,
        "rewards/accuracies",
        f"rewards/{'letters_' * 8}reward/mean",
        "grad_norm",
        "奖励",
    ]
    view.logs = {name: -123456.789 for name in named} | {"memory_peak": 123.456, "loss": 1e5, "sampling_time": 1.0}
    monkeypatch.setattr("strop.watch.progress.time.monotonic", lambda: 50_719.0)  # and 100 hours left
    console = terminal(width)
    console.print(view)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 2 and all(cell_len(line) <= width for line in lines)
    assert lines[0].startswith(f"{view.method} 123456/1000000 ")
    times = lines[0][lines[0].index("1", len(f"{view.method} 123456/1000000")) :].split(", ")
    least = {60: 1, 80: 3}.get(width, 4)
    assert len(times) >= least and times in [TIMES[:4], TIMES[:3], TIMES[:2], TIMES[1:2]], lines[0]
    whole = [f"{name} {view.logs[name]:.4g}" for name in named]
    assert set(lines[1].rstrip().split("  ")) <= set(whole), "a number is there or not, and never a part of it"
    assert lines[1].startswith("  ".join(whole[:2]))


def test_a_line_that_stays_fits_the_terminal_and_is_whole_in_a_file() -> None:
    logs = {"eval_loss": 0.7} | {f"eval_rewards/{'letters_' * 4}{n}/mean": 1e5 for n in range(5)}
    at_60 = Console(file=io.StringIO(), force_terminal=True, width=60)
    for console, shown in ((at_60, 1), (Console(file=io.StringIO(), width=60), 5)):
        ProgressDisplay(console).on_log(ARGS, state(123_456, 1_000_000), None, logs=logs)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert text.count("\n") == 1 and text.count("eval_") == shown and text.count("0.7") == 1, text


def test_a_run_in_a_terminal_and_elsewhere() -> None:
    console = terminal(80)
    display = ProgressDisplay(console)
    display.on_train_begin(ARGS, state(0), None)
    assert display.view is not None
    display.on_step_end(ARGS, state(1), TrainerControl())
    display.on_log(ARGS, state(1), None, logs=LOGS)
    display.on_log(ARGS, state(1), None, logs={"loss": 0.6931})
    assert display.view.step == 1 and display.view.logs == LOGS, "what this line does not say was said before"
    display.on_train_end(ARGS, state(1), None)
    last = console.file.getvalue().splitlines()[-1]  # type: ignore[attr-defined]
    assert "online_dpo 1/12000  loss 0.6931" in last and last.endswith("accuracies 0.75"), "its numbers stay"
    plain = Console(file=io.StringIO(), width=80)
    display = ProgressDisplay(plain)
    display.on_train_begin(ARGS, state(0), None)
    display.on_log(ARGS, state(1), None, logs=LOGS)
    text = plain.file.getvalue()  # type: ignore[attr-defined]
    assert display.view is None and text.startswith("online_dpo     1/12000  loss 0.6931  rewards/margins 0.1234")
    display.on_log(ARGS, state(0, total=0), None, logs={"eval_loss": 0.7})
    assert plain.file.getvalue().endswith("online_dpo before training  eval_loss 0.7\n")  # type: ignore[attr-defined]


def test_between_steps_it_says_what_is_being_done() -> None:
    console = terminal(80)
    display = ProgressDisplay(console)
    said: list[str] = []

    def then(event: str, **control: bool) -> None:
        getattr(display, event)(ARGS, state(12000), TrainerControl(**control))
        assert display.view is not None
        said.append(display.view.times().split(", ")[1])

    then("on_train_begin")
    then("on_step_begin")
    at_the_end = {"should_evaluate": True, "should_save": True, "should_training_stop": True}
    for event in ("on_step_end", "on_evaluate", "on_save"):
        then(event, **at_the_end)
    assert said == ["preparing", "- left", "evaluating", "saving", "ending"]


class Fails(TrainerCallback):
    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a cable was pulled")


def test_a_run_that_fails_gives_the_terminal_back_and_notes_why(tmp_path: Path) -> None:
    console = terminal(80)
    watching = [ProgressDisplay(console), Fails()]
    trainer = make_trainer("sft", tmp_path, disable_tqdm=False, trainer={"callbacks": watching})
    with pytest.raises(RuntimeError, match="a cable"):
        trainer.train()
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l"), "the cursor is shown again"
    noted = json.loads((tmp_path / "run.json").read_text())
    assert noted["failed"] == "RuntimeError: a cable was pulled" and noted["failed_at"] == 1


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, "-"), (0.2, "0:00"), (65, "1:05"), (7800, "2:10:00"), (360_000, "100 h")]
)
def test_times(seconds: float | None, said: str) -> None:
    assert clock(seconds) == said


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What stands below a cell, writing by writing."""
    shown: list[dict[str, str]] = []
    output = SimpleNamespace(update=lambda bundle, raw: shown.append(bundle))
    fake = SimpleNamespace(display=lambda bundle, raw, display_id: (shown.append(bundle), output)[1])
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=fake))
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    monkeypatch.setattr(NotebookView, "LEAST_SECONDS", 0.0)
    return shown


def test_a_notebook_has_one_output_that_is_written_anew(cell: list[dict[str, str]]) -> None:
    display = ProgressDisplay(Console(file=io.StringIO(), force_jupyter=True))
    display.on_train_begin(ARGS, state(0), None)
    display.on_log(ARGS, state(1), None, logs={"loss": 0.5, "<b>": 1.0})
    display.on_step_end(ARGS, state(1), TrainerControl())
    display.on_train_end(ARGS, state(1), None)
    shown = [bundle["text/html"] for bundle in cell]
    assert len(shown) == 3 and "0/12000" in shown[0] and "1/12000" in shown[1]
    assert "loss 0.5" in shown[2] and "&lt;b&gt; 1" in shown[2] and "<progress" in shown[2]
    plain = cell[2]["text/plain"].splitlines()
    assert plain[0].startswith("online_dpo 1/12000  ") and plain[1] == "loss 0.5  <b> 1"


@pytest.mark.parametrize(("step", "word"), [(12000, "done after 0:0"), (3, "stopped after 0:0")])
def test_what_a_notebook_keeps_says_how_the_run_ended(step: int, word: str, cell: list[dict[str, str]]) -> None:
    """Its file has the last writing for ever: nothing is left, being done or ending then."""
    display = ProgressDisplay(Console(file=io.StringIO(), force_jupyter=True))
    display.on_train_begin(ARGS, state(0), None)
    display.on_step_end(ARGS, state(step), SimpleNamespace(**vars(TrainerControl()) | {"should_training_stop": True}))
    display.close()  # as a run that failed, too
    for text in cell[-1].values():
        assert word in text and "left" not in text and "ending" not in text and "gone" not in text
