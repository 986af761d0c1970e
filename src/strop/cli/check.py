"""`strop check FILE ...`: are these rows what a method needs? Nothing is loaded, torch is not imported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from strop.cli.flags import Flag, all_values, helped, separate
from strop.errors import ConfigError, DataError, StropError, did_you_mean
from strop.methods.registry import BY_VERB

FLAGS = (
    Flag("method", str, help="Method that the rows are for; left out, they are checked for what they look like."),
    Flag("columns", str, help="Which columns hold what: prompt=instruction+input,chosen=better."),
    Flag("eval", str, help="A file of evaluation rows: checked too, and compared with each FILE."),
    Flag("split", str, "train", "Split, where the file or folder has several."),
)
TITLE = "strop check FILE [FILE ...]: are these rows what a method needs?"
SHOWN_CHARACTERS = 80


def run(argv: list[str]) -> int:
    if helped(argv, TITLE, FLAGS):
        return 0
    files, flags = separate(argv, FLAGS)
    values = all_values(flags, FLAGS)
    method = values["method"]
    if method is not None and method not in BY_VERB:
        raise ConfigError(f"--method {method}: choose one of {', '.join(BY_VERB)}.{did_you_mean(method, BY_VERB)}")
    if not files:
        raise ConfigError("No file is named. Write: strop check FILE")
    broken = 0
    for file in files:
        try:
            print(check_file(file, method, values["split"], values["columns"], values["eval"]))
        except StropError as error:
            print(f"strop check: {error}", file=sys.stderr)
            broken = 2
    return broken


def check_file(
    file: str, method: str | None, split: str, columns: str | None = None, evaluation: str | None = None
) -> str:
    """What is in a file, as text for a terminal; raises `DataError` where rows cannot be used."""
    from strop.data import check_rows, load_rows, note_leaks

    kind = BY_VERB[method].kind if method else None
    try:
        rows = load_rows(file, split=split, columns=columns)
    except DataError as error:
        raise with_columns(error, file, kind) from None
    report = check_rows(rows, kind, name=file)
    reports = {"train": report}
    if evaluation is not None:
        held_back = load_rows(evaluation, split="train" if Path(evaluation).is_file() else "test", columns=columns)
        reports["eval"] = check_rows(held_back, kind or report.kind, name=evaluation)
        note_leaks(reports)
    first = next(iter(rows))
    left_out = sum(found.count for found in report.left_out.values())
    lines = [f"{file}: {counted(report.rows_read, 'row')} of {report.kind} data, {manner(report)}"]
    lines.append(f"  {report.trees} can be learned from" + (f", {left_out} left out" if left_out else ""))
    lines += [f"  {finding.severity}: {finding}" for finding in report.findings]
    if evaluation is not None:
        lines.append(f"{evaluation}: {counted(reports['eval'].rows_read, 'row')} to evaluate on")
        lines += [f"  {finding.severity}: {finding}" for finding in reports["eval"].findings]
    lines += ["  the first row:", *(f"    {name}: {shortened(value)}" for name, value in first.items())]
    if method:
        more = f" --columns {columns}" if columns else ""
        lines.append(f"Ready: strop {method} --model MODEL --dataset {file}{more}")
    else:
        lines.append(fitting(first))
    return "\n".join(lines)


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


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


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
