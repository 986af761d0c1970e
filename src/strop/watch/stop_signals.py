"""SIGTERM and SIGINT end a run after the step in progress, with a checkpoint: preempted machines lose nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy, get_last_checkpoint

from strop.collectives import sum_over_ranks
from strop.settings.config import TrainerConfig
from strop.watch.say import say, show_cursor

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals(TrainerCallback):
    """While training runs, the first signal asks for a checkpoint and an end; a second one ends the process at once.

    All ranks end after the same step, whichever of them was asked. With `stop_grace`, the process ends at its last
    checkpoint where that takes longer.
    """

    def __init__(self, args: TrainerConfig) -> None:
        self.args = args
        self.step = 0  # the last one that was finished
        self.received: int | None = None
        self.training = False
        self._before: dict[int, Any] = {}
        self._countdown: Countdown | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.received, self.training, self.step = None, True, state.global_step
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self.receive) for number in SIGNALS}
            if self.args.stop_grace is not None:
                self._countdown = Countdown(self.args.stop_grace, self.give_up)
            _handling.add(self)

    def receive(self, number: int, frame: Any) -> None:
        """Remember the signal, and let the next one do what it did before."""
        self.received = number
        self._give_back()

    def restore(self) -> None:
        """Give the signals back to whoever handled them before, and stop counting."""
        self._give_back()
        self.training = False
        _handling.discard(self)
        if self._countdown is not None:
            self._countdown.stop()
            self._countdown = None

    def pause(self) -> None:
        if self._countdown is not None:
            self._countdown.listen(False)

    def resume(self) -> None:
        if self._countdown is not None:
            self._countdown.listen(True)
            if self.received is not None:  # meanwhile, perhaps
                self._countdown.begin(self.received)

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step = state.global_step
        saved_later = args.save_strategy == SaveStrategy.EPOCH and not state.epoch % 1
        self._stop_if_asked(control, saves=not saved_later)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.training:  # it may have been the last one, so that no step comes any more
            self._stop_if_asked(control)

    def _stop_if_asked(self, control: Any, *, saves: bool = True) -> None:
        asked = sum_over_ranks({"stop": float(self.received or 0)}, self.args.world_size)["stop"]
        if asked:
            self.received = self.received or signal.SIGTERM
            control.should_training_stop = True
            control.should_save = control.should_save or saves

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.received and control.should_training_stop and state.epoch % 1:
            # the epoch did not end, the run did, which will be gone on with
            control.should_evaluate = control.should_save = control.should_log = False

    def leave(self) -> None:
        """After training: end the process if a signal asked for it, and say how to go on.

        Raises:
            SystemExit: with the exit status that the signal would have given, 143 or 130.
        """
        if self.received is None:
            return
        say(
            self.args, f"Stopped by {signal.Signals(self.received).name} after step {self.step}. {self._how_to_go_on()}"
        )
        raise SystemExit(128 + self.received)

    def give_up(self, number: int) -> None:
        """End the process now, in whatever step it is."""
        say(
            self.args,
            f"Stopped by {signal.Signals(number).name} in the course of step {self.step + 1}, which did not end within "
            f"stop_grace={self.args.stop_grace} seconds. {self._how_to_go_on()}",
        )
        show_cursor()
        os._exit(128 + number)

    def _how_to_go_on(self) -> str:
        folder = Path(str(self.args.output_dir))
        newest = get_last_checkpoint(folder) if folder.is_dir() else None
        if newest is None:
            return f"There is no checkpoint in {folder}, from which one could go on."
        return (
            f"The newest checkpoint is {newest}. Go on with trainer.train(resume_from_checkpoint=True), on the "
            "command line with --resume."
        )


_handling: set[StopSignals] = set()


def _tell_all(act: Callable[[StopSignals], None]) -> None:
    for signals in list(_handling):
        act(signals)


if hasattr(os, "register_at_fork"):  # a worker is no run: it ends when it is told to, and counts for nobody
    os.register_at_fork(
        before=partial(_tell_all, StopSignals.pause),  # until it has left, a worker would write into the run's pipe
        after_in_parent=partial(_tell_all, StopSignals.resume),
        after_in_child=partial(_tell_all, StopSignals.restore),
    )


class Countdown:
    """Calls `over(signal)` so many seconds after the first signal, unless it is stopped before.

    A thread of its own is told by the interpreter's wakeup pipe: a handler would have to wait for the main thread,
    which may be in a single operation for minutes.
    """

    def __init__(self, seconds: float, over: Callable[[int], None]) -> None:
        self.seconds, self.over = seconds, over
        self._stopped = threading.Event()
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._count, name="strop-stop-grace", daemon=True).start()

    def _count(self) -> None:
        try:
            while data := os.read(self._read, 64):
                for number in filter(SIGNALS.__contains__, data):
                    if not self._stopped.wait(self.seconds):
                        self.over(number)
        finally:
            os.close(self._read)

    def begin(self, number: int) -> None:
        """Count from now at the latest, whether or not the pipe heard of the signal."""
        with contextlib.suppress(BlockingIOError):  # it is full
            os.write(self._write, bytes([number]))

    def listen(self, on: bool) -> None:
        """Whether signals are written into the pipe, which a forked process would share."""
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._write if on else self._before, warn_on_full_buffer=False)

    def stop(self) -> None:
        """From the main thread."""
        self._stopped.set()
        self.listen(False)
        os.close(self._write)
