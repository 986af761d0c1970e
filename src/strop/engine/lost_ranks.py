"""When another process of a run dies or stalls: an error that names it, in bounded time, in place of a foreign one.

Every rank shows that it lives by counting in the store through which the ranks met. A collective operation that
breaks, or that does not complete within `ddp_timeout`, sends the ranks that are left to look whose count stands still.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from strop.errors import LostRankError, StropError
from strop.plain_text import first_line

if TYPE_CHECKING:
    from strop.engine.trainer import BaseTrainer

BEAT_SECONDS = 0.5
SILENT_SECONDS = 3.0
"""A rank whose count stands still for so long is lost."""
STORE_SECONDS = 5.0
"""The store lives in rank 0, unless a launcher keeps it; it does not answer if that one is lost."""
VERDICT = "strop/lost"
BROKEN = re.compile(r"gloo|NCCL|closed by peer|reset by peer|Timed out waiting|Broken pipe|Socket")


class Heartbeat:
    """Counts for this rank in a thread, and reads how the other ranks count.

    The connection is made at once, while all ranks are there: making one holds the interpreter's lock until the store
    answers, using it does not.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.others = [other for other in range(world_size) if other != rank]
        self.told: list[int] = []  # who is lost, from a rank that found it out before
        self._key, self._over = beat_of(rank), threading.Event()
        self._store: Any = None
        self._hosts_lost: list[int] = []
        try:
            self._store = meeting_place()
        except RuntimeError:  # there was one when the ranks met
            self._hosts_lost = host_of_store()
        if self._store is not None:
            threading.Thread(target=self._beat, name="strop-heartbeat", daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def _beat(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone: whoever looks for silent ranks finds that out
            while not self._over.wait(BEAT_SECONDS):
                self._store.add(self._key, 1)
                if not self.told and self._store.add(VERDICT, 0):
                    self.told = [rank for rank in self.others if self._store.add(f"{VERDICT}/{rank}", 0)]

    def silent_ranks(self) -> list[int] | None:
        """Ranks that do not count any more; None if this cannot be found out."""
        if self._store is None:
            return self._hosts_lost or None
        found: list[list[int] | None] = []
        thread = threading.Thread(target=lambda: found.append(self._compare()), daemon=True)
        thread.start()
        thread.join(STORE_SECONDS + SILENT_SECONDS + 4 * BEAT_SECONDS)
        if self.told or (found and found[0] is not None):
            return self.told or found[0]
        return host_of_store() or None

    def _compare(self) -> list[int] | None:
        with contextlib.suppress(RuntimeError):
            before = [self._store.add(beat_of(rank), 0) for rank in self.others]
            time.sleep(SILENT_SECONDS)
            after = [self._store.add(beat_of(rank), 0) for rank in self.others]
            silent = [rank for rank, one, other in zip(self.others, before, after, strict=True) if one == other]
            self._tell(silent)
            return silent
        return None

    def _tell(self, silent: list[int]) -> None:
        """Let the other ranks know before this one ends too, which may be what they notice first."""
        for rank in silent:
            self._store.add(f"{VERDICT}/{rank}", 1)
        if silent and len(silent) < len(self.others):
            self._store.add(VERDICT, 1)
            time.sleep(4 * BEAT_SECONDS)


def beat_of(rank: int) -> str:
    return f"strop/beat/{rank}"


def meeting_place() -> Any:
    """A connection of its own to the store through which the ranks met, or None where that is not known.

    Raises:
        RuntimeError: the store does not answer.
    """
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError):
        return None
    patience = timedelta(seconds=STORE_SECONDS)
    return dist.TCPStore(address, port, is_master=False, timeout=patience, wait_for_workers=False)


def host_of_store() -> list[int]:
    """The rank that is lost if the store is: rank 0, unless a launcher keeps it."""
    return [] if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else [0]


@contextlib.contextmanager
def lost_ranks_named(run: BaseTrainer) -> Iterator[None]:
    """Within it, a collective operation that breaks raises `LostRankError`."""
    rank, world = run.args.process_index, run.args.world_size
    if world == 1 or run.heartbeat is not None:
        yield
        return
    run.heartbeat = Heartbeat(rank, world)
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, StropError) or not is_broken_collective(error):
            raise
        raise LostRankError(what_happened(run, run.heartbeat, error)) from error
    finally:
        run.heartbeat.stop()
        run.heartbeat = None


def is_broken_collective(error: RuntimeError) -> bool:
    """Whether an error is about ranks that do not find each other any more."""
    return isinstance(error, dist.DistError) or BROKEN.search(str(error)) is not None


def what_happened(run: BaseTrainer, heartbeat: Heartbeat, error: RuntimeError) -> str:
    """The message: who is lost, what is known about why, and from where to go on."""
    args, step = run.args, run.state.global_step
    silent = heartbeat.silent_ranks()
    cause = first_line(error)[-200:]
    if silent:
        names = f"rank{'s' if len(silent) > 1 else ''} {', '.join(map(str, silent))} of {args.world_size}"
        who = f"{names} died or stalled. What it printed last, or its machine, says why"
    elif silent is None:
        who = "another rank died or stalled. What it printed last, or its machine, says why"
    else:
        who = (
            f"the ranks did not meet within ddp_timeout={args.ddp_timeout} seconds, though all of them live. Raise it "
            "above what one rank may wait for another (rewards, sampling, tokenising)"
        )
    newest = run.newest_checkpoint()
    go_on = (
        f"The newest complete checkpoint is {newest}: start all ranks again with resume_from_checkpoint=True (on "
        "the command line --resume)."
        if newest is not None
        else f"There is no checkpoint in {args.output_dir} yet: start all ranks again."
    )
    return f"Rank {args.process_index} ends after step {step}: {who} ({cause}). {go_on}"
