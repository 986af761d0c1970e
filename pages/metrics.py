"""The logged metrics that methods share, from the glossary that the report and the alarms go by."""

from __future__ import annotations

from itertools import groupby

from pages.markdown import table
from strop.report.glossary import GLOSSARY

INTRODUCTION = """# Metrics: what they mean, and when to worry

Evaluation logs the same keys with `eval_` in front, `eval_NAME_` where there are several sets. What is averaged is
averaged over all processes and over the whole logging window, weighted by what it counts. What one method alone
logs, or means otherwise, is on its own page.
"""


def page() -> str:
    """The page as Markdown, a section for each family."""
    sections = [INTRODUCTION]
    for family, entries in groupby(sorted(GLOSSARY, key=lambda entry: entry.family), key=lambda entry: entry.family):
        rows = [
            (f"`{entry.key}`", f"{entry.meaning} ({entry.unit}, per {entry.per})",
             entry.range_text, entry.advice)
            for entry in entries
        ]  # fmt: skip
        sections.append(f"## {family}\n\n" + table(("metric", "meaning", "healthy", "otherwise"), rows))
    return "\n\n".join(sections) + "\n"
