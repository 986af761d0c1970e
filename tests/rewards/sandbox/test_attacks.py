from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from proof.attacks import GRADED, KINDS, PLAIN
from tests.support.patience import with_patience

from strop.rewards.code_execution import run_code
from strop.rewards.code_tests import get_code_reward
from strop.rewards.sandbox.fences import Fences
from strop.rewards.sandbox.places import find_wall

needs_wall = pytest.mark.skipif(find_wall()[0] is None, reason=f"no wall here: {find_wall()[1]}")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes")

_SECONDS = 0.4
_SECRET = "hush-9b1f"
_REPORT_NAMESPACE = "import os as _o\n_o.write(2, b'NS=' + _o.readlink('/proc/self/ns/pid').encode() + b'=\\n')\n"


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """What lies outside and must stay as it is: a folder with a secret, a listener, another process, this one."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "secret.txt").write_text(_SECRET)
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as abstract:
        listener.settimeout(0)
        abstract.bind(f"\0strop-attack-{os.getpid()}")
        abstract.listen()
        abstract.settimeout(0)
        yield folder, victim, (listener, abstract)
    victim.kill()
    victim.wait()


def _state(folder: Path, victim: subprocess.Popen[bytes]) -> object:
    files = sorted((str(path), path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*"))
    pids = (os.getpid(), victim.pid)
    scheduling = [(os.getpriority(os.PRIO_PROCESS, pid), os.sched_getaffinity(pid)) for pid in pids]
    running = Path(f"/proc/{victim.pid}/stat").read_text().rpartition(")")[2].split()[0] in "SR"
    return files, scheduling, running, Path("/proc/self/limits").read_text(), os.path.exists("/usr/strop-attack")


def _left_in(namespace: str, ended: float) -> list[str]:
    """Processes of a namespace that began before the run was over; another run's may have its number by now."""
    left = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.readlink(entry / "ns/pid") == namespace:
                ticks = int((entry / "stat").read_text().rpartition(")")[2].split()[19])
                if ticks / os.sysconf("SC_CLK_TCK") <= ended:
                    left.append(entry.name)
    return left


def _run(name: str, code: str, outside, tmp_path: Path, monkeypatch, tests=(), seconds=_SECONDS, memory=400 << 20):
    """Run an attack; whatever it is, nothing outside has changed, it ended in time, nothing of it is left."""
    folder, victim, listeners = outside
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("STROP_ATTACK_TOKEN", _SECRET)
    known = {"secret": folder / "secret.txt", "folder": folder, "parent": os.getpid(), "victim": victim.pid}
    for key, value in {**known, "port": listeners[0].getsockname()[1]}.items():
        code = code.replace("{" + key + "}", str(value))
    before = _state(folder, victim)
    for limit in (seconds, 10 * seconds, 100 * seconds):  # where other work has the processor, it has not begun yet
        done = run_code(
            _REPORT_NAMESPACE + code, tests=tests, timeout_seconds=limit, memory_limit_bytes=memory, stdin="x"
        )
        if "NS=" in done.stderr:
            break
    ended = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert done.seconds < limit + 30, (name, done)  # what it started sleeps for longer
    assert _state(folder, victim) == before
    assert list(tmp_path.iterdir()) == []
    assert _SECRET not in done.stdout + done.stderr + done.error + "".join(done.errors)
    for listener in listeners:
        with pytest.raises(OSError):
            listener.accept()
    assert "SyntaxError" not in done.error and "NameError" not in done.error  # it did attack
    namespace = done.stderr.partition("NS=")[2].partition("=")[0]
    assert namespace and namespace != os.readlink("/proc/self/ns/pid")
    deadline = time.monotonic() + 60
    while _left_in(namespace, ended) and time.monotonic() < deadline:  # what was killed needs the processor to be gone
        time.sleep(0.01)
    assert _left_in(namespace, ended) == []
    return done


@needs_wall
@pytest.mark.parametrize("name", PLAIN)
def test_nothing_outside_changes(name, outside, tmp_path, monkeypatch):
    _run(name, PLAIN[name], outside, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", GRADED)
def test_no_verdict_is_forged(name, outside, tmp_path, monkeypatch):
    tests = ("assert f(2) == 4", "assert abs(f(3) - 9) < 1e-6")
    if find_wall()[0] is None:  # the grader needs none
        done = run_code(GRADED[name], tests=tests, timeout_seconds=_SECONDS, sandbox=Fences())
    else:
        done = _run(name, GRADED[name], outside, tmp_path, monkeypatch, tests)
    assert done.passed == [False, False], done


@needs_wall
def test_the_list_is_long_enough_and_its_checks_can_fail(outside, tmp_path, monkeypatch):
    assert len(PLAIN) + len(GRADED) >= 40
    assert sorted(name for names in KINDS.values() for name in names) == sorted([*PLAIN, *GRADED])
    honest = _run("honest", "def f(x): return x * x", outside, tmp_path, monkeypatch, ("assert f(2) == 4",), 60.0)
    assert honest.passed == [True]
    with pytest.raises(AssertionError):
        _run("told", f"print('{_SECRET}')", outside, tmp_path, monkeypatch)


@with_patience(_SECONDS, 20.0)
def test_a_whole_batch_of_attacks_is_a_batch_of_zeros(seconds):
    names = ["junk", "a deep message", "odd tags", "a framed verdict", "equal to everything"]
    reward = get_code_reward(partial=True, timeout_seconds=seconds, sandbox=find_wall()[0] or Fences())
    programs = [GRADED[name] for name in names] + ["def f(x): return 4"]
    assert reward(programs, [["assert f(2) == 4", "assert f(3) == 9"]] * 6) == [0.0] * 5 + [0.5]


@needs_wall
def test_processes_of_one_program_are_bounded(outside, tmp_path, monkeypatch):
    code = "import os, time\nn = 0\nfor _ in range(150):\n    try: pid = os.fork()\n    except OSError: break\n"
    code += "    if pid == 0: time.sleep(60)\n    n += 1\nprint('started', n)\nos._exit(0)"
    done = _run("forks", code, outside, tmp_path, monkeypatch)
    assert 0 < int(done.stdout.split()[1]) <= 64


@needs_wall
def test_memory_is_added_up_over_all_processes(outside, tmp_path, monkeypatch):
    attack = PLAIN["memory of many"]
    done = _run("memory of many", attack, outside, tmp_path, monkeypatch, seconds=10, memory=200 << 20)
    assert done.status == "died" and "memory" in done.error
