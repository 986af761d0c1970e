"""Rows of an evaluation set that stand in the training set too: what is learned by heart is not measured."""

from __future__ import annotations

from collections.abc import Mapping

from strop.data.findings import Finding
from strop.data.report import DataReport


def note_leaks(reports: Mapping[str, DataReport], train: str = "train") -> None:
    """Add to the report of every evaluation set what it shares with the training set.

    Rows and prompts are compared by 8 bytes of a hash, texts and conversations as a whole. Streams are not compared.
    """
    if train not in reports:
        return
    known = reports[train]
    for name, report in reports.items():
        if name != train:
            report.noted += [finding for finding in leaks(known, report) if finding not in report.noted]


def leaks(train: DataReport, evaluation: DataReport) -> list[Finding]:
    """What an evaluation set shares with the training set: all its rows, pairs with the other label, prompts."""
    said = []
    rows, prompts, alike = set(train.digests), set(train.prompts), set(train.alike)
    same = sum(digest in rows for digest in evaluation.digests)
    total = len(evaluation.prompts)
    if same and same == total:
        said.append("the evaluation rows are the training rows: their metrics say nothing about other rows")
    else:
        if shared := sum(prompt in prompts for prompt in evaluation.prompts):
            copies = f" ({same} as whole rows)" if same else ""
            said.append(f"{shared} of {total} prompts of the evaluation rows stand in the training rows too{copies}")
        pairs = zip(evaluation.alike, evaluation.digests, strict=False)  # `alike` is empty where nothing is compared
        if against := sum(pair in alike and digest not in rows for pair, digest in pairs):
            said.append(f"{against} of {total} evaluation rows prefer what a training row rejects")
    return [Finding(None, None, "warning", message, "Hold rows back that are not trained on") for message in said]
