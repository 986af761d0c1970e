"""What a signal does to the work that is due at the end of an epoch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from strop.settings.config import TrainerConfig
from strop.watch.stop_signals import StopSignals


def test_a_forked_worker_ends_when_it_is_told_to(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = TrainerConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, stop_grace=0.0)
    signals, given_up = StopSignals(args), list[int]()
    monkeypatch.setattr(signals, "give_up", given_up.append)
    signals.on_train_begin(args, TrainerState(), TrainerControl())
    try:
        context = multiprocessing.get_context("fork")
        begun = context.Event()
        worker = context.Process(target=lambda: (begun.set(), time.sleep(600)), daemon=True)
        worker.start()
        assert begun.wait(60)
        worker.terminate()
        worker.join(60)
        assert worker.exitcode == -signal.SIGTERM and signals.received is None
        time.sleep(0.2)
        assert not given_up
    finally:
        signals.restore()


@pytest.mark.parametrize("to_the_run", [False, True], ids=["to the worker", "to the run"])
def test_a_signal_in_the_course_of_a_fork_counts_for_whom_it_was_sent_to(
    tmp_path, monkeypatch: pytest.MonkeyPatch, to_the_run: bool
) -> None:
    args = TrainerConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, stop_grace=0.0)
    signals, given_up = StopSignals(args), list[int]()
    monkeypatch.setattr(signals, "give_up", given_up.append)
    signals.on_train_begin(args, TrainerState(), TrainerControl())
    run, sent = os.getpid(), []
    name = "set_wakeup_fd" if to_the_run else "signal"  # what is first called while the worker is made, and in it
    inner = getattr(signal, name)

    def signalled(*args: Any, **kwargs: Any) -> Any:
        if not to_the_run and os.getpid() != run:
            os.kill(os.getpid(), signal.SIGTERM)
        result = inner(*args, **kwargs)
        if to_the_run and not sent:
            sent.append(os.kill(run, signal.SIGTERM))
        return result

    monkeypatch.setattr(signal, name, signalled)
    try:
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0.0,))
        worker.start()
        worker.join(60)
        time.sleep(0.2)
        assert bool(given_up) == to_the_run and signals.received == (signal.SIGTERM if to_the_run else None)
    finally:
        monkeypatch.undo()
        signals.restore()


@pytest.mark.parametrize(
    ("epoch", "stopping", "due"),
    [(0.5, True, False), (1.0, True, True), (1.0, False, True), (0.5, False, True)],
    ids=["inside an epoch", "with its last step", "after its last step", "after the last of an unknown number"],
)
def test_an_epoch_that_ended_is_evaluated_saved_and_logged(tmp_path, epoch: float, stopping: bool, due: bool) -> None:
    args = TrainerConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    signals, state = StopSignals(args), TrainerState(epoch=epoch, global_step=4)
    if stopping:
        signals.receive(signal.SIGTERM, None)
        control = TrainerControl()
        signals.on_step_end(args, state, control)
        assert control.should_training_stop and control.should_save
    else:  # it came when all ranks had agreed to go on: one rank alone must not leave an evaluation out
        control = TrainerControl()
        signals.receive(signal.SIGTERM, None)
    control.should_evaluate = control.should_save = control.should_log = True
    signals.on_epoch_end(args, state, control)
    assert [control.should_evaluate, control.should_save, control.should_log] == [due] * 3


@pytest.mark.parametrize(("strategy", "at_once"), [("epoch", False), ("steps", True), ("no", True)])
def test_what_the_end_of_an_epoch_saves_is_saved_once(tmp_path, strategy: str, at_once: bool) -> None:
    args = TrainerConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, save_strategy=strategy)
    for epoch, saves in ((1.0, at_once), (0.5, True)):
        signals, control = StopSignals(args), TrainerControl()
        signals.receive(signal.SIGTERM, None)
        signals.on_step_end(args, TrainerState(epoch=epoch, global_step=4), control)
        assert control.should_training_stop and control.should_save == saves
