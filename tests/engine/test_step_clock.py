import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from strop.engine.step_clock import GIBIBYTE, StepClock, peak_bytes
from strop.testing.cases import make_trainer, rows_for


def test_parts_add_up_within_a_step_and_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 100.0
    monkeypatch.setattr("strop.engine.step_clock.time", SimpleNamespace(perf_counter=lambda: seconds))
    clock = StepClock()
    seconds += 32
    clock.start()
    for _ in range(2):
        with clock.part("rows"):
            seconds += 2
        seconds += 0.5
    first = clock.metrics()
    assert (first["rows_time"].total, first["step_time"].total) == (4.0, 5.0)
    seconds += 16  # an evaluation
    clock.start()
    seconds += 1
    second = clock.metrics()
    assert second["rows_time"].total == 0 and second["rows_time"].count == 1, "a step without the part counts too"
    assert second["step_time"].total == 1.0


def test_the_peak_grows_with_what_is_held() -> None:
    before = peak_bytes()
    held = bytearray(before + 2**26)
    held[:: 2**12] = b"x" * len(held[:: 2**12])
    assert peak_bytes() - before > 2**25
    assert 0.01 < before / GIBIBYTE < 100


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_clock_that_is_set_during_a_run_changes_no_metric(
    hours: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps, wall = iter(range(10**9)), time.time
    monkeypatch.setattr(time, "time", lambda: wall() + 3600 * hours * next(jumps))
    begin = time.monotonic()
    trainer = make_trainer("sft", tmp_path, max_steps=2, eval_rows=rows_for("sft", 4), eval_strategy="steps",
                           eval_steps=1, logging_steps=1)  # fmt: skip
    result, evaluated = trainer.train(), trainer.evaluate()
    most = time.monotonic() - begin
    lines = [*trainer.state.log_history, result.metrics, evaluated]
    runtimes = [line[name] for line in lines for name in line if name.endswith("_runtime")]
    assert len(runtimes) >= 5 and all(0 < seconds < most for seconds in runtimes)
    assert not [name for name in [*result.metrics, *evaluated] if name.endswith("_per_second")]
    assert len([line for line in trainer.state.log_history if "loss" in line]) == 2
