"""`strop report RUN`: the HTML page of a run directory."""

from __future__ import annotations

from pathlib import Path

from strop.errors import ConfigError

HELP = "usage: strop report RUN      Writes RUN/report.html, one self-contained page, from the files of the run."


def run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return 0
    from strop.report import write_report

    folder = Path(argv[0].removeprefix("--run="))
    if len(argv) > 1 or not folder.is_dir():
        raise ConfigError(f"{' '.join(argv)}: give one folder of a finished or running training. {HELP}")
    print(write_report(folder))
    return 0
