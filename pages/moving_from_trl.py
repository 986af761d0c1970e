"""docs/moving-from-trl.md, which stands in the repository, from the tables that `strop run` and the configs go by.

python -m pages.moving_from_trl > docs/moving-from-trl.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from benchmarks.trl_behaviours import BEHAVIOURS

from pages.markdown import table
from strop.engine.overrides import HOOKS
from strop.methods.registry import METHODS
from strop.scripts.alias import VERSION
from strop.scripts.differences import DEFAULTS, NAMES
from strop.scripts.names import ELSEWHERE, SCRIPT_NAMES

INTRODUCTION = f"""# Moving from TRL

<!-- python -m pages.moving_from_trl > docs/moving-from-trl.md -->

Change one import, and a script for TRL {VERSION} trains with strop:

    from strop import DPOConfig, DPOTrainer, ModelConfig, ScriptArguments, TrlParser, get_peft_config

Or change nothing:

    strop run script.py --model_name_or_path Qwen/Qwen3-0.6B --dataset_name trl-lib/ultrafeedback_binarized
    strop run --processes 8 script.py ...
    strop run -m package.train ...

`strop run` serves every `trl` import of that process from strop, whatever module path it names (`trl.trainer.utils`,
`trl.experimental.gkd`, `trl.scripts`, `trl.rewards` ...), and says at the end which names and defaults the script met
that behave differently. In a notebook the first cell is `from strop.scripts.alias import serve_trl; serve_trl()`.

Plain `TrainingArguments` work in every trainer; all their values count as given. What
trainers of earlier releases took themselves (`SFTTrainer(..., max_seq_length=512, packing=True)`,
`DPOTrainer(..., beta=0.1)`) is taken beside them, or beside no `args`; beside a config of strop it belongs into that.

Differences that change numbers of a loss are in [design.md](design.md)."""


def page() -> str:
    """The page as Markdown."""
    sections = [
        INTRODUCTION,
        "## Names that do another thing\n\n" + "\n".join(f"* `{name}` {text}." for name, text in sorted(NAMES.items())),
        "## Defaults that are not TRL's\n\n"
        + table(
            ("config", "setting", "TRL", "why"), ((d.config, f"`{d.field}`", f"`{d.trl!r}`", d.why) for d in DEFAULTS)
        ),
        "## What trainers do otherwise\n\n"
        "Of the tests in TRL's repository that a user could feel, these explain all that do not pass with strop in "
        "TRL's place (`python -m benchmarks.trl_tests CHECKOUT`).\n\n"
        + table(("here", "why"), ((b.what, b.why) for b in BEHAVIOURS)),
        "## Names beside trainers and configs\n\n" + ", ".join(f"`{name}`" for name in sorted(SCRIPT_NAMES)) + ".",
        "## Names without a namesake\n\n" + table(("name", "instead"), by_text(ELSEWHERE)),
        "## Settings that strop does without\n\n"
        "With TRL's default, or nothing, they are passed over; any other value is an error that says the same.\n\n"
        + table(("setting", "configs", "instead"), settings()),
        "## Methods that no subclass can override\n\n"
        "Nothing would call them, so the class is refused when it is made, where TRL calls them for that trainer; "
        "under any other they are free names.\n\n" + table(("method", "override"), by_text(HOOKS)),
    ]
    return "\n\n".join(sections) + "\n"


def settings() -> Iterator[tuple[str, ...]]:
    """Rows of the settings that configs know and do not have."""
    found: dict[tuple[str, str], list[str]] = {}
    for method in METHODS:
        for name, text in method.config().removed.items():
            found.setdefault((name, text), []).append(method.prefix)
    for (name, text), prefixes in sorted(found.items()):
        yield f"`{name}`", "all" if len(prefixes) == len(METHODS) else ", ".join(prefixes), text


def by_text(texts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Rows of a table: all names of one text, and the text."""
    names: dict[str, list[str]] = {}
    for name in sorted(texts):
        names.setdefault(texts[name], []).append(f"`{name}`")
    return [(", ".join(same), text) for text, same in names.items()]


if __name__ == "__main__":
    print(page(), end="")
