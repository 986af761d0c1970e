"""Run directories become one page, as a file or from a local server.

glossary.py  what every logged metric means, its unit, what it is averaged over, its healthy range
run.py       reads metrics.jsonl, samples.jsonl, alarms.jsonl, config.yaml, data.json, run.json, summary.json
numbers.py   short numbers, thinned curves
charts.py    which charts there are, which curves and alarms stand in them
samples.py   the choice of samples in a page; what a query finds
sections.py  head, what to try next, data findings, configuration as HTML
page.py      the page: `write_report(run_dir)` -> report.html
serve.py     the page from a local server, which follows runs
assets/      what draws it: our scripts and style; uPlot 1.6.32 as its npm package has it, with its licence
"""

from strop.report.glossary import GLOSSARY, Entry, lookup
from strop.report.page import write_report

__all__ = ["GLOSSARY", "Entry", "lookup", "write_report"]
