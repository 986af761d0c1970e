"""A script that imports `trl`, run as it is with strop in its place."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import runpy
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
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
    carry_out(lambda: runpy.run_path(script, run_name="__main__"), path, path.resolve().parent, arguments)


def run_module(name: str, arguments: Sequence[str]) -> None:
    """As `python -m NAME ARGUMENTS` would: a module of the working directory, whose imports may be relative."""
    folder = Path.cwd()

    def program() -> None:
        if find_module(name) is None:
            raise ConfigError(f"strop run -m {name}: there is no such module in {folder}, and none is installed.")
        runpy.run_module(name, run_name="__main__", alter_sys=True)

    carry_out(program, Path(name), folder, arguments)


def find_module(name: str) -> ModuleSpec | None:
    """The module, whose packages are imported on the way; None where it or one of them is not there."""
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return None
        raise


def carry_out(program: Callable[[], object], path: Path, folder: Path, arguments: Sequence[str]) -> None:
    """Run a program with `trl` served by strop, and say what differed."""
    asked = serve_trl()
    try:
        with in_its_place(path, folder, arguments):
            program()
    except SystemExit as end:  # `sys.exit(main())` ends a script well, too
        say(closing_note(asked))
        raise end
    say(closing_note(asked))


@contextlib.contextmanager
def in_its_place(path: Path, folder: Path, arguments: Sequence[str]) -> Iterator[None]:
    """The words of a script, the folder that it imports from, and a parser that knows all names of settings: scripts
    that parse by themselves know TRL's, and transformers' parser those of fields. All is as before when its threads
    have ended."""
    others = set(threading.enumerate())
    with contextlib.ExitStack() as stack:
        for module in ("transformers", "transformers.hf_argparser"):
            stack.enter_context(patch(f"{module}.HfArgumentParser", SettingsParser))
        stack.enter_context(patch.object(sys, "argv", [str(path), *arguments]))
        places = [str(folder), str(Path(__file__).parent / "served"), *sys.path]
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
