"""One agent at work: a function or a coroutine in a thread, or a program in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import math
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Real
from typing import Any

from strop.agents.chat_api import read_text
from strop.agents.tools import error_text
from strop.records import Row
from strop.rewards.contract import OFFERED

MOST_OUTPUT = 2**20
"""Bytes of a program's output that are read."""
Agent = Callable[["Endpoint", Row], Any] | Sequence[str]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one trajectory's agent finds the model; the key is its own."""

    base_url: str
    api_key: str

    @property
    def environ(self) -> dict[str, str]:
        """The same as environment variables, which the `openai` package and most frameworks read."""
        direct = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1"]))
        return {
            "OPENAI_BASE_URL": self.base_url, "OPENAI_API_BASE": self.base_url, "OPENAI_API_KEY": self.api_key,
            "NO_PROXY": direct, "no_proxy": direct,
        }  # fmt: skip


@dataclass(slots=True)
class Ended:
    """An agent has returned or failed."""

    trajectory: int
    fields: Mapping[str, Any]
    problem: str = ""


class AgentAtWork:
    """An agent from its start to its end, of which `tell` hears, in the agent's own thread.

    Args:
        agent: called with `endpoint` and `row`; or a command line, given both by its environment and as JSON on
            standard input.
    """

    def __init__(
        self, agent: Agent, endpoint: Endpoint, row: Row, trajectory: int, tell: Callable[[Ended], None]
    ) -> None:
        self.agent, self.endpoint, self.row, self.trajectory, self.tell = agent, endpoint, row, trajectory, tell
        self._taken = {*OFFERED, *row}
        self._stop: Callable[[], None] | None = None
        self._lock, self._left = threading.Lock(), False
        self.thread = threading.Thread(target=self._live, name=f"strop-agent-{trajectory}", daemon=True)
        self.thread.start()

    def abandon(self) -> None:
        """Kill a program, cancel a coroutine; a thread cannot be killed, and is left alone."""
        with self._lock:
            self._left = True
            if self._stop is not None:
                self._stop()

    def _live(self) -> None:
        try:
            if callable(self.agent):
                result = self.agent(self.endpoint, self.row)
                result = asyncio.run(self._awaited(result)) if inspect.isawaitable(result) else result
            else:
                result = self._program(list(self.agent))
            ended = Ended(self.trajectory, fields_of(result, self._taken))
        except BaseException as error:  # SystemExit of an agent ends the agent, not the run
            ended = Ended(self.trajectory, {}, error_text(error))
        self.tell(ended)

    @contextlib.contextmanager
    def _stopping(self, stop: Callable[[], None]) -> Any:
        """Within it, `abandon` calls `stop`."""
        with self._lock:
            self._stop = stop
            if self._left:
                stop()
        try:
            yield
        finally:
            with self._lock:
                self._stop = None

    async def _awaited(self, awaitable: Any) -> Any:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(awaitable)
        with self._stopping(lambda: loop.call_soon_threadsafe(task.cancel)):  # type: ignore[arg-type]
            return await task

    def _program(self, command: list[str]) -> Any:
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as wrong:
            given.write(json.dumps(self.row, default=str).encode())
            given.seek(0)
            environment = {**os.environ, **self.endpoint.environ}
            process = subprocess.Popen(
                command, stdin=given, stdout=said, stderr=wrong, env=environment, start_new_session=True
            )
            with self._stopping(lambda: _kill(process.pid)):
                code = process.wait()
            _kill(process.pid)  # what it has left running
            if code:
                wrong.seek(max(0, wrong.tell() - 1000))
                raise ChildProcessError(f"exit code {code}: {wrong.read().decode(errors='replace').strip()}")
            said.seek(0)
            return read_output(said.read(MOST_OUTPUT).decode(errors="replace"))


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def read_output(text: str) -> Any:
    """What a program printed: a JSON object is its fields, all else one text."""
    value = read_text(text)
    return value if isinstance(value, dict) else text.strip() or None


def fields_of(result: Any, names: Set[str]) -> dict[str, Any]:
    """What an agent returned, as columns for rewards: an object by its names, all else as `output`.

    Args:
        names: what rewards have already, the row's columns among them.

    Raises:
        ValueError: it returned one of these, or `turn_rewards` that are no numbers.
    """
    if result is None:
        return {}
    fields = {str(name): value for name, value in result.items()} if isinstance(result, Mapping) else {"output": result}
    if taken := sorted(fields.keys() & names):
        raise ValueError(f"the agent returned {taken}, which rewards have for something else; choose other names")
    rewards = fields.get("turn_rewards") or []
    if not isinstance(rewards, list | tuple) or not all(isinstance(r, Real) and math.isfinite(r) for r in rewards):
        raise ValueError(f"turn_rewards must be a list of finite numbers, one for each request; got {rewards!r:.100}")
    return fields
