"""What `make faults` tries: kinds of faults, each a series of trials that have a name, a size, and what went wrong."""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.support.broken_files import broken_files
from tests.support.crash import DONE, train_tiny
from tests.support.full_disk import failing_writes
from tests.support.processes import start

from strop.data import prepare
from strop.engine.checkpoint import checkpoints, problems_of
from strop.errors import StropError
from strop.testing.tokenizers import toy_tokenizer

ROOT = Path(__file__).resolve().parents[1]
Trial = tuple[str, int, str]
"""Name, how many faults it was, and what went wrong; empty where all was survived."""
METHODS: dict[str, dict[str, Any]] = {
    "sft": {}, "dpo": {}, "kto": {}, "ppo": {}, "gkd": {}, "grpo": {"num_generations": 2},
}  # fmt: skip
KILLS_A_RUN, KILLS_A_METHOD = 4, 36
SECONDS = 120
SERVERS = re.compile(
    r"test_(an_error_status|an_answer_that|a_server_that|a_redirect|what_json_does_not|a_body|a_packed|keys_never|"
    r"passing_trouble|a_refusal|a_key_that_the_server|nobody_listens|malformed_replies|some_failures)"
)


def kills(known: Collection[str]) -> Iterator[Trial]:
    """SIGKILL at random moments of runs of six methods, again and again, until each is let come to its end."""
    for verb, settings in METHODS.items():
        with tempfile.TemporaryDirectory() as place:
            ended(Path(place) / "first", verb, settings)  # after it, starting a process takes as long as it will
            begin = time.monotonic()
            expected = ended(Path(place) / "undisturbed", verb, settings)
            seconds, killed, seed = time.monotonic() - begin, 0, 0
            while killed < KILLS_A_METHOD:
                name, folder, draw = f"{verb} run {seed}", Path(place) / str(seed), random.Random(f"{verb} {seed}")
                seed += 1
                if name in known:
                    killed += KILLS_A_RUN - 1  # about
                    continue
                moments = [draw.uniform(0.0, 0.9 * seconds) for _ in range(KILLS_A_RUN)]
                wrong, count = "", 0
                for moment in moments:
                    process = start(train_tiny, str(folder), verb, settings)
                    process.join(moment)
                    process.kill()
                    process.join()
                    count += process.exitcode == -signal.SIGKILL
                    wrong = wrong or "; ".join(str(path) for path in checkpoints(folder) if problems_of(path))
                if ended(folder, verb, settings) != expected:
                    wrong = wrong or "other weights"
                killed += count
                shutil.rmtree(folder)
                yield name, count, wrong


def ended(folder: Path, verb: str, settings: dict[str, Any]) -> str:
    """The hash of the weights of a run that is let come to its end."""
    process = start(train_tiny, str(folder), verb, settings)
    process.join(SECONDS)
    return (folder / DONE).read_text() if process.exitcode == 0 else f"exit code {process.exitcode}"


def writes(known: Collection[str]) -> Iterator[Trial]:
    """Every write of a run fails once, as on a full disk."""
    with tempfile.TemporaryDirectory() as place:
        for number, (call, wrong) in enumerate(failing_writes(Path(place), slice(len(known), None)), len(known)):
            yield f"{number} {call}", 1, "; ".join(wrong)


def files(known: Collection[str]) -> Iterator[Trial]:
    """Data files that are damaged, or hold a wrong value in one row: one error that names the place."""
    tokenizer = toy_tokenizer("chatml")
    with tempfile.TemporaryDirectory() as place:
        for broken in broken_files(Path(place)):
            if broken.name in known:
                continue
            wrong, begin = "no error", time.monotonic()
            try:
                prepare(str(broken.path), broken.kind, tokenizer)
            except StropError as error:
                wrong = "; ".join(name for name in broken.names if name not in str(error))
            except Exception as error:
                wrong = f"{type(error).__name__}: {error}"
            yield broken.name, 1, wrong or ("too slow" if time.monotonic() - begin > 10 else "")


def tests(*names: str, only: re.Pattern[str] = re.compile("")) -> Callable[[Collection[str]], Iterator[Trial]]:
    """Trials that are tests: each case of these files whose name begins so."""

    def trials(known: Collection[str]) -> Iterator[Trial]:
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder) / "results.xml"
            command = [sys.executable, "-m", "pytest", "-q", "-n", "0", *names, f"--junitxml={results}"]
            subprocess.run(command, cwd=ROOT, check=False)
            for case in ElementTree.fromstring(results.read_text(encoding="utf-8")).iter("testcase"):
                name = str(case.get("name"))
                if only.match(name) and case.find("skipped") is None and name not in known:
                    failed = case.find("failure") is not None or case.find("error") is not None
                    yield name, 1, "the test failed" if failed else ""

    return trials


KINDS: dict[str, Callable[[Collection[str]], Iterator[Trial]]] = {
    f"SIGKILL at random moments of runs ({', '.join(METHODS)}); the run that goes on ends with the same bytes": kills,
    "every write of a run fails once: checkpoints whole, nothing half written left, the same bytes in the end": writes,
    "data files, damaged or with a wrong value: one error that names file and place": files,
    "programs that a policy wrote: no effect outside, no test passed": tests(
        "tests/rewards/sandbox/test_attacks.py", only=re.compile("test_(nothing_outside|no_verdict)")
    ),
    "judge and reward servers that stall, lie, flood or die: counted, named, in bounded time": tests(
        "tests/test_http_client.py", "tests/rewards/test_endpoint_judge.py", only=SERVERS
    ),
    "small files that unpack without end, or could cost hours: a sentence in seconds, nothing half written": tests(
        "tests/data/test_traps.py"
    ),
    "agents that send what no agent should, or leave: refused in words, and what is learned is what was sampled": tests(
        "tests/agents/test_hostile_agents.py", "tests/agents/test_unseen_answers.py", "tests/agents/test_left_behind.py"
    ),
    "outputs that are full, closed, gone or know no such letters: the run goes on": tests(
        "tests/watch/test_say.py", "tests/cli/test_closed_pipe.py", only=re.compile("test_(an_output|a_reader)")
    ),
    "run folders given to `strop report`: a page or a sentence": tests(
        "tests/report/test_odd_folders.py", only=re.compile("test_odd")
    ),
}
PROGRAMS = list(KINDS)[3]
