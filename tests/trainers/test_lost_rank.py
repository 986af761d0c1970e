"""One of several processes dies or stalls: the others end in bounded time and say who is lost and where to go on."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from strop.errors import LostRankError, RewardError
from strop.testing.lost_ranks import train_and_fall
from strop.testing.processes import _free_port, start
from strop.trainers import lost_ranks
from strop.trainers.lost_ranks import is_broken_collective, lost_ranks_named

SECONDS = 150
STALL_SECONDS = 4


def run(folder: Path, verb: str, falls: int, moment: str, number: int, *, world: int = 2, timeout: int = 1800) -> float:
    """Let rank `falls` fall; every other rank must end by itself, with status 1. Returns the seconds it took."""
    folder.mkdir(exist_ok=True)
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    begin = time.monotonic()
    ranks = [
        start(
            train_and_fall, str(folder), verb, falls, moment, number, timeout,
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        for rank, process in enumerate(ranks):
            if rank != falls:
                process.join(max(1.0, SECONDS - (time.monotonic() - begin)))
                assert process.exitcode == 1, f"rank {rank}: {process.exitcode} (None: it hangs)"
    finally:
        for process in ranks:
            process.kill()
    return time.monotonic() - begin


@pytest.mark.parametrize(
    ("verb", "falls", "moment", "newest"),
    [
        ("dpo", 1, "backward", 1),
        ("grpo", 1, "reward", 1),
        ("grpo", 0, "sampling", 1),
        ("sft", 0, "checkpoint", 1),
        ("sft", 1, "checkpoint", 1),
    ],
    ids=lambda value: str(value),
)
def test_a_killed_rank_ends_the_others_with_its_name(
    verb: str, falls: int, moment: str, newest: int, tmp_path: Path
) -> None:
    run(tmp_path, verb, falls, moment, signal.SIGKILL)
    said = (tmp_path / f"error-{1 - falls}").read_text()
    assert re.match(rf"LostRankError: Rank {1 - falls} ends after step \d: rank {falls} of 2 died or stalled", said)
    assert f"{tmp_path / f'checkpoint-{newest}'}: start all ranks again with resume_from_checkpoint=True" in said


@pytest.mark.parametrize("falls", [0, 1])
def test_a_stalled_rank_ends_the_others_within_the_timeout(falls: int, tmp_path: Path) -> None:
    seconds = run(tmp_path, "dpo", falls, "backward", signal.SIGSTOP, timeout=STALL_SECONDS)
    said = (tmp_path / f"error-{1 - falls}").read_text()
    assert re.match(rf"LostRankError: Rank {1 - falls} ends after step 1: rank {falls} of 2 died or stalled", said)
    assert "checkpoint-1" in said and seconds > STALL_SECONDS


def test_of_three_ranks_both_others_name_the_lost_one(tmp_path: Path) -> None:
    run(tmp_path, "sft", 1, "backward", signal.SIGKILL, world=3)
    for rank in (0, 2):
        assert "rank 1 of 3 died or stalled" in (tmp_path / f"error-{rank}").read_text()


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
