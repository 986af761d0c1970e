"""SIGTERM and SIGINT end a run after the step in progress, with a checkpoint: preempted machines lose nothing."""

from __future__ import annotations

import signal
import threading
from typing import Any

from transformers import TrainerCallback

from strop.collectives import sum_over_ranks
from strop.settings.config import TrainerConfig
from strop.watch.say import say

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals(TrainerCallback):
    """While training runs, the first signal asks for a checkpoint and an end; a second one ends the process at once.

    All ranks end after the same step, whichever of them was asked.
    """

    def __init__(self, args: TrainerConfig) -> None:
        self.args = args
        self.step = 0  # the last one that was finished
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.received = None
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self.receive) for number in SIGNALS}

    def receive(self, number: int, frame: Any) -> None:
        """Remember the signal, and let the next one do what it did before."""
        self.received = number
        self.restore()

    def restore(self) -> None:
        """Give the signals back to whoever handled them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step = state.global_step
        asked = sum_over_ranks({"stop": float(self.received or 0)}, args.world_size)["stop"]
        if asked:
            self.received = self.received or signal.SIGTERM
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.received and control.should_training_stop and state.epoch % 1:
            # the epoch did not end, the run did, which will be gone on with
            control.should_evaluate = control.should_save = control.should_log = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.restore()

    def leave(self) -> None:
        """After training: end the process if a signal asked for it, and say how to go on.

        Raises:
            SystemExit: with the exit status that the signal would have given, 143 or 130.
        """
        self.restore()
        if self.received is None:
            return
        name = signal.Signals(self.received).name
        say(
            self.args,
            f"Stopped by {name} after step {self.step}; the checkpoint is in {self.args.output_dir}. Go on with "
            "trainer.train(resume_from_checkpoint=True), on the command line with --resume.",
        )
        raise SystemExit(128 + self.received)
