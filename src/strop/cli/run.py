"""`strop run SCRIPT [ARGUMENTS]`: a script written for TRL, as it is."""

from __future__ import annotations

import subprocess
import sys

from strop.errors import ConfigError

TITLE = """usage: strop run [--processes N] SCRIPT [ARGUMENTS ...]
       strop run [--processes N] -m MODULE [ARGUMENTS ...]

Run a script that imports trl, unedited, with strop in its place. Everything after SCRIPT goes to the script.
With -m it is a module, as for python -m: its imports may be relative.

  --processes N   start N processes that train together (torchrun on this machine)

At the end it says which names and settings behaved differently from TRL; docs/moving-from-trl.md has the whole list."""


def run(argv: list[str]) -> int:
    """Run the script here, or start the processes that do."""
    processes, words = take_processes(argv)
    if not words:
        raise ConfigError("strop run needs a script: strop run SCRIPT [ARGUMENTS].")
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        return subprocess.run([*command, "-m", "strop", "run", *words], check=False).returncode
    from strop.scripts.run import run_module, run_script

    if words[0] == "-m":
        if len(words) == 1:
            raise ConfigError("strop run -m needs a module: strop run -m PACKAGE.MODULE [ARGUMENTS].")
        run_module(words[1], words[2:])
    else:
        run_script(words[0], words[1:])
    return 0


def take_processes(argv: list[str]) -> tuple[int, list[str]]:
    """How many processes, and the words from the script on."""
    if not argv[0].startswith("--"):
        return 1, argv
    name, equals, value = argv[0].partition("=")
    rest = argv[1:] if equals else argv[2:]
    if name != "--processes":
        raise ConfigError(f"strop run has no flag {name}; flags of the script follow the script. See strop run --help.")
    value = value if equals else (argv[1] if len(argv) > 1 else "")
    if not value.isdigit() or int(value) < 1:
        raise ConfigError(f"--processes {value or '(nothing)'}: give a number of processes, 1 or more.")
    return int(value), rest
