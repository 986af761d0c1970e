"""One of several processes dies or stalls: the others end in bounded time and say who is lost and where to go on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from tests.support.lost_ranks import STEP, train_and_fall
from tests.support.ports import reserved_port
from tests.support.processes import start

from strop.engine import lost_ranks
from strop.engine.checkpoint import checkpoints, problems_of
from strop.engine.lost_ranks import is_broken_collective, lost_ranks_named
from strop.errors import LostRankError, RewardError
from strop.rewards.sandbox.tree import descendants

SECONDS = 200
STALL_SECONDS = 12


@dataclass
class Scene:
    """A run in which rank `falls` is sent `number` at a moment of its second step."""

    verb: str
    falls: int
    moment: str
    number: signal.Signals = signal.SIGKILL
    world: int = 2
    timeout: int = 1800
    ranks: list[BaseProcess] = field(default_factory=list)
    folder: Path = Path()

    def __str__(self) -> str:
        return f"{self.verb} {self.number.name} rank {self.falls} of {self.world} {self.moment}"

    def begin(self, folder: Path, port: int) -> None:
        folder.mkdir()
        self.folder = folder
        shared = {"WORLD_SIZE": str(self.world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        arguments = (str(folder), self.verb, self.falls, self.moment, self.number, self.timeout)
        for rank in range(self.world):
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            self.ranks.append(start(train_and_fall, *arguments, environment=environment))

    @property
    def others(self) -> list[int]:
        return [rank for rank in range(self.world) if rank != self.falls]


KILLED = [
    Scene("dpo", 1, "backward"),
    Scene("grpo", 1, "reward"),
    Scene("grpo", 0, "sampling"),
    Scene("sft", 0, "checkpoint"),
    Scene("sft", 1, "checkpoint"),
    Scene("sft", 1, "backward", world=4),
    Scene("sft", 0, "evaluation"),
]
STALLED = [Scene("dpo", falls, "backward", signal.SIGSTOP, timeout=STALL_SECONDS) for falls in (0, 1)]

ASKED = [Scene("dpo", 1, "backward", signal.SIGTERM), Scene("grpo", 0, "sampling", signal.SIGINT)]
"""One rank is asked to end, as a person or a machine that goes does it."""


@pytest.fixture(scope="module")
def over(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All runs, at the same time; over when every rank that did not fall has ended by itself, or time is up."""
    place = tmp_path_factory.mktemp("lost")
    scenes = [*KILLED, *STALLED, *ASKED]
    held = ExitStack()
    try:
        for index, scene in enumerate(scenes):
            scene.begin(place / str(index), held.enter_context(reserved_port()))
        deadline = time.monotonic() + SECONDS
        for scene in scenes:
            for rank in range(scene.world) if scene in ASKED else scene.others:
                scene.ranks[rank].join(max(0.1, deadline - time.monotonic()))
        yield
    finally:
        held.close()
        for scene in scenes:
            for process in scene.ranks:
                process.kill()


@pytest.mark.parametrize("scene", [*KILLED, *STALLED], ids=str)
def test_the_others_end_with_the_name_of_the_lost_rank(scene: Scene, over: None) -> None:
    for rank in scene.others:
        assert scene.ranks[rank].exitcode == 1, f"rank {rank} (None: it hangs)"
        said = (scene.folder / f"error-{rank}").read_text()
        lost = f"rank {scene.falls} of {scene.world} died or stalled"
        assert re.match(rf"LostRankError: Rank {rank} ends after step \d: {lost}", said), said
        newest = (
            f"checkpoint is {scene.folder / 'checkpoint-1'}: start all ranks again with resume_from_checkpoint=True"
        )
        assert (newest if scene.moment != "evaluation" else "There is no checkpoint in") in said


@pytest.mark.parametrize("scene", ASKED, ids=str)
def test_all_ranks_end_after_the_step_in_which_one_is_asked(scene: Scene, over: None) -> None:
    codes = {rank: 128 + (scene.number if rank == scene.falls else signal.SIGTERM) for rank in range(scene.world)}
    assert {rank: process.exitcode for rank, process in enumerate(scene.ranks)} == codes
    newest = checkpoints(scene.folder)[0]
    assert newest.name == f"checkpoint-{STEP}" and not problems_of(newest)


@pytest.fixture
def port() -> Iterator[int]:
    with reserved_port() as port:
        yield port


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("world", [2, 4])
def test_a_launcher_that_is_asked_to_end_leaves_a_checkpoint_and_no_rank(
    world: int, number: signal.Signals, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"from tests.support.lost_ranks import train_for_long; train_for_long({str(tmp_path)!r})")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", str(script)]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        deadline = time.monotonic() + SECONDS
        while not checkpoints(tmp_path):
            assert time.monotonic() < deadline and launcher.poll() is None
            time.sleep(0.05)
        ranks = descendants(launcher.pid)
        launcher.send_signal(number)
        said, _ = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert f"Stopped by {number.name} after step" in said and len(ranks) >= world
    assert not [pid for pid in ranks if Path(f"/proc/{pid}").exists()]
    assert not problems_of(checkpoints(tmp_path)[0])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stalled"])
@pytest.mark.parametrize(("world", "falls"), [(2, 0), (2, 1), (4, 1)])
def test_scripts_end_too(world: int, falls: int, number: signal.Signals, port: int, tmp_path: Path) -> None:
    """An interpreter that ends takes down threads and process group as well: it must not hang there."""
    arguments = (str(tmp_path), "dpo", falls, "backward", int(number), STALL_SECONDS)
    code = f"from tests.support.lost_ranks import train_and_fall; train_and_fall(*{arguments!r})"
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    others = [rank for rank in range(world) if rank != falls]
    try:
        said = {rank: ranks[rank].communicate(timeout=SECONDS)[1] for rank in others}
    finally:
        for process in ranks:
            process.kill()
    for rank in others:
        assert ranks[rank].returncode == 1
        assert f"LostRankError: Rank {rank} ends after step 1: rank {falls} of {world} died or stalled" in said[rank]


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (RuntimeError("[pair.cc:547] Connection closed by peer [127.0.0.1]:2000"), True),
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting"), True),
        (dist.DistBackendError("NCCL communicator was aborted on rank 1"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), False),
    ],
    ids=["closed", "gloo", "nccl", "another"],
)
def test_only_broken_meetings_are_taken_for_lost_ranks(error: RuntimeError, broken: bool) -> None:
    assert is_broken_collective(error) is broken


def trainer_of_two(folder: Path) -> SimpleNamespace:
    args = SimpleNamespace(process_index=0, world_size=2, ddp_timeout=7, output_dir=str(folder))
    state = SimpleNamespace(global_step=3)
    return SimpleNamespace(args=args, state=state, heartbeat=None, newest_checkpoint=lambda: None)


def test_ranks_that_all_live_are_told_about_the_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost_ranks.Heartbeat, "silent_ranks", lambda self: [])
    said = r"did not meet within ddp_timeout=7 seconds.*There is no checkpoint"
    with pytest.raises(LostRankError, match=said), lost_ranks_named(trainer_of_two(tmp_path)):
        raise RuntimeError("gloo: Timed out waiting 7000ms for recv operation to complete")


def test_errors_of_the_run_itself_pass_through(tmp_path: Path) -> None:
    for error in (RewardError("reward: Socket closed by peer"), RuntimeError("out of memory"), KeyError("gloo")):
        trainer = trainer_of_two(tmp_path)
        with pytest.raises(type(error)) as caught, lost_ranks_named(trainer):
            raise error
        assert caught.value is error and trainer.heartbeat is None


def test_a_store_that_is_gone_before_the_heart_beats_tells_who_is_lost(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_ranks, "STORE_SECONDS", 0.2)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert lost_ranks.Heartbeat(1, 2).silent_ranks() == [0]
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert lost_ranks.Heartbeat(1, 2).silent_ranks() is None
