"""`python -m proof.faults [WORD ...]`: try every kind of fault, or those with a word in their name, and write what was
survived into docs/reliability.md.

What was tried is kept in runs/faults.json, so that a run that was cut off goes on; another source begins anew. Each row
of the page says when it was last tried: a row that is not tried stays as it is.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from proof.attacks import KINDS as ATTACKS
from proof.trials import KINDS, PROGRAMS, ROOT

PAGE = ROOT / "docs" / "reliability.md"
KEPT = ROOT / "runs" / "faults.json"
Kept = dict[str, dict[str, tuple[int, str]]]
"""Kind -> trial -> how many faults it was, and what went wrong."""
Row = tuple[int, int, str]
"""Faults that were tried, and survived; the day."""
HEAD = ["| kind of fault, and what surviving means | tried | survived | on |", "|---|---|---|---|"]


def main(words: Sequence[str] = ()) -> int:
    """Try what was not tried yet; 1 where something was lost, or nothing could be tried."""
    asked = [kind for kind in KINDS if not words or any(word in kind for word in words)]
    if not asked:
        print("No kind of fault has such a word in its name. There are:", *KINDS, sep="\n  ")
        return 2
    kept, page = read(), PAGE.read_text(encoding="utf-8")
    for kind in asked:
        found = kept.setdefault(kind, {})
        if not found.pop("complete", None):
            for name, size, wrong in KINDS[kind](found):
                found[name] = (size, wrong)
                write(kept)
                print(f"{'LOST' if wrong else 'ok':5} {kind[:40]}: {name} {wrong}", flush=True)
        found["complete"] = (0, "")
        write(kept)
    today = datetime.now(UTC).date().isoformat()
    rows = rows_of(part(page, "faults")) | {kind: (*count(kept[kind]), today) for kind in asked}
    page = with_part(page, "faults", faults({kind: rows[kind] for kind in KINDS if kind in rows}))
    if PROGRAMS in asked:
        page = with_part(page, "attacks", attacks(kept[PROGRAMS]))
    PAGE.write_text(page, encoding="utf-8")
    print(part(page, "faults"))
    return 0 if all(tried == survived > 0 for tried, survived in (count(kept[kind]) for kind in asked)) else 1


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


def part(page: str, mark: str) -> str:
    """What a page has between two marks."""
    return page.partition(f"<!-- {mark}: written by `make faults` -->\n")[2].partition(f"<!-- end of {mark} -->")[0]


def with_part(page: str, mark: str, text: str) -> str:
    """The page with other text between two marks."""
    begin, end = f"<!-- {mark}: written by `make faults` -->\n", f"<!-- end of {mark} -->"
    before, _, rest = page.partition(begin)
    return before + begin + text + end + rest.partition(end)[2]


def rows_of(table: str) -> dict[str, Row]:
    """The rows of a table that `faults` wrote, without that of the sums."""
    rows = re.findall(r"^\| ([^*|].*?) \| ([\d,]+) \| ([\d,]+) \| (\S+) \|$", table, re.MULTILINE)
    return {kind: (int(tried.replace(",", "")), int(kept.replace(",", "")), day) for kind, tried, kept, day in rows}


def faults(rows: Mapping[str, Row]) -> str:
    """The table of kinds of faults in Markdown."""
    lines = [f"| {kind} | {tried:,} | {survived:,} | {day} |" for kind, (tried, survived, day) in rows.items()]
    every = [sum(row[place] for row in rows.values()) for place in range(2)]
    return "\n".join([*HEAD, *lines, f"| **all** | {every[0]:,} | {every[1]:,} | |"]) + "\n"


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
    raise SystemExit(main(sys.argv[1:]))
