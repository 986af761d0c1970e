"""`python -m proof.faults`: try every kind of fault, and write what was survived into docs/reliability.md.

What was tried is kept in runs/faults.json, so that a run that was cut off goes on; another source begins anew.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping

from proof.attacks import KINDS as ATTACKS
from proof.trials import KINDS, PROGRAMS, ROOT

PAGE = ROOT / "docs" / "reliability.md"
KEPT = ROOT / "runs" / "faults.json"
Kept = dict[str, dict[str, tuple[int, str]]]
"""Kind -> trial -> how many faults it was, and what went wrong."""


def main() -> int:
    """Try what was not tried yet; 1 where something was lost, or nothing could be tried."""
    kept = read()
    for kind, trials in KINDS.items():
        found = kept.setdefault(kind, {})
        if not found.pop("complete", None):
            for name, size, wrong in trials(found):
                found[name] = (size, wrong)
                write(kept)
                print(f"{'LOST' if wrong else 'ok':5} {kind[:40]}: {name} {wrong}", flush=True)
        found["complete"] = (0, "")
        write(kept)
    for mark, text in {"faults": faults(kept), "attacks": attacks(kept[PROGRAMS])}.items():
        page = PAGE.read_text(encoding="utf-8")
        begin, end = f"<!-- {mark}: written by `make faults` -->\n", f"<!-- end of {mark} -->"
        before, _, rest = page.partition(begin)
        PAGE.write_text(before + begin + text + end + rest.partition(end)[2], encoding="utf-8")
        print(text)
    return 0 if all(tried == survived > 0 for tried, survived in map(count, kept.values())) else 1


@functools.cache
def source() -> str:
    """Hash of the source that is tried."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted((ROOT / "src").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read() -> Kept:
    """What an earlier run of the same source tried."""
    try:
        found = json.loads(KEPT.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found["kinds"] if found["source"] == source() else {}


def write(kept: Kept) -> None:
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps({"source": source(), "kinds": kept}), encoding="utf-8")


def count(found: Mapping[str, tuple[int, str]]) -> tuple[int, int]:
    """Faults that were tried, and survived."""
    return sum(size for size, _ in found.values()), sum(size for size, wrong in found.values() if not wrong)


def faults(kept: Kept) -> str:
    """The table of kinds of faults in Markdown."""
    rows = [(kind, *count(found)) for kind, found in kept.items()]
    rows.append(("**all**", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    lines = ["| kind of fault, and what surviving means | tried | survived |", "|---|---|---|"]
    return "\n".join(lines + [f"| {kind} | {tried:,} | {survived:,} |" for kind, tried, survived in rows]) + "\n"


def attacks(found: Mapping[str, tuple[int, str]]) -> str:
    """The table of attacks by sampled programs in Markdown, by name."""
    lines = ["| what the program is after | tried | without effect | attacks |", "|---|---|---|---|"]
    outcomes = {name[1]: not wrong for test, (_, wrong) in found.items() if (name := re.search(r"\[(.*)\]$", test))}
    for kind, names in ATTACKS.items():
        tried = [name for name in names if name in outcomes]
        lines.append(f"| {kind} | {len(tried)} | {sum(outcomes[name] for name in tried)} | {', '.join(tried)} |")
    lines.append(f"| **all** | **{len(outcomes)}** | **{sum(outcomes.values())}** | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
