"""`strop recommend FILE`: which method fits these rows and what is at hand, with a config file to start from."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from strop.cli.flags import Flag, all_values
from strop.disk import write_text
from strop.errors import ConfigError
from strop.terminal import width_of

FLAGS = (
    Flag("have", list[str] | str, help="What else you have: reward, verifier, judge, teacher, steps (a list is fine)."),
    Flag("gpu", str, help="Memory of your card, for example 24GB."),
    Flag("model", str, help="The model to train; it is written into the config."),
    Flag("columns", str, help="Which columns hold what: prompt=instruction+input,chosen=better."),
    Flag("split", str, "train", "Split, where the file or folder has several."),
    Flag("write", str, help="Write the config to this file; without it, it is only shown."),
)
WIDEST = 80
TITLE = "strop recommend FILE [--have reward,teacher] [--gpu 24GB]: which method fits these rows?"


def run(argv: list[str]) -> int:
    files: list[str] = []
    values = all_values(argv, FLAGS, files)
    if len(files) != 1:
        raise ConfigError(f"strop recommend looks at one file; {len(files)} were named. Write: strop recommend FILE")
    print(recommendation(files[0], values))
    return 0


def recommendation(file: str, values: dict[str, Any]) -> str:
    """The whole answer, as text for a terminal of 80 columns."""
    from strop.data import detect, load_rows
    from strop.plan.recommend import recommend

    rows = load_rows(file, split=values["split"], columns=values["columns"])
    detected, gpu = detect(rows), gigabytes(values["gpu"])
    form = detected.forms.most_common(1)[0][0]
    found = recommend(detected.kind, names(values["have"]), form=form)
    lines = [f"{file}: {detected.kind} rows", "", wrapped(f"Take {found.first.verb}. {found.first.reason}")]
    if found.runner_up:
        lines.append(wrapped(f"Next best: {found.runner_up.verb}. {found.runner_up.reason}"))
    lines += ["", "Other branches would need:", *(wrapped(text, "  - ") for text in found.others)]
    return "\n".join([*lines, "", config_text(found.first, file, values, gpu)])


def config_text(choice: Any, file: str, values: dict[str, Any], gpu: float | None) -> str:
    """The config file, and the command that runs it."""
    import yaml

    from strop.plan.recommend import settings_for

    output = f"runs/{choice.verb}"
    settings = settings_for(choice, dataset=file, output_dir=output, gpu_gb=gpu)
    settings["model"] = values["model"] or settings["model"]
    if values["columns"]:
        settings["columns"] = values["columns"]
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    fill = [name for name, value in settings.items() if value == name.upper()]
    if target := values["write"]:
        if Path(target).exists():
            raise ConfigError(f"--write {target}: there is such a file already; name another one, or remove it.")
        write_text(Path(target), text)
        say = f"Written to {target}."
    else:
        target = f"{choice.verb}.yaml"
        say = f"As a file, {target} (--write {target} writes it):"
    first = "" if not fill else f"Fill in {' and '.join(fill)} first. "
    return f"{say}\n\n{textwrap.indent(text, '  ')}\n{first}Run it: strop {choice.verb} --config {target}"


def names(value: Any) -> list[str]:
    """A list as people write it: `reward teacher`, `reward,teacher`, `[reward, teacher]`."""
    words = value if isinstance(value, list) else str(value or "").replace(",", " ").split()
    return [str(word).strip().lower() for word in words]


def gigabytes(text: str | None) -> float | None:
    """`24GB`, `24` or `24 GiB` as a number of GB.

    Raises:
        ConfigError: it is no amount of memory.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:gb|gib|g)?", str(text).strip().lower())
    if match is None or not float(match[1]):
        raise ConfigError(f"--gpu {text}: write the card's memory in GB, for example --gpu 24GB.")
    return float(match[1])


def wrapped(text: str, bullet: str = "") -> str:
    width = min(width_of(sys.stdout), WIDEST)
    return textwrap.fill(text, width, initial_indent=bullet, subsequent_indent=" " * len(bullet))
