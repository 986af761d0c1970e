from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from tests.support.patience import with_patience

import strop
from strop.errors import SetupError
from strop.rewards import isolation
from strop.rewards.isolation import Worker

PATIENCE_S = 60.0
SOURCE = str(Path(strop.__file__).parents[1])


def make_troublemaker():
    """A function that travels by value and does what the completion says."""

    def troublemaker(completions, **kwargs):
        import contextlib
        import ctypes
        import os
        import subprocess
        import sys
        import time

        for text in completions:
            if text == "loop":
                while True:
                    pass
            if text == "swallow":
                while True:
                    with contextlib.suppress(BaseException):
                        time.sleep(1)
            if text == "native":
                sum(range(10**13))
            if text in ("exit0", "exit3"):
                os._exit(int(text[-1]))
            if text == "segfault":
                ctypes.string_at(0)
            if text == "kill":
                os.kill(os.getpid(), 9)
            if text == "memory":
                return [float(len(bytes(1 << 40)))]
            if text == "close":
                os.closerange(3, 100)
            if text == "interrupt":
                raise KeyboardInterrupt
            if text == "sys.exit":
                sys.exit("bye")
            if text.startswith("child:"):
                with open(text[6:], "w") as file:
                    file.write(str(subprocess.Popen(["sleep", "1000"]).pid))
                time.sleep(1000)
            if text.startswith("begun:"):
                open(text[6:], "w").close()
                sum(range(10**13))
        return [float(len(text)) for text in completions]

    return troublemaker


@pytest.fixture
def make():
    made = []

    def build(function, **settings):
        made.append(Worker(function, "f", **settings))
        return made[-1]

    yield build
    for worker in made:
        worker.kill()


@pytest.fixture(scope="module")
def worker():
    made = Worker(make_troublemaker(), "f", memory_limit_bytes=4 << 30)
    yield made
    made.kill()


def ask(worker, completions, seconds=PATIENCE_S):
    worker.ask({"completions": completions}, len(completions), seconds)
    return worker.answer()


def is_gone(pid):
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


def wait_for(condition, seconds=PATIENCE_S):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_one_process_answers_many_requests(worker):
    starts = worker.starts
    assert ask(worker, ["a", "bcd"]).values == [1.0, 3.0]
    pid = worker.pid
    assert ask(worker, ["ab"]).values == [2.0]
    assert worker.pid == pid != os.getpid()
    assert worker.starts <= starts + 1


@pytest.mark.parametrize("trouble", ["loop", "native", "swallow"])
def test_what_never_ends_is_killed_and_the_next_request_works(worker, trouble):
    worker.wait_ready()
    pid, starts = worker.pid, worker.starts
    outcome = ask(worker, [trouble], 0.3)
    assert outcome.failure.kind == "timeout" and "0.3 seconds" in outcome.failure.text
    assert is_gone(pid)
    assert ask(worker, ["abc"]).values == [3.0]
    assert worker.starts == starts + 1


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("exit3", "exit code 3"),
        ("exit0", "exit code 0"),
        ("segfault", "SIGSEGV"),
        ("kill", "SIGKILL (often the kernel, for lack of memory)"),
        ("close", "exit code"),
    ],
)
def test_a_death_is_reported_and_the_next_request_works(worker, trouble, said):
    outcome = ask(worker, [trouble])
    assert outcome.failure.kind == "death" and said in outcome.failure.text
    assert ask(worker, ["abc"]).values == [3.0]


def test_a_death_before_anybody_waited_is_told_too(worker):
    worker.ask({"completions": ["exit3"]}, 1, 20.0)
    wait_for(lambda: is_gone(worker.pid))
    assert worker.answer().failure.text == "it ended its process with exit code 3"


@with_patience(0.3, 10.0)
def test_a_process_that_does_not_read_holds_nobody(worker, seconds):
    worker.wait_ready()
    os.kill(worker.pid, signal.SIGSTOP)
    outcome = ask(worker, ["x" * 10_000_000], seconds)
    assert outcome.failure.kind == "timeout" and ask(worker, ["abc"]).values == [3.0]


@pytest.mark.parametrize(
    ("trouble", "said"),
    [("memory", "MemoryError"), ("interrupt", "KeyboardInterrupt"), ("sys.exit", "SystemExit: bye")],
)
def test_exceptions_leave_the_worker_alive(worker, trouble, said):
    worker.wait_ready()
    starts = worker.starts
    outcome = ask(worker, [trouble])
    assert outcome.failure.kind == "exception" and said in outcome.failure.text
    assert ask(worker, ["abc"]).values == [3.0]
    assert worker.starts == starts


@with_patience(0.5, 10.0)
def test_children_of_the_function_die_with_it(worker, tmp_path, seconds):
    worker.wait_ready()
    assert ask(worker, [f"child:{tmp_path / 'pid'}"], seconds).failure.kind == "timeout"
    child = int((tmp_path / "pid").read_text())
    wait_for(lambda: is_gone(child))


def test_a_worker_killed_while_idle_is_replaced_without_a_word(worker):
    worker.wait_ready()
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: not worker._process.is_alive())  # all threads of it, and not the first alone
    assert ask(worker, ["ab"]).values == [2.0]


def test_a_worker_killed_from_outside_in_the_middle_of_a_call_is_replaced(worker, tmp_path):
    worker.wait_ready()
    pid, begun = worker.pid, tmp_path / "begun"
    killing = threading.Thread(target=lambda: (wait_for(begun.exists), os.kill(pid, signal.SIGKILL)))
    killing.start()
    outcome = ask(worker, [f"begun:{begun}"], 2 * PATIENCE_S)
    killing.join()
    assert outcome.failure.kind == "death" and "SIGKILL" in outcome.failure.text
    assert ask(worker, ["abc"]).values == [3.0]


@pytest.mark.parametrize("hours", [-3, 3])
def test_a_clock_that_is_set_during_a_call_ends_nothing_and_prolongs_nothing(worker, hours, monkeypatch):
    worker.wait_ready()
    jumps, wall = iter(range(10**9)), time.time
    monkeypatch.setattr(time, "time", lambda: wall() + 3600 * hours * next(jumps))
    assert ask(worker, ["abc"]).values == [3.0]
    assert ask(worker, ["native"], 0.3).failure.kind == "timeout"


def test_memory_is_bounded(make):
    def greedy(completions):
        return [float(len(bytes(4 << 30))) for _ in completions]

    outcome = ask(make(greedy, memory_limit_bytes=1 << 30), ["a"])
    assert outcome.failure.kind == "exception" and "MemoryError" in outcome.failure.text


def test_numbers_metrics_and_columns_come_back_as_they_were(make):
    def reward(completions, log_metric, log_extra):
        log_metric("third", 1 / 3)
        log_extra("any", [{"k": (1, 2)}, {3}, "\ud800", complex(1, 2), None, 2**70, b"x"])
        return [0.1, 1e-300, None, 2**53, -0.0, 1e308, float("nan")]

    outcome = ask(make(reward), list("abcdefg"))
    assert outcome.values == [0.1, 1e-300, None, 2.0**53, -0.0, 1e308, None]
    assert list(outcome.failed) == [6]
    assert outcome.metrics == [("third", 1 / 3)]
    assert outcome.extras["any"] == [{"k": (1, 2)}, {3}, "\ud800", complex(1, 2), None, 2**70, b"x"]


def test_columns_that_cannot_be_sent_back_are_the_functions_error(make):
    def reward(completions, log_extra):
        import threading

        log_extra("lock", [threading.Lock()])
        return [0.0]

    failure = ask(make(reward), ["a"]).failure
    assert failure.kind == "value" and "log_extra values cannot be sent back" in failure.text


def test_the_function_is_a_copy_and_runs_elsewhere(make):
    seen = []

    def reward(completions):
        import os

        seen.append(1)
        return [float(os.getpid()), float(len(seen))]

    worker = make(reward)
    ask(worker, ["a", "b"])
    outcome = ask(worker, ["a", "b"])
    assert outcome.values == [float(worker.pid), 2.0] and seen == []


def test_a_semaphore_lasts_over_all_calls(make):
    limit = asyncio.Semaphore(1)

    async def reward(completions):
        import asyncio

        async def one(text):
            async with limit:
                await asyncio.sleep(0.001)
                return float(len(text))

        return list(await asyncio.gather(*map(one, completions)))

    worker = make(reward)
    for _ in range(2):
        assert ask(worker, ["a", "bb"]).values == [1.0, 2.0]


def test_a_module_that_only_this_process_can_find_is_found(make, tmp_path, monkeypatch):
    (tmp_path / "my_own_rewards.py").write_text("def reward(completions):\n    return [7.0 for _ in completions]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_own_rewards

    assert ask(make(my_own_rewards.reward), ["a"]).values == [7.0]


def test_what_cannot_move_says_why(make):
    lock = threading.Lock()
    with pytest.raises(SetupError, match="it cannot be pickled"):
        make(lambda completions: [0.0] * len([lock, *completions]))

    worker = make(make_troublemaker())
    with pytest.raises(SetupError, match="the argument 'handle' cannot be pickled"):
        worker.ask({"completions": ["a"], "handle": [lock]}, 1, 5.0)


class Unreadable:
    """Can be written, cannot be read in another process."""

    def __init__(self, action):
        self.action = action

    def __reduce__(self):
        return exec, (self.action,)

    def __call__(self, completions):
        return [0.0]


def test_what_a_worker_cannot_load_says_why(make, monkeypatch):
    with pytest.raises(SetupError, match=r"a worker could not load it \(ZeroDivisionError"):
        make(Unreadable("1 / 0")).wait_ready()
    with pytest.raises(SetupError, match="exit code 3"):
        make(Unreadable("import os; os._exit(3)")).wait_ready()
    monkeypatch.setattr(isolation, "STARTUP_SECONDS", 1.0)
    slow = make(Unreadable("import time; time.sleep(1000)"))
    with pytest.raises(SetupError, match=r"more than 1 seconds"):
        slow.wait_ready()
    assert slow.pid is None


def test_an_argument_that_cannot_be_read_there_is_a_wrong_set_up(make):
    worker = make(make_troublemaker())
    worker.ask({"completions": ["a"], "odd": [Unreadable("1 / 0")]}, 1, 5.0)
    failure = worker.answer().failure
    assert failure.kind == "setup" and "'odd' cannot be read in its process" in failure.text


def script(tmp_path, text):
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(text))
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    return subprocess.run([sys.executable, file], capture_output=True, text=True, env=environment, timeout=120)


def test_a_script_is_not_run_again_and_its_functions_still_go_on_to_pools(tmp_path):
    done = script(
        tmp_path,
        """
        import multiprocessing, os
        from concurrent.futures import ProcessPoolExecutor
        from strop.rewards.isolation import Worker

        print("script runs")
        BONUS = 10

        def helper(text):
            return len(text) + BONUS

        def reward(completions):
            with ProcessPoolExecutor(1) as executor, multiprocessing.Pool(1) as pool:
                return [*executor.map(helper, completions), *pool.map(helper, completions)]

        worker = Worker(reward, "f")
        worker.ask({"completions": ["abc"]}, 2, 20.0)
        print(worker.answer().values, worker.pid != os.getpid())
        print("__file__" in globals(), __spec__)
        """,
    )
    assert done.stdout == "script runs\n[13.0, 13.0] True\nTrue None\n", done.stderr


def test_workers_end_with_their_trainer(tmp_path):
    done = script(
        tmp_path,
        """
        import os, time
        from strop.rewards.isolation import Worker

        def reward(completions):
            while True:
                pass

        worker = Worker(reward, "f")
        worker.ask({"completions": ["abc"]}, 1, 100.0)
        print(worker.pid, flush=True)
        time.sleep(0.3)
        os.kill(os.getpid(), 9)
        """,
    )
    pid = int(done.stdout)
    wait_for(lambda: is_gone(pid))


def test_a_copy_that_the_function_forked_answers_nothing(make):
    def forks(completions):
        import os
        import time

        if not os.fork():
            time.sleep(0.1)
            return [99.0] * len(completions)
        return [float(len(text)) for text in completions]

    worker = make(forks)
    for text in ("a", "bc", "def"):
        assert ask(worker, [text], None).values == [float(len(text))]
        time.sleep(0.3)


def test_an_answer_that_nobody_took_is_not_that_of_the_next_request(make):
    worker = make(lambda completions: [float(len(text)) for text in completions])
    worker.ask({"completions": ["a"]}, 1, PATIENCE_S)
    assert ask(worker, ["abc"]).values == [3.0]


def test_a_forked_copy_of_the_trainer_starts_a_worker_of_its_own(make):
    worker = make(lambda completions: [float(len(text)) for text in completions])
    assert ask(worker, ["a"]).values == [1.0]
    pid = worker.pid
    if not (copy := os.fork()):
        with contextlib.suppress(BaseException):
            mine = ask(worker, ["abc"]).values == [3.0] and worker.pid != pid
            worker.kill()
            os._exit(0 if mine else 2)
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1]) == 0
    assert ask(worker, ["ab"]).values == [2.0] and worker.pid == pid


def test_what_a_worker_leaves_says_nothing_when_its_trainer_is_killed(tmp_path):
    done = script(
        tmp_path,
        """
        import os
        from strop.rewards.isolation import Worker

        worker = Worker(lambda completions: [0.0], "f")
        worker.ask({"completions": ["x" * 10_000_000]}, 1, 100.0)
        worker.answer()
        worker.ask({"completions": ["x" * 100_000_000]}, 1, 100.0)
        os.kill(os.getpid(), 9)
        """,
    )
    assert done.returncode == -9 and "Traceback" not in done.stderr


def test_an_orphan_in_native_code_leaves_by_itself(tmp_path):
    done = script(
        tmp_path,
        """
        import pickle
        from strop.rewards import worker

        worker.ORPHAN_SECONDS = 0.1
        worker.answer(lambda completions: [sum(range(10**13))], {"completions": pickle.dumps(["abc"])}, 1, 0.1)
        """,
    )
    assert done.returncode == 1 and done.stderr == ""


def test_a_worker_starts_without_torch_and_numpy(make):
    def loaded(completions):
        import sys

        return [float(name in sys.modules) for name in ("torch", "numpy", "transformers")]

    assert ask(make(loaded), ["a", "b", "c"]).values == [0.0, 0.0, 0.0]
