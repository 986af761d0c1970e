"""`make support`: measure what has not been measured yet, then write docs/support.md.

    python -m benchmarks.support [--only NAME ...] [--again] [--limit SECONDS] [--page]

Every subject is measured in a process of its own with a time limit, so a hang or a crash is a result too, and is
appended to `benchmarks/results/support.jsonl`; a run that was cut off goes on from there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "results" / "support.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.support")
    parser.add_argument("--only", nargs="*", help="subjects, such as llama or peft:lora:dpo; default: all")
    parser.add_argument("--again", action="store_true", help="measure again what is known")
    parser.add_argument("--limit", type=float, default=240, help="seconds for each subject")
    parser.add_argument("--page", action="store_true", help="write the page only")
    options = parser.parse_args()
    from benchmarks.support.page import write_page
    from benchmarks.support.subjects import subjects

    if not options.page:
        known = set() if options.again else results().keys()
        names = [name for name in subjects() if name not in known and (not options.only or name in options.only)]
        for row in run(names, options.limit):
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    write_page(results())


def results() -> dict[str, dict[str, Any]]:
    """Subject -> its newest result."""
    if not RESULTS.exists():
        return {}
    lines = RESULTS.read_text(encoding="utf-8").splitlines()
    return {row["subject"]: row for row in map(json.loads, lines)}


def run(names: list[str], limit: float) -> Iterable[dict[str, Any]]:
    """Results of subjects, one after the other; forked, so that imports are paid for once."""
    from strop.methods.registry import METHODS

    for method in METHODS:
        method.config(), method.trainer()
    context = multiprocessing.get_context("fork")
    for number, name in enumerate(names, 1):
        folder = Path(tempfile.mkdtemp(prefix="strop-support-"))
        process = context.Process(target=_measure, args=(name, folder))
        process.start()
        process.join(limit * len(METHODS) if name.startswith("reach") else limit)  # a column of all methods
        if process.is_alive():
            process.kill()
            process.join()
            row = {"failed": f"no result within {limit:.0f} s"}
        elif (folder / "row.json").exists():
            row = json.loads((folder / "row.json").read_text(encoding="utf-8"))
        else:
            row = {"failed": f"the process ended with code {process.exitcode}"}
        shutil.rmtree(folder, ignore_errors=True)
        print(f"{number}/{len(names)} {name}", file=sys.stderr, flush=True)
        yield {"subject": name, **row}


def _measure(name: str, folder: Path) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    from benchmarks.support.subjects import subjects

    row = subjects()[name](folder)
    (folder / "row.json").write_text(json.dumps(row), encoding="utf-8")


if __name__ == "__main__":
    main()
