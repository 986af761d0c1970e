"""The pass over all rows before anything is loaded: broken rows are collected, unusable ones counted, all are hashed.

The pass keeps some 25 bytes per row whatever the rows hold, so a set larger than memory can be checked.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from strop.data.cases import Case, MissingColumn, read_cases, refuse_unknown_ids
from strop.data.findings import Finding, Problems, RowProblem
from strop.data.kinds import DatasetKind, columns_error, names_of
from strop.data.messages import Message
from strop.data.options import TokenizeOptions, repr_of_tool
from strop.data.report import DataReport
from strop.data.rows import Rows, RowStream
from strop.errors import DataError
from strop.records import Row

ENOUGH_WITHOUT_COLUMNS = 1000
"""If the first thousand rows all lack the columns, the rest need not be read to say so."""
STREAM_HEAD = 256
"""Rows of a stream that are checked before training starts."""
SIGNATURES = 256
"""How many kinds of conversations (orders of roles) are kept for trying the chat template."""

COMPARED = (DatasetKind.PREFERENCE, DatasetKind.UNPAIRED_PREFERENCE)
ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, default=repr_of_tool)


@dataclass(slots=True)
class Checked:
    """What the pass found: the account, and which cases can be used.

    Positions number the usable cases: `numbers[p]` is the source row of case p, `parts[p]` which of its cases it is.
    """

    report: DataReport
    numbers: array[int] = field(default_factory=lambda: array("q"))
    parts: array[int] = field(default_factory=lambda: array("b"))
    signatures: dict[Any, tuple[int, Case]] = field(default_factory=dict)


class Checker:
    """Checks rows one after the other and keeps the account."""

    def __init__(
        self,
        rows: Rows | RowStream,
        kind: DatasetKind,
        options: TokenizeOptions,
        control: Iterable[str],
        vocabulary: int | None,
        name: str,
    ) -> None:
        self.kind, self.options, self.where, self.vocabulary = kind, options, rows.where, vocabulary
        self.report = DataReport(name, rows.source, str(kind))
        self.checked = Checked(self.report)
        self.problems = Problems(rows.source)
        self.labels: Counter[bool] = Counter()
        self.layouts: Counter[str] = Counter()  # public layouts that rows had, and how many
        self.unused: dict[str, None] = {}  # columns of text that are in no tree
        self.without_columns = 0
        self.columns: dict[str, None] = {}
        self.example: Row = {}
        self.hash = hashlib.blake2b(digest_size=16)
        tokens = sorted((token for token in control if token.strip()), key=len, reverse=True)
        self.control = re.compile("|".join(map(re.escape, tokens))) if tokens else None

    def row(self, number: int, row: Row) -> None:
        """Check a row, and account for its cases."""
        self.report.rows_read += 1
        try:
            cases = checked_cases(row, self.kind, self.options, self.vocabulary)
        except RowProblem as problem:
            self._broken(number, row, problem)
            return
        for part, (case, digest) in enumerate(cases):
            if case.left_out is not None:
                self.report.leave_out(number, *case.left_out)
            else:
                self._account(number, part, case, digest)

    def _broken(self, number: int, row: Row, problem: RowProblem) -> None:
        if isinstance(problem, MissingColumn):
            self.without_columns += 1
            self.columns.update(dict.fromkeys(row))
            self.example = self.example or row
            if self.without_columns == self.report.rows_read == ENOUGH_WITHOUT_COLUMNS:
                raise columns_error(self.report.source, self.columns, self.example, self.kind) from None
        finding = self.problems.add(number, self.where(number), problem)
        if self.options.skip_bad_rows:
            self.report.leave_out(number, "bad_row", f"{finding.column or 'row'} {finding.message}")
            if len(self.problems.first) >= self.problems.total:
                self.report.noted.append(finding)

    def _account(self, number: int, part: int, case: Case, digest: bytes) -> None:
        checked, report = self.checked, self.report
        checked.numbers.append(number)
        checked.parts.append(part)
        report.digests.append(int.from_bytes(digest[:8], "little"))
        self.hash.update(digest)
        report.prompts.append(number_of(case.completions if case.prompt is None else case.prompt))
        if self.kind in COMPARED:
            report.alike.append(number_of([case.prompt, *sorted(case.completions, key=str)]))
        if case.layout is not None:
            self.layouts[case.layout] += part == 0
        if self.kind is not DatasetKind.PROMPT_ONLY:
            beside = case.extras["columns"].items()
            self.unused |= {name: None for name, value in beside if name not in self.unused and is_text(value)}
        report.conversational += case.chat
        if "label" in case.extras:
            self.labels[case.extras["label"]] += 1
        for note in case.notes:
            report.flag(number, note)
        if case.chat:
            if self.control is not None and self._holds_control(case):
                report.flag(number, "control_token")
            if len(checked.signatures) < SIGNATURES:
                checked.signatures.setdefault(_signature(case), (number, case))

    def _holds_control(self, case: Case) -> bool:
        assert self.control is not None
        said = [case.prompt or [], *case.completions]
        return any(
            self.control.search(message["content"])
            for messages in said
            if not isinstance(messages, str)
            for message in messages
        )

    def finish(self) -> Checked:
        """The account, or the error that names every broken row."""
        report = self.report
        report.trees = len(self.checked.numbers)
        if report.rows_read == 0:
            raise DataError(f"{report.source}: there are no rows. Check that the data were written to the end.")
        if self.without_columns == report.rows_read:
            raise columns_error(report.source, self.columns, self.example, self.kind)
        if self.problems.total and not self.options.skip_bad_rows:
            raise self.problems.error(report.rows_read)
        if not report.trees:
            raise report.nothing_left()
        report.fingerprint = self.hash.hexdigest()
        report.noted += self._duplicates() + self._swapped() + self._label_balance() + self._columns()
        return self.checked

    def _columns(self) -> list[Finding]:
        """Which public layouts were recognised, and which columns of text are in no tree."""
        found = [
            Finding(
                None,
                None,
                "info",
                f"{count} row{' has' if count == 1 else 's have'} the columns of {name}, and "
                f"{'is' if count == 1 else 'are'} read as such",
            )
            for name, count in self.layouts.items()
        ]
        if self.unused:
            names = names_of(self.unused)
            fix = "If one belongs to the prompt, set columns (--columns prompt=instruction+input)"
            found.append(Finding(None, None, "info", f"text columns that are not used: {names}", fix))
        return found

    def _duplicates(self) -> list[Finding]:
        import numpy as np

        numbers = np.frombuffer(self.checked.numbers, dtype=np.int64)
        earlier, later = (numbers[places] for places in _neighbours(self.report.digests))
        if not len(later):
            return []
        copies, first = np.unique(later, return_index=True)  # both answers of a pair count once
        pairs = [(int(copy), int(earlier[k])) for copy, k in zip(copies[:5], first[:5], strict=True)]
        shown = ", ".join(f"row {copy} repeats row {original}" for copy, original in pairs)
        which = "1 row is an exact copy of another" if len(copies) == 1 else f"{len(copies)} rows are exact copies"
        message = f"{which} ({shown}{', ...' if len(copies) > 5 else ''})"
        return [Finding(pairs[0][0], None, "warning", message, "Remove them unless the weight is wanted")]

    def _swapped(self) -> list[Finding]:
        """Cases that say the opposite of one another: the same answers in the other order, or with the other label."""
        numbers, digests = self.checked.numbers, self.report.digests
        likes = zip(*_neighbours(self.report.alike), strict=True)
        against = ((numbers[b], numbers[a]) for a, b in likes if digests[a] != digests[b])
        pairs = sorted({pair for pair in against if pair[0] != pair[1]})
        if not pairs:
            return []
        shown = ", ".join(f"row {row} against row {other}" for row, other in pairs[:5])
        more = ", ..." if len(pairs) > 5 else ""
        message = f"{len(pairs)} of the rows prefer what another one rejects ({shown}{more})"
        return [Finding(pairs[0][0], None, "warning", message, "Keep the one that is right")]

    def _label_balance(self) -> list[Finding]:
        if len(self.labels) != 1:
            return []
        message = f"every label is {next(iter(self.labels))}"
        return [Finding(None, "label", "warning", message, "Both kinds of answers are needed to compare")]


def checked_cases(
    row: Any, kind: DatasetKind, options: TokenizeOptions, vocabulary: int | None = None
) -> list[tuple[Case, bytes]]:
    """The cases of one row, each with 16 bytes that stand for its content; raises `RowProblem`.

    `vocabulary` is how many tokens the tokenizer has, None where there is none yet.
    """
    if not isinstance(row, dict):
        raise RowProblem(None, f"is a {type(row).__name__}, not a dict of columns", "Write {'column': value, ...}")
    cases = read_cases(row, kind, options)
    if vocabulary is not None:
        refuse_unknown_ids(row, cases[0], vocabulary)
    return [(case, _digest(case)) for case in cases]


def _digest(case: Case) -> bytes:
    """16 bytes that stand for all of a case that reaches a tree."""
    content = (
        case.prompt,
        case.completions,
        case.masks,
        case.tools,
        case.template_kwargs,
        case.extras.get("label"),
        case.extras.get("labels"),
    )
    try:
        return hashlib.blake2b(ENCODER.encode(content).encode("utf-8"), digest_size=16).digest()
    except UnicodeEncodeError as problem:
        broken = problem.object[problem.start : problem.end]
        message = f"holds {broken!r}, half of a character, which no text file can hold"
        raise RowProblem(None, message, "Write the row's text again as UTF-8") from None
    except RecursionError:
        raise RowProblem(None, "is nested too deeply", "Write tools and template variables as flat objects") from None
    except (TypeError, ValueError) as problem:
        message = f"holds something that is no text, number or list ({problem})"
        raise RowProblem(None, message, "Use plain JSON values") from None


def number_of(said: Any) -> int:
    """8 bytes that stand for texts or messages."""
    return int.from_bytes(hashlib.blake2b(ENCODER.encode(said).encode("utf-8"), digest_size=8).digest(), "little")


def _neighbours(values: array[int]) -> tuple[Any, Any]:
    """Places of equal values, each with that of the next that is equal to it."""
    import numpy as np

    found = np.frombuffer(values, dtype=np.uint64)
    order = np.argsort(found, kind="stable")
    same = found[order[1:]] == found[order[:-1]]
    return order[:-1][same], order[1:][same]


def is_text(value: Any) -> bool:
    """Whether a column holds text or messages, and something in them."""
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict) and ("role" in value[0] or "from" in value[0])
    return isinstance(value, str) and bool(value.strip())


def _signature(case: Case) -> Any:
    """What a chat template's control flow may depend on: roles and tool calls in their order, tools, variables."""

    def roles(messages: list[Message] | str | None) -> Any:
        if not isinstance(messages, list):
            return None
        return tuple([m["role"] if len(m) == 2 else (m["role"], *m) for m in messages])

    said = tuple(roles(completion) for completion in case.completions)
    return roles(case.prompt), said, case.tools is not None, tuple(sorted(case.template_kwargs))


def check(
    rows: Rows | RowStream,
    kind: DatasetKind,
    options: TokenizeOptions,
    control: Iterable[str] = (),
    vocabulary: int | None = None,
    *,
    name: str,
) -> Checked:
    """Check every row, or the first ones of a stream, for `kind`; raises one `DataError` that lists the broken ones."""
    checker = Checker(rows, kind, options, control, vocabulary, name)
    for number, row in enumerate(islice(rows, STREAM_HEAD if isinstance(rows, RowStream) else None)):
        checker.row(number, row)
    if isinstance(rows, Rows):
        checker.report.noted += [Finding(None, None, "info", note) for note in rows.notes]
    return checker.finish()
