"""What a call in this process cannot give: a process outside says which reward it was, and ends the run if need be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from tests.support.patience import with_patience

import strop
from strop.rewards import watchdog
from strop.rewards.watchdog_process import is_stopped

SCRIPT = """
import os, sys, threading, time
from types import SimpleNamespace
from strop.rewards import RewardSet, watchdog

watchdog.GRACE_SECONDS = float(sys.argv[3])

def trouble(completions, **kwargs):
    text = completions[0]
    if text == "native":
        sum(range(10**13))
    if text == "exit":
        os._exit(3)
    if text == "crash":
        import ctypes
        ctypes.string_at(0)
    if text == "thread":
        time.sleep(100)
    if text == "model":
        return [1.0] * len(completions)
    if text == "sys.exit":
        sys.exit(5)
    return [1.0] * len(completions)

class Model:
    runs_models = True

    def __call__(self, completions, **kwargs):
        if completions[0] == "model":
            os._exit(3)
        return [1.0] * len(completions)

async def blocking(completions, **kwargs):
    if completions[0] == "async":
        sum(range(10**13))
    return [1.0] * len(completions)

options = {"timeout_seconds": float(sys.argv[3]), "on_error": "skip", "run_directory": lambda: sys.argv[1]}
rewards = RewardSet([trouble, Model(), blocking], **options)
work = lambda: rewards.score(["p"], [sys.argv[2]], trainer_state=SimpleNamespace(global_step=7))
if sys.argv[2] == "thread":
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print("scored", work().values.tolist())
"""


HINT = "reward_isolation=True"


def run(folder: Path, trouble: str, seconds: float) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(strop.__file__).parents[1])}
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), trouble, str(seconds)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=False)


@pytest.mark.parametrize(
    ("trouble", "code", "reward", "said"),
    [
        ("native", -signal.SIGKILL, "'trouble'", "has held the run since"),
        ("thread", -signal.SIGKILL, "'trouble'", "not in the main thread"),
        ("async", -signal.SIGKILL, "'blocking'", "has held the run since"),
        ("exit", 3, "'trouble'", "ended in the middle of reward"),
        ("model", 3, "'Model'", "ended in the middle of reward"),
        ("crash", -signal.SIGSEGV, "'trouble'", "ended in the middle of reward"),
    ],
)
@with_patience(0.2, 10.0)
def test_the_run_ends_with_a_named_error(tmp_path, trouble, code, reward, said, seconds):
    folder = tmp_path / str(seconds)
    folder.mkdir()
    done = run(folder, trouble, seconds)
    assert done.returncode == code and "scored" not in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("RewardError")]
    assert reward in line and said in line
    assert (HINT in line) == (reward != "'Model'")  # models stay in this process
    (alarm,) = map(json.loads, (folder / "alarms.jsonl").read_text().splitlines())
    assert alarm == {"step": 7, "alarm": "reward_ended_the_run", "text": line}


@pytest.mark.parametrize(("text", "value"), [("fine", "1.0"), ("sys.exit", "nan")])
def test_nothing_is_said_where_nothing_happened(tmp_path, text, value):
    done = run(tmp_path, text, 60.0)
    assert done.returncode == 0 and done.stdout == f"scored [[{value}], [1.0], [1.0]]\n"
    assert "RewardError: reward" not in done.stderr and not list(tmp_path.iterdir())


def test_one_process_serves_all_calls_and_takes_no_part_in_ctrl_c():
    for _ in range(2):
        with watchdog.watch_over("f", 1, 10.0):
            pid = watchdog._outside.pid
            assert watchdog._outside.poll() is None
    assert watchdog._outside.pid == pid and os.getsid(pid) == pid


def test_a_stopped_process_is_told_from_one_that_hangs():
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert not is_stopped(child.pid)
        child.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 60
        while not is_stopped(child.pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        child.kill()
        child.wait()
    assert not is_stopped(child.pid)
