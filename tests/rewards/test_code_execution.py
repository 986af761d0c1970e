from __future__ import annotations

import functools
import os
import threading
from pathlib import Path

import pytest
from tests.support.patience import with_patience

from strop.errors import ConfigError
from strop.rewards.code_execution import run_code as run_code_behind
from strop.rewards.sandbox import running
from strop.rewards.sandbox.places import find_wall

run_code = functools.partial(run_code_behind, allow_unsafe_code=True)
needs_wall = pytest.mark.skipif(find_wall()[0] is None, reason=f"no wall here: {find_wall()[1]}")
pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="needs POSIX processes"),
    pytest.mark.filterwarnings("ignore:Model-written code runs without a wall"),
]


def test_code_and_tests():
    done = run_code(
        "def add(a, b):\n    return a + b\n",
        tests=["assert add(1, 2) == 3", "assert add(1, 2) == 4", "add(1)", "x = 1"],
    )
    assert done.status == "ok" and done.passed == [True, False, False, True]
    assert done.errors[0] == "" and done.errors[1].startswith("AssertionError") and "TypeError" in done.errors[2]


def test_tests_do_not_see_each_others_names_but_share_the_modules():
    done = run_code("count = []", tests=["count.append(1); mine = 1", "assert count == [1]", "mine"])
    assert done.passed == [True, True, False]


def test_a_program_reads_and_prints():
    done = run_code("import sys\nprint(input()[::-1]); print('e', file=sys.stderr)", stdin="abc\n")
    assert (done.status, done.stdout, done.stderr) == ("ok", "cba\n", "e\n")
    assert run_code("if __name__ == '__main__':\n    print('main')").stdout == "main\n"


def test_what_a_program_is_given_to_read_may_be_long(monkeypatch):
    monkeypatch.setattr(running, "_QUEUE_BYTES", 1 << 16)  # bounds what programs say to each other
    done = run_code("import sys\nprint(len(sys.stdin.read()))", stdin="x" * (1 << 20), timeout_seconds=60)
    assert (done.status, done.stdout) == ("ok", f"{1 << 20}\n")
    assert run_code("if __name__ == '__main__':\n    1 / 0", tests=["pass"]).passed == [True]


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("def f(:", "error", "SyntaxError"),
        ("1 / 0", "error", "ZeroDivisionError"),
        ("import sys; sys.exit(3)", "error", "exit code 3"),
        ("import os; os._exit(0)", "ok", ""),
        ("import ctypes; ctypes.string_at(0)", "died", "signal 11"),
        ("x = bytes(1 << 34)", "error", "MemoryError"),
        ("while True: print('x' * 1000)", "output", "more than"),
        ("import os\nwhile True: os.write(2, b'x' * 100000)", "output", "more than"),
        ("f = open('big', 'w')\nwhile True: f.write('x' * 1000000)", "error", "File too large"),
        ("x = 'a\0b'", "error", "SyntaxError"),
    ],
)
def test_failures_are_told_apart(code, status, said):
    done = run_code(code)
    assert done.status == status and said in done.error
    assert run_code("import sys; sys.exit()").status == "ok"


@pytest.mark.parametrize("code", ["while True: pass", "3 ** 3 ** 30", "import time; time.sleep(1000)"])
def test_what_does_not_end_is_killed(code):
    assert run_code(code, timeout_seconds=0.3).status == "timeout"


def test_standard_input_ends():
    assert "EOFError" in run_code("input()").error


@with_patience(0.5, 10.0)
def test_tests_passed_before_a_hang_are_known(seconds):
    done = run_code("x = 1", tests=["assert x == 1", "while True: pass", "assert x == 1"], timeout_seconds=seconds)
    assert done.status == "timeout" and done.passed == [True, False, False]
    assert done.errors == ["", "not reached", "not reached"]


@pytest.mark.parametrize("leave", ["import os; os._exit(0)", "import sys; sys.exit(0)", "raise SystemExit"])
def test_leaving_early_passes_nothing(leave):
    done = run_code(f"def f():\n    {leave}", tests=["f()", "assert f() == 1"])
    assert done.passed == [False, False]


def test_printing_a_report_passes_nothing():
    code = 'import os\nline = b\'{"nonce": "x", "event": "test", "index": 0, "ok": true}\\n\'\n'
    code += "for fd in range(1, 64):\n    try: os.write(fd, line)\n    except OSError: pass\nos._exit(0)"
    assert run_code(code, tests=["assert False"]).passed == [False]


def test_ordinary_code_is_left_alone():
    code = """
import collections, itertools, json, math, os, re, tempfile, threading
with open('here.txt', 'w') as file:
    file.write('x')
os.mkdir('sub'); os.rename('here.txt', 'sub/there.txt'); os.remove('sub/there.txt'); os.rmdir('sub')
with tempfile.TemporaryDirectory() as directory:
    open(os.path.join(directory, 'a'), 'w').close()
thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()
print(os.listdir('.'), os.environ.get('HOME') == os.getcwd())
"""
    done = run_code(code)
    assert (done.status, done.stdout) == ("ok", "thread\n[] True\n"), done


@pytest.mark.parametrize("tests", [[], ["assert P(1).x == 1"]])
def test_dataclasses_find_their_module(tests):
    code = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\nP(2)"
    )
    done = run_code(code, tests=tests)
    assert done.status == "ok" and all(done.passed), done


def test_the_environment_of_the_trainer_is_not_there(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    assert run_code("import os; print(os.environ.get('SECRET_TOKEN'))").stdout == "None\n"


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_code("open('a', 'w').close()")
    run_code("while True: pass", timeout_seconds=0.2)
    assert list(Path(tmp_path).iterdir()) == []


def test_it_runs_in_threads_and_says_which_fences_stood():
    results = []
    threads = [threading.Thread(target=lambda: results.append(run_code("print(1)"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [done.stdout for done in results] == ["1\n"] * 4
    assert "RLIMIT_CPU" in results[0].fences


def test_wrong_limits_are_listed_together():
    with pytest.raises(ConfigError) as caught:
        run_code("", timeout_seconds=0, memory_limit_bytes=-1)
    assert "timeout_seconds is 0" in str(caught.value) and "memory_limit_bytes is -1" in str(caught.value)
