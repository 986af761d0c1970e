from __future__ import annotations

import os
import subprocess
import sys

import pytest

from strop.errors import SetupError
from strop.rewards.code_execution import run_code
from strop.rewards.code_tests import get_code_reward
from strop.rewards.sandbox import places
from strop.rewards.sandbox.fences import Fences
from strop.rewards.sandbox.wall import Wall

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes")


@pytest.fixture
def no_wall(monkeypatch):
    monkeypatch.setattr(places, "find_wall", lambda: (None, "bwrap is not installed"))


def test_without_a_wall_nothing_runs_and_the_error_says_what_to_do(no_wall, tmp_path):
    with pytest.raises(SetupError) as caught:
        run_code(f"open('{tmp_path}/x', 'w')")
    said = str(caught.value)
    assert (
        "bwrap is not installed" in said and "apt-get install bubblewrap" in said and "allow_unsafe_code=True" in said
    )
    assert "files of this user can be read" in said and not list(tmp_path.iterdir())
    with pytest.raises(SetupError, match="allow_unsafe_code"):
        get_code_reward()(["x = 1"], ["pass"])


def test_whoever_allows_it_is_told_what_is_missing(no_wall, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.warns(UserWarning, match="without a wall .*Missing: files of this user"):
        done = run_code("def f(x): return x", tests=["assert f(2) == 2", "assert f(2) == 3"], allow_unsafe_code=True)
    assert done.passed == [True, False] and done.missing == list(Fences.missing)
    assert "RLIMIT_CPU" in done.fences and not any("namespaces" in fence for fence in done.fences)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:Model-written code runs without a wall")
@pytest.mark.parametrize(
    "code",
    [
        "import os; os.system('echo hi')",
        "import subprocess; subprocess.run(['echo', 'hi'])",
        "import os; os.fork()",
        "import os; os.kill(os.getppid(), 9)",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "open('{folder}/new', 'w')",
        "import os; os.remove('{folder}/kept')",
        "import os; os.symlink('x', '{folder}/new')",
        "import shutil; shutil.rmtree('{folder}')",
        "import ctypes; ctypes.CDLL('libc.so.6')",
    ],
)
def test_the_fences_that_are_left_keep_accidents_in(code, no_wall, tmp_path):
    (tmp_path / "kept").write_text("kept")
    done = run_code(code.replace("{folder}", str(tmp_path)), allow_unsafe_code=True)
    assert done.status == "error" and "PermissionError" in done.error, done
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.filterwarnings("ignore:Model-written code runs without a wall")
def test_a_deep_folder_is_removed_without_a_wall_too(no_wall, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = (
        "import ctypes, os\nlibc = ctypes.CDLL(None)\nfor _ in range(500): libc.mkdir(b'd', 0o700); libc.chdir(b'd')\n"
    )
    code += "libc.chmod(b'.', 0)"
    monkeypatch.setattr("shutil.rmtree", lambda folder: (_ for _ in ()).throw(RecursionError))
    assert run_code(code, allow_unsafe_code=True).status in ("ok", "error")
    assert list(tmp_path.iterdir()) == []


class Plugged:
    """A sandbox of somebody else's: a plain process here, a container in earnest."""

    name, fences, missing, strict = "plugged", ("somebody else's",), (), False

    def __init__(self, prefix: str = "") -> None:
        self.stopped, self.prefix = 0, prefix

    def start(self, arguments, limits):
        pipe = subprocess.PIPE
        if self.prefix:
            arguments = ["-c", self.prefix]
        return subprocess.Popen([sys.executable, *arguments], stdin=pipe, stdout=pipe, stderr=pipe)

    def stop(self, process):
        process.kill()
        process.wait()
        self.stopped += 1

    def too_much(self, process, limits):
        return ""


def test_another_place_can_be_plugged_in(no_wall):
    place = Plugged()
    assert run_code("print(input() * 2)", stdin="ab", sandbox=place).stdout == "abab\n"
    assert run_code("def f(x): return x", tests=["assert f(2) == 2"], sandbox=place).passed == [True]
    assert get_code_reward(sandbox=place)(["x = 1"], ["assert x == 1"]) == [1.0]
    assert place.stopped == 5


@pytest.mark.parametrize("prefix", ["print('no')", "raise SystemExit('no python here')"])
def test_a_place_that_does_not_start_is_a_named_error(prefix):
    place = Plugged(prefix)
    with pytest.raises(SetupError, match=r"sandbox \(plugged\) does not start: .*no"):
        run_code("x = 1", sandbox=place)
    assert place.stopped == 3


def test_what_a_wall_needs_is_named(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert Wall().unusable() == "bwrap is not installed"
    monkeypatch.setattr("sys.platform", "darwin")
    assert "Linux" in Wall().unusable()
