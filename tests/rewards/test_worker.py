from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import strop
from strop.rewards.contract import Outcome
from strop.rewards.frames import send_frame
from strop.rewards.transfer import Parcel, parcels
from strop.rewards.worker import NotMovable, Worker
from strop.rewards.worker_process import encode_outcome

SOURCE = str(Path(strop.__file__).parents[1])


def troublemaker(completions, **kwargs):
    """Does what the completion says."""
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
        if text == "pow":
            3**3**30
        if text == "exit":
            os._exit(3)
        if text == "exit0":
            os._exit(0)
        if text == "segfault":
            ctypes.string_at(0)
        if text == "kill":
            os.kill(os.getpid(), 9)
        if text == "memory":
            return [float(len([b"x" * (1 << 24)] * 1 + [bytes(1 << 32)]))]
        if text == "print":
            for _ in range(2000):
                print("x" * 500_000)
        if text == "flood":
            chunk = b"x" * (1 << 20)
            for _ in range(1024):
                os.write(1, chunk)
                os.write(2, chunk)
        if text == "close":
            os.closerange(3, 100)
        if text == "interrupt":
            raise KeyboardInterrupt
        if text == "sys.exit":
            sys.exit("bye")
        if text.startswith("child:"):
            with open(text[6:], "w") as file:
                file.write(str(subprocess.Popen(["sleep", "1000"]).pid))
            while True:
                pass
    return [float(len(text)) for text in completions]


@pytest.fixture
def worker():
    made = Worker(parcels(troublemaker), memory_limit_bytes=2 << 30)
    yield made
    made.kill()


def ask(worker, completions, seconds=20.0):
    worker.ask({"completions": pickle.dumps(completions)}, len(completions), seconds)
    return worker.answer()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_zombie(pid):
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_one_process_answers_many_requests(worker):
    assert ask(worker, ["a", "bcd"]).values == [1.0, 3.0]
    pid = worker.pid
    assert ask(worker, ["ab"]).values == [2.0]
    assert worker.pid == pid != os.getpid()
    assert worker.starts == 1


@pytest.mark.parametrize("trouble", ["loop", "pow", "swallow"])
def test_what_never_ends_is_killed_and_the_next_request_works(worker, trouble):
    worker.wait_ready()
    pid = worker.pid
    outcome = ask(worker, [trouble], 0.5)
    assert outcome.failure.kind == "timeout" and "0.5 seconds" in outcome.failure.text
    assert not alive(pid)
    assert ask(worker, ["abc"]).values == [3.0]
    assert worker.starts == 2


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("exit", "exit code 3"),
        ("exit0", "exit code 0"),
        ("segfault", "SIGSEGV"),
        ("kill", "SIGKILL"),
        ("close", "exit code"),
    ],
)
def test_a_death_is_reported_and_the_next_request_works(worker, trouble, said):
    outcome = ask(worker, [trouble])
    assert outcome.failure.kind == "death" and said in outcome.failure.text
    assert ask(worker, ["abc"]).values == [3.0]


@pytest.mark.parametrize(
    ("trouble", "said"),
    [("memory", "MemoryError"), ("interrupt", "KeyboardInterrupt"), ("sys.exit", "SystemExit: bye")],
)
def test_exceptions_leave_the_worker_alive(worker, trouble, said):
    outcome = ask(worker, [trouble])
    assert outcome.failure.kind == "exception" and said in outcome.failure.text
    assert ask(worker, ["abc"]).values == [3.0]
    assert worker.starts == 1


def test_a_gigabyte_of_prints_is_cut_and_costs_nothing(worker, capsys):
    assert ask(worker, ["print"]).values == [5.0]
    shown = capsys.readouterr().out
    assert "1000002000" not in shown and "more characters of output were dropped" in shown
    assert len(shown) < 100_000


def test_two_gigabytes_written_past_python_go_nowhere(worker, capfd):
    assert ask(worker, ["flood"]).values == [5.0]
    out, err = capfd.readouterr()
    assert out == err == ""


def test_prints_show(capsys):
    def chatty(completions):
        import sys

        print("hello from", completions)
        print("warning", file=sys.stderr)
        return [0.0]

    made = Worker(parcels(chatty))
    try:
        assert ask(made, ["a"]).values == [0.0]
    finally:
        made.kill()
    assert capsys.readouterr().out == "hello from ['a']\nwarning\n"


def test_children_of_the_function_die_with_it(worker, tmp_path):
    assert ask(worker, [f"child:{tmp_path / 'pid'}"], 1.0).failure.kind == "timeout"
    child = int((tmp_path / "pid").read_text())
    wait_for(lambda: not alive(child) or is_zombie(child))


def test_a_worker_killed_while_idle_is_replaced_without_a_word(worker):
    worker.wait_ready()
    os.kill(worker.pid, signal.SIGKILL)
    worker._alive[0].wait()
    assert ask(worker, ["ab"]).values == [2.0]


def test_an_answer_beyond_the_limit_is_refused():
    def talkative(completions, log_extra):
        log_extra("column", ["x" * 10_000_000])
        return [0.0]

    made = Worker(parcels(talkative), reply_limit_bytes=1_000_000)
    try:
        failure = ask(made, ["a"]).failure
        assert failure.kind == "value" and "more than the 1000000 that are allowed" in failure.text
    finally:
        made.kill()


def test_numbers_metrics_and_columns_come_back_as_they_were():
    def reward(completions, log_metric, log_extra):
        import numpy as np

        log_metric("third", 1 / 3)
        log_extra("any", [np.float32(0.5), np.arange(2), {"k": (1, 2)}, {3}, "\ud800", complex(1, 2), None])
        return [0.1, 1e-300, None, 2**53, -0.0, 1e308, float("nan")]

    made = Worker(parcels(reward))
    try:
        outcome = ask(made, list("abcdefg"))
    finally:
        made.kill()
    assert outcome.values == [0.1, 1e-300, None, 2.0**53, -0.0, 1e308, None]
    assert list(outcome.failed) == [6]
    assert outcome.metrics == [("third", 1 / 3)]
    assert outcome.extras["any"] == [0.5, [0, 1], {"k": [1, 2]}, [3], "\ud800", "(1+2j)", None]


def test_a_module_that_only_this_process_can_find_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_own_rewards.py").write_text("def reward(completions):\n    return [7.0 for _ in completions]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_own_rewards

    parcel = next(iter(parcels(my_own_rewards.reward)))
    assert parcel.encoding == "pickle"
    made = Worker([parcel])
    try:
        assert ask(made, ["a"]).values == [7.0]
    finally:
        made.kill()


def test_an_answer_to_an_earlier_request_is_passed_over():
    made = Worker([])
    made._sock, theirs = socket.socketpair()
    made._request_id, made._asked, made._deadline = 2, (5.0, 1), time.monotonic() + 5
    for number in (1, 2):
        reply = {"id": number, "printed": "", "dropped_chars": 0, **encode_outcome(Outcome(values=[float(number)]))}
        send_frame(theirs, json.dumps(reply).encode())
    assert made.answer().values == [2.0]
    theirs.close()
    made.kill()


@pytest.mark.parametrize("garbage", [b"not json", b"[1]", b"{}", b'{"id": 1}'])
def test_an_unreadable_answer_costs_the_worker(garbage):
    made = Worker([])
    made._sock, theirs = socket.socketpair()
    made._request_id, made._asked, made._deadline = 1, (5.0, 1), time.monotonic() + 5
    send_frame(theirs, garbage)
    failure = made.answer().failure
    assert failure.kind == "death" and "unreadable" in failure.text
    assert made._sock is None
    theirs.close()


def test_ways_of_sending_are_tried_in_turn():
    bad = Parcel("pickle", pickle.dumps(troublemaker).replace(b"troublemaker", b"troublewaker"))
    missing = Parcel("no_such_encoding", b"")
    made = Worker([bad, missing, *parcels(troublemaker)])
    try:
        assert ask(made, ["abc"]).values == [3.0]
    finally:
        made.kill()
    hopeless = Worker([bad])
    with pytest.raises(NotMovable, match="a worker could not load it"):
        hopeless.wait_ready()
    with pytest.raises(NotMovable, match="cannot be pickled"):
        Worker([]).wait_ready()


def test_a_function_that_takes_for_ever_to_load_is_given_up():
    class Slow:
        def __reduce__(self):
            return time.sleep, (1000,)

        def __call__(self, completions):
            return [0.0]

    made = Worker(parcels(Slow()), startup_seconds=0.5)
    with pytest.raises(NotMovable, match=r"more than 0\.5 seconds"):
        made.wait_ready()
    assert made.pid is None


def test_a_script_is_not_run_again_in_its_worker_and_its_functions_still_go(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import pickle
            from strop.rewards.transfer import parcels
            from strop.rewards.worker import Worker

            print("script runs")
            BONUS = 10

            def reward(completions):
                return [len(c) + BONUS for c in completions]

            worker = Worker(parcels(reward))
            worker.ask({"completions": pickle.dumps(["abc"])}, 1, 20.0)
            print(worker.answer().values, worker.pid != __import__("os").getpid())
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout == "script runs\n[13.0] True\n", done.stderr


def test_workers_end_with_their_trainer_even_in_an_endless_loop(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, pickle, time
            from strop.rewards.transfer import parcels
            from strop.rewards.worker import Worker

            def reward(completions):
                3**3**30

            worker = Worker(parcels(reward))
            worker.ask({"completions": pickle.dumps(["abc"])}, 1, 100.0)
            print(worker.pid, flush=True)
            time.sleep(0.3)
            os.kill(os.getpid(), 9)
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=120)
    pid = int(done.stdout)
    wait_for(lambda: not alive(pid) or is_zombie(pid))


def test_a_worker_starts_without_torch_and_numpy():
    def loaded(completions):
        import sys

        return [float(name in sys.modules) for name in ("torch", "numpy", "transformers")]

    made = Worker(parcels(loaded))
    try:
        assert ask(made, ["a", "b", "c"]).values == [0.0, 0.0, 0.0]
    finally:
        made.kill()
