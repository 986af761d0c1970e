"""One program under way: its streams, the deadline, and the memory of its tree. All of it is kept out here.

    program alone    its output is its output
    with tests       two processes; what the tests say to the program, and back, is carried between them unread

The clock starts when the program's text is sent, and nothing that arrives can move it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import marshal
import math
import struct
import subprocess
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from strop.errors import SetupError
from strop.event_loop import EventLoop
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


class Stopped(Exception):
    """A run that is not to go on: its status, and why."""


class Member:
    """One process of a run, its streams, and what it wrote that is not carried on."""

    def __init__(self, sandbox: Sandbox, role: str, limits: Limits) -> None:
        self.process = sandbox.start(["-I", "-S", "-B", "-u", "-c", _BOOT], limits)
        bundle = _bundle(role, isinstance(sandbox, (Wall, Fences)))
        self._first = b"%08x" % len(bundle) + bundle + values.framed(_limits_message(sandbox, limits))
        self._limit = limits.output_bytes
        self.fences: list[str] = []
        self.out, self.err = bytearray(), bytearray()

    async def open(self) -> None:
        """Take its streams into the event loop, and send it what it starts with."""
        loop = asyncio.get_running_loop()
        self.stdin, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, self.process.stdin)
        self.stdout, self._output = await _reader(self.process.stdout)
        self.stderr, self._errors = await _reader(self.process.stderr)
        self.stdin.write(self._first)

    async def ready(self) -> bool:
        """Whether its first words are that it can begin."""
        try:
            said = await self.stdout.readuntil(b"\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            said = getattr(error, "partial", b"")
        word, _, names = said.rstrip().partition(b" ")
        self.fences = names.decode("ascii", "replace").split(",")
        if word != READY:
            self.out += said
        return word == READY

    def send(self, data: bytes) -> None:
        """Write when it reads; a process that does not is stopped before what waits for it fills the memory."""
        if not self.stdin.is_closing():
            self.stdin.write(data)
        if self.stdin.get_write_buffer_size() > _QUEUE_BYTES:
            raise Stopped("output", "what waits for it is too much")

    async def keep(self, stream: asyncio.StreamReader, kept: bytearray) -> None:
        """Keep all that comes, as far as it may print."""
        while data := await stream.read(_CHUNK):
            kept += data
            if len(kept) > self._limit:
                raise Stopped("output", f"it printed more than {self._limit} bytes")

    async def close(self) -> None:
        """Give the streams back."""
        if self.stdin.get_write_buffer_size():
            self.stdin.abort()  # closing would wait for who reads it
        for transport in (self.stdin, self._output, self._errors):
            transport.close()
        await asyncio.sleep(0)


async def _reader(stream: Any) -> tuple[asyncio.StreamReader, asyncio.BaseTransport]:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), stream)
    return reader, transport


class Session:
    """Runs one program, with tests or without, in a sandbox."""

    def __init__(self, sandbox: Sandbox, limits: Limits) -> None:
        self._sandbox = sandbox
        self.limits = limits
        self._members: dict[str, Member] = {}
        self.events: list[dict[str, Any]] = []
        self.status, self.why = "ok", ""  # of the run as it is seen from here: "ok", "timeout", "output" or "died"
        self.started: float | None = None
        self._under_way: list[asyncio.Future[None]] = []

    def run(self, jobs: dict[str, dict[str, Any]]) -> dict[str, Member]:
        """Run a job per role ("run", or "serve" and "judge") to the end; nothing is left when it returns.

        Raises:
            SetupError: a process did not come so far that the program was sent to it.
        """
        loop = EventLoop("strop-sandbox")  # a notebook has one in this thread
        try:
            for role in jobs:
                self._members[role] = Member(self._sandbox, role, self.limits)
            loop.run(self._run(jobs))
        finally:
            loop.close()
            for member in self._members.values():
                self._stop(member)
        return self._members

    def _stop(self, member: Member) -> None:
        if self.status == "ok":
            with contextlib.suppress(subprocess.TimeoutExpired):
                member.process.wait(1.0)
        self._sandbox.stop(member.process)
        for stream in (member.process.stdin, member.process.stdout, member.process.stderr):
            stream.close()  # type: ignore[union-attr]

    async def _run(self, jobs: dict[str, dict[str, Any]]) -> None:
        members = self._members.values()
        for member in members:
            await member.open()
        self._begin(*(member.keep(member.stderr, member.err) for member in members))
        try:
            await self._all_ready()
            self.started = time.monotonic()
            for role, member in self._members.items():
                job = dict(jobs[role])
                given = job.pop("input", None)
                # However long it is: it is ours, and not what a program makes another one wait for.
                member.stdin.write(values.framed({**job, "role": role, "paths": visible_paths()}) + (given or b""))
                if given is not None:
                    member.stdin.close()
            if "run" in jobs:
                alone = self._members["run"]
                self._begin(alone.keep(alone.stdout, alone.out))
            else:
                serve, judge = self._members["serve"], self._members["judge"]
                self._begin(_carry_answers(serve, judge), self._carry_questions(judge, serve))
            async with asyncio.timeout(self.limits.seconds):
                await self._until_done()
        except Stopped as stopped:
            self.status, self.why = stopped.args
        except TimeoutError:
            self.status, self.why = "timeout", f"it did not end within {self.limits.seconds:g} seconds"
        finally:
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)
            for member in members:
                await member.close()

    def _begin(self, *work: Coroutine[Any, Any, None]) -> None:
        self._under_way += map(asyncio.ensure_future, work)

    async def _all_ready(self) -> None:
        members = self._members.values()
        try:
            async with asyncio.timeout(_STARTUP_SECONDS):
                ready = await asyncio.gather(*(member.ready() for member in members))
        except TimeoutError:
            raise SetupError(
                f"The code sandbox ({self._sandbox.name}) did not start in {_STARTUP_SECONDS:g} s."
            ) from None
        for member, is_ready in zip(members, ready, strict=True):
            if not is_ready:
                await asyncio.wait(self._under_way, timeout=1.0)  # what it says of its end may still come
                said = bytes(member.err or member.out)[-500:].decode("utf-8", "replace").strip()
                raise SetupError(f"The code sandbox ({self._sandbox.name}) did not start: {said or 'it said nothing'}")

    async def _until_done(self) -> None:
        pending = set(self._under_way)
        while pending:
            for member in self._members.values():
                if why := self._sandbox.too_much(member.process, self.limits):
                    raise Stopped("died", why)
            done, pending = await asyncio.wait(pending, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()

    async def _carry_questions(self, judge: Member, serve: Member) -> None:
        """Frames of the tests' process: to us, or to the program."""
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                to, length = struct.unpack(">cI", await judge.stdout.readexactly(5))
                if length > values.MAX_FRAME_BYTES:
                    raise Stopped("died", "the tests' process sent what is no message")
                frame = await judge.stdout.readexactly(length)
                if to == TO_PROGRAM:
                    serve.send(struct.pack(">I", length) + frame)
                elif to == TO_PARENT and length <= _EVENT_BYTES and len(self.events) < _EVENTS:
                    with contextlib.suppress(ValueError, RecursionError):
                        event = json.loads(frame)
                        if type(event) is dict:
                            self.events.append(event)
        serve.stdin.close()


async def _carry_answers(serve: Member, judge: Member) -> None:
    while data := await serve.stdout.read(_CHUNK):
        judge.send(data)
    judge.stdin.close()


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
