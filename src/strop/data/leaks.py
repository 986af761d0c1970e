"""Rows of an evaluation set that stand in the training set too: what is learned by heart is not measured."""

from __future__ import annotations

from collections.abc import Mapping

from strop.data.findings import Finding
from strop.data.report import DataReport


def note_leaks(reports: Mapping[str, DataReport], train: str = "train") -> None:
    """Add a finding to the report of every evaluation set that shares prompts with the training set.

    Prompts are compared by 8 bytes of a hash, whole texts and conversations as a whole. Streams are not compared.
    """
    if train not in reports:
        return
    known = reports[train]
    for name, report in reports.items():
        if name != train and (found := leak(known, report)) is not None and found not in report.noted:
            report.noted.append(found)


def leak(train: DataReport, evaluation: DataReport) -> Finding | None:
    """What an evaluation set shares with the training set, None if it is nothing."""
    fix = "Hold rows back that are not trained on"
    if evaluation.fingerprint and evaluation.fingerprint == train.fingerprint:
        message = "the evaluation rows are the training rows: their metrics say nothing about other rows"
        return Finding(None, None, "warning", message, fix)
    known = set(train.prompts)
    shared = sum(prompt in known for prompt in evaluation.prompts)
    if not shared:
        return None
    total = len(evaluation.prompts)
    message = f"{shared} of {total} prompts of the evaluation rows stand in the training rows too"
    return Finding(None, None, "warning", message, fix)
