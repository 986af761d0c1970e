"""`strop check FILE`: are these rows what a method needs? Nothing is loaded, torch is not imported."""

from __future__ import annotations

from strop.cli.flags import Flag, help_page, parse
from strop.errors import ConfigError
from strop.trainers.registry import BY_VERB

KINDS = {
    "sft": "language_modeling",
    "gkd": "prompt_completion",
    **dict.fromkeys(("dpo", "orpo", "cpo", "reward"), "preference"),
    **dict.fromkeys(("kto", "bco"), "unpaired_preference"),
    **dict.fromkeys(("ppo", "grpo", "rloo", "online-dpo", "nash-md", "xpo"), "prompt_only"),
    "prm": "stepwise",
}
FLAGS = (
    Flag("method", str, help="Method that the rows are for; left out, they are checked for what they look like."),
    Flag("split", str, "train", "Split, where the file or folder has several."),
)


def run(argv: list[str]) -> int:
    if not argv or "--help" in argv or "-h" in argv:
        print(help_page("strop check FILE: are these rows what a method needs?", {"flags": FLAGS}))
        return 0
    values = {**{f.name: f.default for f in FLAGS}, **parse(argv[1:], {f.name: f for f in FLAGS})}
    method = values["method"]
    if method is not None and method not in BY_VERB:
        raise ConfigError(f"--method {method}: choose one of {', '.join(BY_VERB)}.")
    from strop.data import check_rows, load_rows

    report = check_rows(load_rows(argv[0], split=values["split"]), KINDS[method] if method else None, name=argv[0])
    print(report.render())
    fitting = [verb for verb, kind in KINDS.items() if kind == str(report.kind)]
    print(f"These rows fit: {', '.join(fitting)}." if fitting else "No method takes these rows as they are.")
    return 0
