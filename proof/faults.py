"""`python -m proof.faults`: try every attack on the sandbox, and write what survived into docs/reliability.md."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from proof.attacks import KINDS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
TESTS = "tests/rewards/sandbox/test_attacks.py"
BEGIN, END = "<!-- attacks: written by `make faults` -->", "<!-- end of attacks -->"


def main() -> int:
    """Run the tests of the attacks; 1 where one had an effect, or none could be tried."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", TESTS, f"--junitxml={results}"]
        subprocess.run(command, cwd=ROOT, check=False)
        outcomes = read_outcomes(results.read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + table(outcomes) + END + rest.partition(END)[2], encoding="utf-8")
    print(table(outcomes))
    return 0 if outcomes and all(outcomes.values()) else 1


def read_outcomes(xml: str) -> dict[str, bool]:
    """Attack -> whether it had no effect; what was skipped is left out."""
    outcomes = {}
    for case in ElementTree.fromstring(xml).iter("testcase"):
        name = re.search(r"\[(.*)\]$", case.get("name", ""))
        if name and case.find("skipped") is None:
            outcomes[name.group(1)] = case.find("failure") is None and case.find("error") is None
    return outcomes


def table(outcomes: dict[str, bool]) -> str:
    """The table of kinds in Markdown, with the attacks of each by name."""
    lines = ["| what the program is after | tried | without effect | attacks |", "|---|---|---|---|"]
    for kind, names in KINDS.items():
        tried = [name for name in names if name in outcomes]
        without = sum(outcomes[name] for name in tried)
        lines.append(f"| {kind} | {len(tried)} | {without} | {', '.join(tried)} |")
    lines.append(f"| **all** | **{len(outcomes)}** | **{sum(outcomes.values())}** | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
