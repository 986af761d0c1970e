"""All mutations on copies of the project, and what follows for the promises."""

from __future__ import annotations

import argparse
import itertools
import queue
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from proof import page
from proof.fresh import Outcome, run_tests
from proof.mutation import Mutation, ProofError, applied, misfits
from proof.mutations import MUTATIONS
from proof.promise import Promise
from proof.promises import PROMISES
from proof.result import Proof, Result

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 180.0
"""How long one session of tests may take."""
COPIED = ("src", "tests", "examples", "docs", "README.md", "pyproject.toml")


class Copies:
    """Copies of the project to put bugs into, one for each job."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self._free: queue.Queue[Path] = queue.Queue()
        for number in range(jobs):
            copy = folder / f"copy-{number}"
            copy.mkdir(parents=True)
            for name in COPIED:
                source = ROOT / name
                if source.is_dir():
                    shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("*.egg-info"))
                elif source.is_file():
                    shutil.copy2(source, copy / name)
            self._free.put(copy)

    def use(self, work: Callable[[Path], Outcome]) -> Outcome:
        """Do something with a copy that nobody else uses."""
        copy = self._free.get()
        try:
            return work(copy)
        finally:
            self._free.put(copy)


def prove(
    mutations: Sequence[Mutation],
    promises: Sequence[Promise] = PROMISES,
    *,
    jobs: int = 1,
    seconds: float = SECONDS,
    together: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Proof:
    """Run mutations. The tests of each must pass on the source as it is, and one of them must fail with the bug in it.

    Args:
        jobs: sessions of tests at a time.
        seconds: how long one session may take.
        together: whether one session tries all tests without a bug; cheaper for a few mutations, and a test that fails
            there fails all of them.

    Raises:
        ProofError: a mutation does not fit the source.
    """
    if problems := [line for mutation in mutations for line in misfits(mutation, ROOT)]:
        raise ProofError("\n".join(problems))
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="strop-proof-") as folder, ThreadPoolExecutor(jobs) as pool:
        copies = Copies(Path(folder).resolve(), jobs)
        files = by_file(mutations)
        say(f"{len(mutations)} mutations; first their tests without one, from {len(files)} files.")
        sessions = [list(itertools.chain(*files.values()))] if together else list(files.values())
        runs = list(pool.map(lambda tests: clean_run(copies, tests, seconds, say), sessions))
        clean = dict(zip(files, runs * len(files) if together else runs, strict=True))
        results = list(pool.map(lambda m: try_one(copies, m, clean, seconds, say), mutations))
    whole = len(mutations) == len(MUTATIONS) and len(promises) == len(PROMISES)
    return Proof(results, list(promises), time.monotonic() - begin, whole)


def by_file(mutations: Sequence[Mutation]) -> dict[str, list[str]]:
    """The tests that mutations name, by file: one session without a bug serves all mutations that need it."""
    files: dict[str, list[str]] = {}
    for test in dict.fromkeys(test for mutation in mutations for test in mutation.tests):
        files.setdefault(test.split("::")[0], []).append(test)
    return files


def clean_run(copies: Copies, tests: Sequence[str], seconds: float, say: Callable[[str], None]) -> Outcome:
    outcome = copies.use(lambda copy: run_tests(copy, tests, seconds=seconds))
    if not outcome.passed:
        say(f"without a bug: {outcome.complaint}")
    return outcome


def try_one(
    copies: Copies,
    mutation: Mutation,
    clean: dict[str, Outcome],
    seconds: float,
    say: Callable[[str], None],
) -> Result:
    """One mutation: its tests on a copy that has the bug."""
    for file in by_file([mutation]):
        if not clean[file].passed:
            return Result(mutation, complaint=f"tests do not pass without it: {clean[file].complaint}")

    def with_bug(copy: Path) -> Outcome:
        with applied(mutation, copy):
            return run_tests(copy, mutation.tests, seconds=seconds)

    outcome = copies.use(with_bug)
    caught = outcome.caught
    if caught is not None:
        say(f"caught    {mutation.name}  ({outcome.seconds:.1f} s, {caught['error']})")
        return Result(mutation, caught, seconds=outcome.seconds)
    complaint = "no test notices it" if outcome.passed else outcome.complaint
    say(f"NOT CAUGHT {mutation.name}: {complaint}")
    return Result(mutation, complaint=complaint, seconds=outcome.seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 if every mutation was caught."""
    parser = argparse.ArgumentParser(
        prog="python -m proof", description="Put historical bugs back; the tests must fail."
    )
    parser.add_argument("--promise", type=int, action="append", help="only mutations of this promise (may be repeated)")
    parser.add_argument("--mutation", action="append", help="only this mutation (may be repeated)")
    parser.add_argument("--jobs", type=int, default=1, help="sessions of tests at a time (default 1)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="most time for one session of tests")
    options = parser.parse_args(arguments)
    chosen = choose(options.promise, options.mutation)
    numbers = {n for m in chosen for n in m.promises} if options.mutation else set(options.promise or ())
    promises = [p for p in PROMISES if p.number in numbers] if numbers else list(PROMISES)
    try:
        proof = prove(chosen, promises, jobs=options.jobs, seconds=options.seconds, say=lambda s: print(s, flush=True))
    except ProofError as error:
        print(error)
        return 2
    page.show(proof)
    if proof.whole:
        path = ROOT / "docs" / "proof.md"
        path.write_text(page.markdown(proof), encoding="utf-8")
        print(f"written to {path.relative_to(ROOT)}")
    return 0 if all(result.proved for result in proof.results) else 1


def choose(promises: Sequence[int] | None, names: Sequence[str] | None) -> list[Mutation]:
    """The mutations that the options ask for.

    Raises:
        SystemExit: a name or a number that does not exist.
    """
    known = {mutation.name for mutation in MUTATIONS}
    if unknown := [name for name in names or () if name not in known]:
        raise SystemExit(f"no such mutation: {', '.join(unknown)}. There are: {', '.join(sorted(known))}")
    if missing := [n for n in promises or () if n not in {promise.number for promise in PROMISES}]:
        raise SystemExit(f"no such promise: {', '.join(map(str, missing))}")
    return [
        m for m in MUTATIONS if (not names or m.name in names) and (not promises or set(promises) & set(m.promises))
    ]
