"""A script that imports `trl`, run as it is with strop in its place."""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import threading
from collections.abc import Iterator, Sequence
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
    try:
        with in_its_place(path, arguments):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:  # `sys.exit(main())` ends a script well, too
        say(closing_note(asked))
        raise end
    say(closing_note(asked))


@contextlib.contextmanager
def in_its_place(path: Path, arguments: Sequence[str]) -> Iterator[None]:
    """The words and the folder of a script, and a parser that knows all names of settings: scripts that parse by
    themselves know TRL's, and transformers' parser those of fields. All is as before when its threads have ended."""
    others = set(threading.enumerate())
    with contextlib.ExitStack() as stack:
        for module in ("transformers", "transformers.hf_argparser"):
            stack.enter_context(patch(f"{module}.HfArgumentParser", SettingsParser))
        stack.enter_context(patch.object(sys, "argv", [str(path), *arguments]))
        places = [str(path.resolve().parent), str(Path(__file__).parent / "served"), *sys.path]
        stack.enter_context(patch.object(sys, "path", places))
        try:
            yield
        finally:
            for thread in set(threading.enumerate()) - others:
                if not thread.daemon:
                    thread.join()


def say(lines: Sequence[str]) -> None:
    if lines:
        print("\n".join(lines), flush=True)


def closing_note(asked: Asked) -> list[str]:
    """What a script met that behaves differently from TRL; nothing where nothing did, and from one process only."""
    if int(os.environ.get("RANK") or 0) or any(settings.process_index for settings in asked.configs):
        return []
    found = [*differing_names(asked.names), *differing_settings(asked.configs)]
    return (
        ["Different from TRL in this run (see docs/moving-from-trl.md):", *(f"  - {line}" for line in found)]
        if found
        else []
    )
