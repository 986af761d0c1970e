"""`strop check FILE ...`: are these rows what a method needs? No weights are loaded, and torch with --model only."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strop.cli.flags import Flag, all_values
from strop.cli.row_view import Shown, as_text, as_the_model_sees, show
from strop.errors import ConfigError, DataError, StropError, did_you_mean
from strop.methods.registry import BY_VERB
from strop.terminal import in_width

if TYPE_CHECKING:
    from strop.data import DataReport

FLAGS = (
    Flag("method", str, help="Method that the rows are for; left out, they are checked for what they look like."),
    Flag("columns", str, help="Which columns hold what: prompt=instruction+input,chosen=better."),
    Flag("eval", str, help="A file of evaluation rows: checked too, and compared with each FILE."),
    Flag("model", str, help="Model whose tokenizer and chat template the rows are shown and checked with."),
    Flag("json", bool, default=False, help="Print what was found as JSON: a list with an entry for each FILE."),
    Flag("strict", bool, default=False, help="Exit with status 1 where there are warnings."),
    Flag("split", str, "train", "Split, where the file or folder has several."),
)
TITLE = """strop check FILE [FILE ...]: are these rows what a method needs?

Exit status: 0 they are, 2 some cannot be used; with --strict, 1 where there are warnings."""


@dataclass
class Looked:
    """What was found in a file: a report of each set, how the rows are meant, some of them as they will be learned."""

    file: str
    reports: dict[str, DataReport] = field(default_factory=dict)
    rows: list[Shown] = field(default_factory=list)
    closing: str = ""  # the command to run, or the methods that the rows fit
    error: str = ""  # why they cannot be used

    @property
    def status(self) -> str:
        """ "unusable", "warnings" or "fit"."""
        findings = [finding for report in self.reports.values() for finding in report.findings]
        return "unusable" if self.error else "warnings" if any(f.severity != "info" for f in findings) else "fit"

    def to_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        reports = {name: report.to_dict() for name, report in self.reports.items()}
        rows = [dataclasses.asdict(row) for row in self.rows]
        return {"file": self.file, "status": self.status, "error": self.error, "sets": reports, "rows": rows,
                "closing": self.closing}  # fmt: skip


def run(argv: list[str]) -> int:
    files: list[str] = []
    values = all_values(argv, FLAGS, files)
    method = values["method"]
    if method is not None and method not in BY_VERB:
        raise ConfigError(f"--method {method}: choose one of {', '.join(BY_VERB)}.{did_you_mean(method, BY_VERB)}")
    if not files:
        raise ConfigError("No file is named. Write: strop check FILE")
    looked = []
    for file in files:
        try:
            looked.append(look(file, values))
        except StropError as error:
            looked.append(Looked(file, error=str(error)))
        if not values["json"]:
            tell(looked[-1], values["eval"])
    if values["json"]:
        print(json.dumps([each.to_dict() for each in looked], ensure_ascii=False, indent=1))
    if any(each.error for each in looked):
        return 2
    return int(bool(values["strict"]) and any(each.status == "warnings" for each in looked))


def look(file: str, values: dict[str, Any]) -> Looked:
    """Check a file, and the evaluation rows beside it; raises `DataError` where rows cannot be used."""
    from strop.data import check_rows, detect, load_rows, note_leaks

    method, split, columns, evaluation = (values[name] for name in ("method", "split", "columns", "eval"))
    kind = BY_VERB[method].kind if method else None
    try:
        rows = load_rows(file, split=split, columns=columns)
    except DataError as error:
        raise with_columns(error, file, kind) from None
    if values["model"] is not None:
        report, shown = as_the_model_sees(rows, kind or str(detect(rows).kind), values["model"], method, file)
    else:
        report = check_rows(rows, kind, name=file)
        shown = as_text(rows, report.kind)
    reports = {"train": report}
    if evaluation is not None:
        held_back = load_rows(evaluation, split="train" if Path(evaluation).is_file() else "test", columns=columns)
        reports["eval"] = check_rows(held_back, kind or report.kind, name=evaluation)
        note_leaks(reports)
    more = f" --columns {columns}" if columns else ""
    ready = f"Ready: strop {method} --model {values['model'] or 'MODEL'} --dataset {file}{more}"
    return Looked(file, reports, shown, ready if method else fitting(next(iter(rows))))


def tell(found: Looked, evaluation: str | None) -> None:
    """What was found, for a terminal; what cannot be used goes to the error stream."""
    if found.error:
        print(in_width(f"strop check: {found.error}", sys.stderr), file=sys.stderr)
        return
    report = found.reports["train"]
    left_out = sum(out.count for out in report.left_out.values())
    lines = [f"{found.file}: {counted(report.rows_read, 'row')} of {report.kind} data, {manner(report)}"]
    lines.append(f"  {report.trees} can be learned from" + (f", {left_out} left out" if left_out else ""))
    lines += [f"  {finding.severity}: {finding}" for finding in report.findings]
    if evaluation is not None:
        held_back = found.reports["eval"]
        lines.append(f"{evaluation}: {counted(held_back.rows_read, 'row')} to evaluate on")
        lines += [f"  {finding.severity}: {finding}" for finding in held_back.findings]
    print(in_width("\n".join(lines)))
    show(found.rows)
    print(in_width(found.closing))


def with_columns(error: DataError, file: str, kind: str | None) -> DataError:
    """An error about broken lines, and that the other lines have not the columns of the method, if so."""
    from strop.data import check_rows

    good = getattr(error, "good_row", None)
    if kind is None or good is None or "no known columns" in str(error):
        return error
    try:
        check_rows([good], kind, name=file)
    except DataError as other:
        return DataError(f"{error}\nBeside that, of the lines that can be read: {other}")
    return error


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def manner(report: Any) -> str:
    """Whether the rows are conversations."""
    plain = report.trees - report.conversational
    if not report.conversational:
        return "plain text"
    return f"{counted(report.conversational, 'conversation')}, {plain} in plain text" if plain else "conversations"


def fitting(row: dict[str, Any]) -> str:
    """The verbs that take rows of this shape as they are, and those that convert them."""
    from strop.data import TokenizeOptions
    from strop.data.kinds import ACCEPTED, DETECTED, FORMS, DatasetKind, form_of
    from strop.data.layouts import adapt

    row, _ = adapt(row, None, TokenizeOptions())
    form = form_of(row, FORMS, TokenizeOptions()) or "text"
    taking = [verb for verb, method in BY_VERB.items() if form in ACCEPTED[DatasetKind(method.kind)]]
    as_they_are = [verb for verb in taking if BY_VERB[verb].kind == str(DETECTED[form])]
    converted = [verb for verb in taking if verb not in as_they_are]
    if not taking:
        return "No method takes these rows as they are."
    lines = [f"These rows fit: {', '.join(as_they_are)}."] if as_they_are else []
    if converted:
        lines.append(f"Converted while they are read, they also fit: {', '.join(converted)}.")
    return "\n".join(lines)
