"""`strop demo`: the main job on an embedded task, from nothing to skill."""

from __future__ import annotations

from strop.cli.flags import Flag, all_values

TITLE = "strop demo: SFT, a reward model and DPO on a small task, in a few minutes on a laptop"
FLAGS = (
    Flag("output_dir", str, "runs/demo", "Where models, metrics, summary.json and report.html go."),
    Flag("seed", int, 0, "Seed of everything random."),
    Flag("fast", bool, False, "A few steps only, to see that everything runs."),
)


def run(argv: list[str]) -> int:
    values = all_values(argv, FLAGS)
    from strop.demo.run import run_demo

    run_demo(**values)
    return 0
