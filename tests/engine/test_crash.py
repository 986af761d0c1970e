"""A run may be killed, signalled, or run out of disk at any moment: what it saved before is intact, and it goes on."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.crash import (
    DONE,
    Faults,
    fingerprint,
    tiny_run,
    train_and_never_end,
    train_on_small_disk,
    train_tiny,
    train_until_signalled,
)
from tests.support.processes import start
from transformers import TrainerCallback

from strop.engine.checkpoint import checkpoints, newest_valid, problems_of
from strop.errors import SetupError, StropError
from strop.testing.cases import rows_for

SECONDS = 120


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """The weights of the run when nothing happens to it, and how long it takes in a process of its own."""
    trainer = tiny_run(str(tmp_path_factory.mktemp("undisturbed")))
    trainer.train()
    folder = tmp_path_factory.mktemp("timed")
    train_tiny_alone(folder)
    begin = time.monotonic()
    train_tiny_alone(tmp_path_factory.mktemp("timed"))
    assert (folder / DONE).read_text() == fingerprint(trainer.model)
    return fingerprint(trainer.model), time.monotonic() - begin


def train_tiny_alone(folder: Path, *, kill_after: float | None = None, number: int = signal.SIGKILL) -> int | None:
    """`train_tiny` in a process; killed after so many seconds. Returns its exit code."""
    process = start(train_tiny, str(folder))
    if kill_after is not None:
        process.join(kill_after)
        if process.is_alive():
            process.kill()
    process.join(SECONDS)
    return process.exitcode


def killed_and_resumed(folder: Path, expected: str, seconds: float, seed: int) -> None:
    """One trial: killed at a random moment, resumed, and the same run in the end."""
    moment = random.Random(seed).uniform(0.0, seconds)
    code = train_tiny_alone(folder, kill_after=moment)
    note = f"seed {seed}, killed after {moment:.3f} s: exit code {code}"
    for checkpoint in checkpoints(folder):
        assert not problems_of(checkpoint), f"{note}: {checkpoint.name} is not whole"
    assert train_tiny_alone(folder) == 0, note
    assert (folder / DONE).read_text() == expected, note


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_run_goes_on(seed: int, tmp_path: Path, undisturbed: tuple[str, float]) -> None:
    killed_and_resumed(tmp_path, *undisturbed, seed)


@pytest.mark.slow
def test_two_hundred_kills(tmp_path: Path, undisturbed: tuple[str, float]) -> None:
    for seed in range(100, 300):
        killed_and_resumed(tmp_path / str(seed), *undisturbed, seed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(
    number: signal.Signals, tmp_path: Path, undisturbed: tuple[str, float]
) -> None:
    settings = {"save_steps": 1000}
    process = start(train_until_signalled, str(tmp_path), settings)
    wait_for(tmp_path / "metrics.jsonl")
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(SECONDS)
    assert process.exitcode == 128 + number
    (checkpoint,) = checkpoints(tmp_path)
    step = int(checkpoint.name.split("-")[1])
    assert not problems_of(checkpoint) and step == 2
    printed = (tmp_path / "printed").read_text()
    assert f"Stopped by {number.name} after step {step}" in printed and "resume_from_checkpoint=True" in printed
    assert not (tmp_path / DONE).exists()
    process = start(train_tiny, str(tmp_path), "dpo", settings)
    process.join(SECONDS)
    assert (tmp_path / DONE).read_text() == undisturbed[0]


@pytest.mark.parametrize("settings", [{}, {"save_strategy": "no"}], ids=["with a checkpoint", "without one"])
def test_a_step_that_does_not_end_ends_within_the_grace(settings: dict[str, Any], tmp_path: Path) -> None:
    process = start(train_and_never_end, str(tmp_path), {"stop_grace": 0.5, **settings})
    wait_for(tmp_path / "begun")
    begin = time.monotonic()
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(SECONDS)  # the step takes hours
    assert process.exitcode == 128 + signal.SIGTERM and time.monotonic() - begin >= 0.5
    printed = (tmp_path / "printed").read_text()
    assert "SIGTERM" in printed and "stop_grace=0.5" in printed
    if settings:
        assert "There is no checkpoint" in printed and not checkpoints(tmp_path)
    else:
        assert str(tmp_path / "checkpoint-1") in printed and not problems_of(tmp_path / "checkpoint-1")


def test_a_signal_in_the_last_evaluation_keeps_what_was_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"save_strategy": "no", "eval_strategy": "epoch", "epochs": 1, "eval_rows": rows_for("dpo", 2)}
    trainer = tiny_run(str(tmp_path), **options)
    inner = trainer.evaluate_window

    def signalled(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        inner(*args)

    trainer.evaluate_window = signalled
    with pytest.raises(SystemExit) as left:
        trainer.train()
    assert left.value.code == 128 + signal.SIGTERM
    assert f"checkpoint is {tmp_path / 'checkpoint-2'}" in capsys.readouterr().out
    assert not problems_of(tmp_path / "checkpoint-2")
    again = tiny_run(str(tmp_path), **options)
    again.train(resume_from_checkpoint=True)
    assert fingerprint(again.model) == fingerprint(trainer.model)


def test_no_checkpoint_is_claimed_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = tiny_run(str(tmp_path), save_strategy="no", epochs=1)
    trainer.add_callback(Ending())
    with pytest.raises(SystemExit):
        trainer.train()
    assert "There is no checkpoint" in capsys.readouterr().out and not checkpoints(tmp_path)


class Ending(TrainerCallback):
    """A signal that comes when all is done but the goodbye."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not path.exists() or not path.stat().st_size:
        assert time.monotonic() < deadline, f"{path.name} did not appear"
        time.sleep(0.005)


def test_handlers_are_given_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    trainer = tiny_run(str(tmp_path), epochs=1, save_steps=1000)
    trainer.train()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize("step", [3, 4], ids=["over an older one", "beside it"])
def test_a_fault_at_any_write_leaves_earlier_checkpoints_and_says_so(step: int, tmp_path: Path) -> None:
    trainer = tiny_run(str(tmp_path), "bco", epochs=1, sync_ref_model=True, ref_model_sync_steps=1)
    trainer.train()

    def save(number: int) -> None:
        trainer.state.global_step = number
        trainer._save_checkpoint(trainer.model, None)

    save(3)
    faults = Faults()
    with faults.counting():
        save(step)
    writes = list(faults.calls)
    assert len(writes) > 15 and any("replace" in call for call in writes) and any("save(" in call for call in writes)
    if step == 4:
        shutil.rmtree(tmp_path / "checkpoint-4")
    for number in range(1, len(writes) + 1):
        with faults.failing(number), pytest.raises(StropError) as error:
            save(step)
        assert isinstance(error.value, SetupError), writes[number - 1]
        assert re.search(
            r"step \d could not be written to .*No space left.*Earlier checkpoints are intact", str(error.value)
        )
        found = {path.name for path in checkpoints(tmp_path) if not problems_of(path)}
        assert {"checkpoint-1", "checkpoint-2", "checkpoint-3"} <= found, writes[number - 1]
        assert {path.name for path in checkpoints(tmp_path)} == found, writes[number - 1]
    newest, skipped = newest_valid(tmp_path)
    assert newest is not None and not skipped
    again = tiny_run(str(tmp_path), "bco", epochs=3, sync_ref_model=True, ref_model_sync_steps=1)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 6


@pytest.mark.parametrize("size", [40_000, 160_000], ids=["model", "optimizer"])
def test_a_full_disk_is_named_and_loses_nothing(size: int, tmp_path: Path) -> None:
    process = start(train_on_small_disk, str(tmp_path), size)
    process.join(SECONDS)
    assert process.exitcode == 0
    message = (tmp_path / "error").read_text()
    assert message.startswith("SetupError: The checkpoint of step 2 could not be written"), message
    (checkpoint,) = checkpoints(tmp_path)
    assert checkpoint.name == "checkpoint-1" and not problems_of(checkpoint)
    assert not list(tmp_path.glob(".partial*"))


def test_what_a_kill_left_behind_is_not_mixed_into_the_next_checkpoint(tmp_path: Path) -> None:
    leftover = tmp_path / ".partial-checkpoints" / "checkpoint-1"
    leftover.mkdir(parents=True)
    (leftover / "rng_state_7.pth").write_bytes(b"of another run")
    tiny_run(str(tmp_path), epochs=1).train()
    assert not (tmp_path / "checkpoint-1" / "rng_state_7.pth").exists()
