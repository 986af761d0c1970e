"""A script that imports `trl`, run as it is with strop in its place."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from strop.errors import ConfigError
from strop.scripts.alias import Asked, serve_trl
from strop.scripts.differences import differing_names, differing_settings
from strop.scripts.parser import SettingsParser


def run_script(script: str, arguments: Sequence[str]) -> None:
    """Run a script as `python SCRIPT ARGUMENTS` would, with `trl` served by strop; say at its end what differed."""
    path = Path(script)
    if not path.is_file():
        near = sorted(str(other) for other in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = f" There are: {', '.join(near[:8])}." if near else ""
        raise ConfigError(f"{script}: there is no such script.{hint}")
    asked = serve_trl()
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(path.resolve().parent))
    try:
        # Scripts that parse by themselves know the names of TRL's settings, and transformers' parser those of fields.
        with patch("transformers.HfArgumentParser", SettingsParser):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:  # `sys.exit(main())` ends a script well, too
        say(closing_note(asked))
        raise end
    say(closing_note(asked))


def say(lines: Sequence[str]) -> None:
    if lines:
        print("\n".join(lines), flush=True)


def closing_note(asked: Asked) -> list[str]:
    """What a script met that behaves differently from TRL; nothing where nothing did, and from one process only."""
    if any(settings.process_index for settings in asked.configs):
        return []
    found = [*differing_names(asked.names), *differing_settings(asked.configs)]
    return (
        ["Different from TRL in this run (see docs/moving-from-trl.md):", *(f"  - {line}" for line in found)]
        if found
        else []
    )
