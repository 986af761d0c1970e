"""The config.yaml of every release is taken by today's command line, and every setting in it keeps its value.

`python tests/settings/test_released_configs.py VERSION` keeps the files that this version writes, one of each method.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from strop.cli.flags import parse
from strop.cli.train import NAME_ALIASES, flag_groups
from strop.engine.run_identity import RECORDS
from strop.methods.registry import BY_VERB

RELEASED = Path(__file__).with_name("released")
OF_THE_MACHINE = {"output_dir", "logging_dir", "run_name", "bf16", "fp16", "use_cpu", "report_to"}
"""What a file of one machine need not say on another."""


def written(verb: str) -> dict[str, Any]:
    """The settings that a run of this method writes where none was chosen."""
    settings = BY_VERB[verb].config()(output_dir="run", use_cpu=True, report_to="none").resolved()
    return {name: value for name, value in settings.items() if name not in OF_THE_MACHINE}


def released(version: str, verb: str) -> dict[str, Any]:
    """The settings of a file that a release wrote: those of all methods, and those of its own."""
    kept = json.loads((RELEASED / f"{version}.json").read_text(encoding="utf-8"))
    return {**kept["all"], **kept[verb]}


VERSIONS = sorted(path.stem for path in RELEASED.glob("*.json"))


@pytest.mark.parametrize("verb", BY_VERB)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_file_of_every_release_is_taken_as_it_was(version: str, verb: str, tmp_path: Path) -> None:
    method, settings = BY_VERB[verb], released(version, verb)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"method": verb, **settings, "output_dir": str(tmp_path / "run")}))
    flags = {flag.name: flag for group in flag_groups(method).values() for flag in group}
    values = parse(["--config", str(file), "--use_cpu"], flags, NAME_ALIASES, verb)
    taken = method.config()(**values).resolved()
    changed = {name: (value, taken.get(name)) for name, value in settings.items() if taken.get(name, value) != value}
    assert not changed
    assert settings.keys() - taken.keys() <= method.config().aliases.keys(), "a setting that is known by no name"


def test_files_of_a_release_are_there() -> None:
    assert VERSIONS and "config.yaml" in RECORDS
    for version in VERSIONS:
        kept = json.loads((RELEASED / f"{version}.json").read_text(encoding="utf-8"))
        assert all(verb in BY_VERB for verb in kept if verb != "all"), f"a method of {version} is gone"


def keep(version: str) -> None:
    """Write today's files, what all methods say alike said once."""
    files = {verb: written(verb) for verb in BY_VERB}
    first = next(iter(files.values()))
    alike = {
        name: value for name, value in first.items() if all(name in f and f[name] == value for f in files.values())
    }
    kept = {"all": alike}
    kept |= {verb: {k: v for k, v in f.items() if k not in alike} for verb, f in files.items()}
    (RELEASED / f"{version}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    keep(sys.argv[1])
