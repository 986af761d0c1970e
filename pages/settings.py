"""What every method can be given."""

from __future__ import annotations

import dataclasses
from typing import Any

from pages.markdown import table
from strop.cli.train import LORA_FLAGS, RUN_FLAGS
from strop.settings.config import TrainerConfig
from strop.settings.online import OnlineConfig
from strop.settings.schema import allowed, describe, field_hints

INTRODUCTION = """# Settings of every method

Each is a field of the method's config and a flag of the same name (`--beta 0.1`), and may stand in a YAML file
(`--config run.yaml`; what is on the command line wins). Whatever `transformers.TrainingArguments` knows is taken too. A
name that is not known is an error that says the nearest one; a setting that would change nothing is an error too.
"""


def page() -> str:
    """The page as Markdown."""
    from transformers import TrainingArguments

    theirs = {field.name for field in dataclasses.fields(TrainingArguments)}
    shared = {field.name for field in dataclasses.fields(TrainerConfig)}
    flags = [(f"`--{flag.name}`", f"`{flag.default!r}`", flag.help) for flag in (*RUN_FLAGS, *LORA_FLAGS)]
    head = ("setting", "default", "allowed", "what it does")
    return "\n\n".join(
        [
            INTRODUCTION,
            "## The run and its adapter\n\n" + table(("flag", "default", "what it does"), flags),
            "## Training\n\n" + table(head, rows(TrainerConfig, theirs)),
            "## Sampling, in the methods that sample\n\n" + table(head, rows(OnlineConfig, shared)),
        ]
    )


def rows(config: Any, known: set[str]) -> list[tuple[str, ...]]:
    """The fields of a config that are not known already."""
    texts, hints = describe(config), field_hints(config)
    own = [field for field in dataclasses.fields(config) if field.init and field.name not in known]
    return [(f"`{f.name}`", f"`{f.default!r}`", allowed(hints[f.name]), texts[f.name][1]) for f in own]
