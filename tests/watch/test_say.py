"""Whoever reads what a run prints may leave, or have no room or no letters for it: the run goes on."""

from __future__ import annotations

import errno
import io
import sys
from pathlib import Path

import pytest

from strop.cli.ending import print_comparison
from strop.testing.cases import make_trainer


class Refusing(io.StringIO):
    """An output that takes nothing."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    flush = write  # type: ignore[assignment]


REFUSALS = {
    "full": OSError(errno.ENOSPC, "No space left on device"),
    "gone": BrokenPipeError(errno.EPIPE, "Broken pipe"),
    "hung up": OSError(errno.EIO, "Input/output error"),
    "closed": ValueError("I/O operation on closed file"),
    "ascii": UnicodeEncodeError("ascii", "ö", 0, 1, "ordinal not in range(128)"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_an_output_that_takes_nothing_costs_what_is_printed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer("grpo", tmp_path, max_steps=1, num_generations=4, log_completions=True, disable_tqdm=False)
    monkeypatch.setattr(sys, "stdout", Refusing(REFUSALS[kind]))
    trainer.say("a line")
    trainer.train()
    assert trainer.state.global_step == 1


def test_a_long_name_in_the_comparison_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    name = f"rewards/{'letters_' * 9}reward/mean"
    print_comparison({f"eval_{name}": 0.5}, {f"eval_{name}": 0.75}, [name])
    said = capsys.readouterr().out
    assert "…" not in said and "0.75" in said and max(map(len, said.splitlines())) <= 80


def test_the_comparison_has_what_a_run_is_judged_by_and_counts_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    before = {f"eval_m{n}": float(n) for n in range(26)} | {"eval_loss": 2.0, "eval_runtime": 1.0}
    print_comparison(before, before | {"eval_loss": 1.25}, ["loss", "kl", *(f"m{n}" for n in range(20, 26))])
    said = capsys.readouterr().out
    assert said.count("│ m2") == 5 and "1.25" in said and "runtime" not in said and "21 more" in said
