"""A run directory becomes one self-contained page.

entry.py     one metric: its unit, what it is averaged over, its healthy range; the families of metrics
glossary.py  what every logged metric means, its unit, what it is averaged over, its healthy range
run.py       reads metrics.jsonl, samples.jsonl, config.yaml, data.json, run.json, summary.json
curves.py    curves as inline SVG
sections.py  a run's parts as HTML: charts, samples, data findings, configuration
page.py      the page: `write_report(run_dir)` -> report.html
"""

from strop.report.glossary import GLOSSARY, Entry, lookup
from strop.report.page import write_report

__all__ = ["GLOSSARY", "Entry", "lookup", "write_report"]
