"""`strop`: one verb per file. Help and error messages never wait for torch."""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import logging
import os
import sys
import warnings
from typing import Any

from strop.errors import StropError, did_you_mean
from strop.methods.registry import BY_VERB, register_installed
from strop.terminal import in_width

TOOLS = {
    "check": "look at a data file: what is in it, what is wrong, what it fits",
    "plan": "will it fit: bytes by part and card, from a config alone",
    "recommend": "which method fits a file and what you have; a config to start from",
    "doctor": "what this machine has and lacks; with a method's flags: a dry run",
    "demo": "train a small model from nothing to skill in minutes",
    "generate": "complete prompts with a model",
    "chat": "talk to a model in the terminal",
    "export": "merge an adapter; write safetensors, GGUF, a Modelfile",
    "run": "run a script that was written for TRL, as it is",
    "report": "the HTML page of a run, or of several; serve it, and follow them",
    "rescore": "score the completions of a run again, by other rewards",
    "new": "write a method, reward or environment that works, with its test",
    "completion": "make the shell complete verbs and flags",
    "vllm-serve": "start a vLLM server for online trainers",
}

BARE = ("demo", "doctor")
"""Tools that need no word."""


def usage() -> str:
    """The page that `strop --help` shows."""
    width = max(map(len, [*BY_VERB, *TOOLS]))
    lines = ["usage: strop VERB [--flag value ...]      (strop VERB --help lists the flags)", "", "train:"]
    lines += [f"  {m.verb:<{width}}  {m.summary}" for m in BY_VERB.values()]
    lines += ["", "use and look:"] + [f"  {verb:<{width}}  {text}" for verb, text in TOOLS.items()]
    lines += ["", "example:", "  strop dpo --model Qwen/Qwen3-0.6B --dataset pairs.jsonl --output_dir runs/dpo"]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status: 0 done, 1 stopped by a user or a failure in the run, 2 wrong input."""
    atexit.register(gc.freeze)  # what ends with the process need not be looked through before
    try:
        status = answer(argv)
        sys.stdout.flush()
    except BrokenPipeError:  # `strop ... | head`: whoever reads has enough
        go_silent()
        return 1
    except OSError as error:
        if error.filename is not None or not refuses(sys.stdout):
            raise
        go_silent()
        why = f"standard output cannot be written: {error.strerror}"
        complain(f"strop: {why}. Make room there, or print elsewhere.")
        return 1
    return status


def go_silent() -> None:
    """What is printed from here on goes nowhere: what is left in the buffer would be tried again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def refuses(stream: Any) -> bool:
    """Whether an output takes nothing: tried with the end of a line, as what it refused may be gone from its buffer."""
    try:
        stream.flush()
        os.write(stream.fileno(), b"\n")
    except io.UnsupportedOperation:  # it is no file
        return False
    except OSError:
        return True
    return False


def answer(argv: list[str] | None) -> int:
    """Run the verb."""
    argv = list(sys.argv[1:] if argv is None else argv)
    register_installed()
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(in_width(usage()))
        return 0
    if argv[0] in ("-V", "--version", "version"):
        from strop import __version__

        print(f"strop {__version__}")
        return 0
    verb, rest = argv[0], argv[1:]
    if verb not in BY_VERB and verb not in TOOLS:
        complain(f"strop: there is no verb '{verb}'.{did_you_mean(verb, [*BY_VERB, *TOOLS])} See strop --help.")
        return 2
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|accelerate)\.")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns at every start of a kernel that no verb takes
    try:
        if verb in BY_VERB:
            return importlib.import_module("strop.cli.train").run(verb, rest)
        return run_tool(verb, rest)
    except StropError as error:
        complain(f"strop {verb}: {error}")
        return 2
    except KeyboardInterrupt:
        complain(f"strop {verb}: stopped.")
        return 1


def run_tool(verb: str, argv: list[str]) -> int:
    """Run a tool, or show its page where it was asked for, or nothing was and there is nothing to do."""
    from strop.cli.flags import help_page

    module = importlib.import_module(f"strop.cli.{verb.replace('-', '_')}")
    flags = getattr(module, "FLAGS", None)  # without them, words after the first are not the tool's own
    if {"--help", "-h"} & set(argv if flags else argv[:1]) or (not argv and verb not in BARE):
        print(help_page(module.TITLE, {"flags": flags}) if flags else in_width(module.TITLE))
        return 0
    return module.run(argv)


def complain(text: str) -> None:
    """What went wrong, to the error stream."""
    print(in_width(text, sys.stderr), file=sys.stderr)
