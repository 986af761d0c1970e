"""One program under way: its streams, the deadline, and the memory of its tree. All of it is kept out here.

    program alone    its output is its output
    with tests       two processes; what the tests say to the program, and back, is carried between them unread

The clock starts when the program's text is sent, and nothing that arrives can move it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import marshal
import math
import os
import selectors
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

from strop.errors import SetupError
from strop.rewards.sandbox import audit, judging, remote, serving, values
from strop.rewards.sandbox.fences import Fences
from strop.rewards.sandbox.inside import READY, TO_PARENT, TO_PROGRAM
from strop.rewards.sandbox.protocol import PROCESSES, Limits, Sandbox
from strop.rewards.sandbox.wall import Wall, visible_paths

_STARTUP_SECONDS = 60.0
_LOOK_SECONDS = 0.05
_CHUNK = 1 << 16
_QUEUE_BYTES = 4 * values.MAX_FRAME_BYTES
_EVENT_BYTES = 1 << 16
_EVENTS = 100_000
_BOOT = "import os\nn=int(os.read(0,8),16)\nb=b''\nwhile len(b)<n:b+=os.read(0,n-len(b))\nexec(b)"
_MODULES = {"run": (audit, values), "serve": (audit, values, serving), "judge": (audit, values, remote, judging)}


@functools.cache
def _bundle(role: str, compiled: bool) -> bytes:
    """The modules that run inside, as one text: they are registered under their names, then `inside.main` is called."""
    inside = "strop.rewards.sandbox.inside"
    texts: dict[str, Any] = {each.__name__: Path(str(each.__file__)).read_text("utf-8") for each in _MODULES[role]}
    texts[inside] = Path(__file__).with_name("inside.py").read_text(encoding="utf-8")
    if compiled:  # for this very interpreter
        codes = {name: compile(text, name, "exec", dont_inherit=True) for name, text in texts.items()}
        texts = {name: marshal.dumps(code) for name, code in codes.items()}
    return (
        "import sys, types, marshal\n"
        "for name in ('strop', 'strop.rewards', 'strop.rewards.sandbox'):\n"
        "    sys.modules[name] = types.ModuleType(name); sys.modules[name].__path__ = []\n"
        f"for name, text in {texts!r}.items():\n"
        "    module = sys.modules[name] = types.ModuleType(name)\n"
        "    code = marshal.loads(text) if type(text) is bytes else compile(text, name, 'exec', dont_inherit=True)\n"
        "    exec(code, module.__dict__)\n"
        "main = module.main\n"
        "del module, name, text, code\n"
        "main()\n"
    ).encode()


class Member:
    """One process of a run, and what is to be written to it and was read from it."""

    def __init__(self, sandbox: Sandbox, role: str, limits: Limits) -> None:
        self.role = role
        self.ready = False
        bundle = _bundle(role, isinstance(sandbox, (Wall, Fences)))
        self.process = sandbox.start(["-I", "-S", "-B", "-u", "-c", _BOOT], limits)
        self.queue = bytearray(b"%08x" % len(bundle) + bundle + _framed(_limits_message(sandbox, limits)))
        self.close_when_sent = False
        self.head = bytearray()  # output before "ready"
        self.fences: list[str] = []
        self.out = bytearray()  # standard output that is not carried on
        self.err = bytearray()

    def streams(self) -> tuple[Any, Any, Any]:
        return self.process.stdin, self.process.stdout, self.process.stderr


class Session:
    """Runs one program, with tests or without, in a sandbox."""

    def __init__(self, sandbox: Sandbox, limits: Limits) -> None:
        self._sandbox = sandbox
        self.limits = limits
        self._members: dict[str, Member] = {}
        self._events = bytearray()
        self.events: list[dict[str, Any]] = []
        self.stopped_for = ""  # "timeout", "output", "died"
        self.why = ""
        self.started: float | None = None

    def run(self, jobs: dict[str, dict[str, Any]]) -> dict[str, Member]:
        """Run a job per role ("run", or "serve" and "judge") to the end; nothing is left when it returns.

        Raises:
            SetupError: a process did not come so far that the program was sent to it.
        """
        with selectors.DefaultSelector() as selector:
            try:
                for role in jobs:
                    self._members[role] = Member(self._sandbox, role, self.limits)
                for member in self._members.values():
                    for name, stream in zip(("stdin", "stdout", "stderr"), member.streams(), strict=True):
                        os.set_blocking(stream.fileno(), False)
                        event = selectors.EVENT_WRITE if name == "stdin" else selectors.EVENT_READ
                        selector.register(stream, event, (member, name))
                self._watch(selector, jobs, time.monotonic() + _STARTUP_SECONDS)
            finally:
                for member in self._members.values():
                    self._stop(member)
        return self._members

    def _stop(self, member: Member) -> None:
        if not self.stopped_for:
            with contextlib.suppress(subprocess.TimeoutExpired):
                member.process.wait(1.0)
        self._sandbox.stop(member.process)
        for stream in member.streams():
            with contextlib.suppress(OSError):
                stream.close()

    def _watch(self, selector: selectors.BaseSelector, jobs: dict[str, Any], startup_deadline: float) -> None:
        look = 0.0
        while not self.stopped_for and self._open(selector):
            now = time.monotonic()
            deadline = startup_deadline if self.started is None else self.started + self.limits.seconds
            if now >= deadline:
                if self.started is None:
                    raise SetupError(
                        f"The code sandbox ({self._sandbox.name}) did not start in {_STARTUP_SECONDS:g} s."
                    )
                self.stopped_for = "timeout"
                return
            if self.started is not None and now >= look:
                look = now + _LOOK_SECONDS
                self._look()
            for key, _ in selector.select(min(deadline - now, _LOOK_SECONDS)):
                member, name = key.data
                self._serve(selector, key.fileobj, member, name)
            self._begin(selector, jobs)
            self._mind_writers(selector)

    def _open(self, selector: selectors.BaseSelector) -> bool:
        return any(key.data[1] != "stdin" for key in selector.get_map().values())

    def _look(self) -> None:
        for member in self._members.values():
            why = self._sandbox.too_much(member.process, self.limits)
            if why:
                self.stopped_for, self.why = "died", why
                return

    def _begin(self, selector: selectors.BaseSelector, jobs: dict[str, Any]) -> None:
        """Once all are ready: start the clock and send the jobs."""
        if self.started is not None or not all(member.ready for member in self._members.values()):
            return
        self.started = time.monotonic()
        for role, member in self._members.items():
            job = dict(jobs[role])
            given = job.pop("input", None)
            member.queue += _framed({**job, "role": role, "paths": visible_paths()})
            if given is not None:
                member.queue += given
                member.close_when_sent = True

    def _serve(self, selector: selectors.BaseSelector, stream: Any, member: Member, name: str) -> None:
        if name == "stdin":
            try:
                del member.queue[: os.write(stream.fileno(), member.queue[:_CHUNK])]
            except BlockingIOError:
                return
            except OSError:
                member.queue.clear()
                member.close_when_sent = True
            return
        try:
            data = os.read(stream.fileno(), _CHUNK)
        except BlockingIOError:
            return
        if not data:
            selector.unregister(stream)
            if name == "stdout":
                self._ended(member)
        elif name == "stderr":
            member.err += data
            if len(member.err) > self.limits.output_bytes:
                self.stopped_for = "output"
        elif not member.ready:
            self._read_head(member, data)
        else:
            self._take(member, data)

    def _read_head(self, member: Member, data: bytes) -> None:
        member.head += data
        line, end, _ = bytes(member.head).partition(b"\n")
        if end:
            word, _, names = line.partition(b" ")
            member.ready = word == READY
            member.fences = names.decode("ascii", "replace").split(",")
        if (end and not member.ready) or len(member.head) > _EVENT_BYTES:
            raise self._not_started(member)

    def _not_started(self, member: Member) -> SetupError:
        said = bytes(member.err or member.head)[-500:].decode("utf-8", "replace").strip()
        return SetupError(f"The code sandbox ({self._sandbox.name}) did not start: {said or 'it said nothing'}")

    def _ended(self, member: Member) -> None:
        if not member.ready:
            with contextlib.suppress(OSError):
                member.err += os.read(member.process.stderr.fileno(), _CHUNK)  # type: ignore[union-attr]
            raise self._not_started(member)
        if member.role in ("serve", "judge"):
            other = self._members["judge" if member.role == "serve" else "serve"]
            other.close_when_sent = True

    def _take(self, member: Member, data: bytes) -> None:
        if member.role == "serve":
            queue = self._members["judge"].queue
            queue += data
            if len(queue) > _QUEUE_BYTES:
                self.stopped_for = "output"
        elif member.role == "judge":
            self._sort(data)
        else:
            member.out += data
            if len(member.out) > self.limits.output_bytes:
                self.stopped_for = "output"

    def _sort(self, data: bytes) -> None:
        """Frames of the tests' process: to us, or to the program."""
        self._events += data
        while len(self._events) >= 5:
            (length,) = struct.unpack(">I", self._events[1:5])
            if length > values.MAX_FRAME_BYTES:
                self.stopped_for, self.why = "died", "the tests' process sent what is no message"
                return
            if len(self._events) < 5 + length:
                return
            to, frame = bytes(self._events[:1]), bytes(self._events[5 : 5 + length])
            if to == TO_PROGRAM:
                queue = self._members["serve"].queue
                queue += self._events[1 : 5 + length]
                if len(queue) > _QUEUE_BYTES:  # it asks and does not read
                    self.stopped_for = "output"
                    return
            elif to == TO_PARENT and length <= _EVENT_BYTES and len(self.events) < _EVENTS:
                with contextlib.suppress(ValueError, RecursionError):
                    event = json.loads(frame)
                    if type(event) is dict:
                        self.events.append(event)
            del self._events[: 5 + length]

    def _mind_writers(self, selector: selectors.BaseSelector) -> None:
        """Watch an input only while there is something to write, and close it when all of it was."""
        watched = {key.fileobj for key in selector.get_map().values()}
        for member in self._members.values():
            stdin = member.streams()[0]
            if stdin in watched and not member.queue:
                selector.unregister(stdin)
            elif stdin not in watched and member.queue and not stdin.closed:
                selector.register(stdin, selectors.EVENT_WRITE, (member, "stdin"))
            if member.close_when_sent and not member.queue and not stdin.closed:
                with contextlib.suppress(OSError):
                    stdin.close()


def _framed(message: Any) -> bytes:
    data = json.dumps(message).encode("ascii")
    return struct.pack(">I", len(data)) + data


def _limits_message(sandbox: Sandbox, limits: Limits) -> dict[str, Any]:
    seconds = math.ceil(limits.seconds) + 2
    resources = {
        "RLIMIT_CPU": seconds,
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
    }
    if sandbox.strict:  # elsewhere it counts everything that this user runs on the machine
        resources["RLIMIT_NPROC"] = PROCESSES
    return {"resources": resources, "strict": sandbox.strict, "fence": not sandbox.strict}
