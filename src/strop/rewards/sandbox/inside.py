"""The first code inside: set limits, say "ready", take the job, and become the program or the tests.

The program's text arrives after "ready", so nothing that it does can be taken for this process's start. Standard input
and output are the only way in and out, which a container or a machine far away has too. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import types
from typing import Any

from strop.rewards.sandbox.audit import add_fence
from strop.rewards.sandbox.values import Channel, ChannelBroken, line_of

READY = b"ready"
TO_PARENT, TO_PROGRAM = b"P", b"C"
_MOST_BYTES = 1 << 32
"""A program and its tests come from who started this, and may be long."""


def main() -> None:
    """Run the job that comes on standard input."""
    parent = Channel(0, 1)
    limits = parent.receive()
    names = _set_limits(limits)
    os.write(1, READY + b" " + ",".join(names).encode() + b"\n")
    job = parent.receive(_MOST_BYTES)
    sys.path += [path for path in job.pop("paths") if os.path.isdir(path)]
    sys.argv = ["solution.py"]
    with contextlib.suppress(ImportError):
        import site  # exit() and help(); the module alone, not what it does to a start without -S

        site.setquit()
        site.sethelper()
    role = job["role"]
    if limits["fence"]:
        add_fence(os.getcwd())
    if role == "run":
        _run(job["code"])
        return
    incoming, outgoing = os.dup(0), os.dup(1)
    _replace_streams(job.get("stdin", ""))
    with contextlib.suppress(ChannelBroken):
        if role == "serve":
            from strop.rewards.sandbox.serving import Server  # each role has its own modules with it, no others

            Server(Channel(incoming, outgoing)).serve(job["code"])
        else:
            from strop.rewards.sandbox.judging import judge

            parent = Channel(incoming, outgoing, TO_PARENT)
            report = lambda **event: parent.send(event)  # noqa: E731
            judge(Channel(incoming, outgoing, TO_PROGRAM), job["tests"], job["entry_point"], report)


def _set_limits(limits: dict[str, Any]) -> list[str]:
    """Set the resource limits; the names of those that hold. Behind a wall all of them must."""
    held = []
    for name, value in limits["resources"].items():
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
            held.append(name)
        except (AttributeError, ValueError, OSError):
            if limits["strict"]:
                raise
    return held


def _replace_streams(stdin: str) -> None:
    """Give the program an input and an output of its own: what it prints is no message."""
    name = f".stdin-{os.getpid()}" if stdin else os.devnull
    with open(name, "w+b") as file:
        if stdin:
            os.unlink(name)
            file.write(stdin.encode("utf-8", "surrogatepass"))
            file.seek(0)
        os.dup2(file.fileno(), 0)
    os.dup2(2, 1)


def _run(code: str) -> None:
    """Be the program: an exception goes to stderr as Python writes it, in one line, and the exit code is 1."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    try:
        exec(compile(code, "solution.py", "exec", dont_inherit=True), vars(module))
    except SystemExit:
        raise
    except BaseException as error:
        with contextlib.suppress(Exception):
            sys.stderr.write(line_of(error) + "\n")
        sys.exit(1)
