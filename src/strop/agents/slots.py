"""Where one environment lives: a thread of this process, or a process of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import multiprocessing
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from strop.agents.threads import OneThread
from strop.errors import SetupError
from strop.event_loop import waiting_for
from strop.rewards.contract import Accepts


class Slot(OneThread, ABC):
    """Makes an environment and calls it, one call at a time; `lost` once it hangs, has died or was closed."""

    environment: Any

    def __init__(self, factory: Callable[[], Any]) -> None:
        super().__init__("strop-environment")
        self.made_by = factory

    @abstractmethod
    def call(self, method: str, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        """Begin a call; `reset` is given those of its arguments that its signature names."""


class ThreadSlot(Slot):
    """An environment of this process. Raises what its factory raises."""

    def __init__(self, factory: Callable[[], Any]) -> None:
        super().__init__(factory)
        self._resident = self.submit(lambda: Resident(factory)).result()
        self.environment = self._resident.environment

    def call(self, method: str, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        return self.submit(lambda: self._resident.call(method, args, kwargs))


class ProcessSlot(Slot):
    """An environment in a process of its own, which is killed when it hangs. `environment` reads its attributes.

    Raises:
        SetupError: the factory cannot be sent to a process.
    """

    def __init__(self, factory: Callable[[], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, factory), daemon=True)
        try:
            self._process.start()
        except (AttributeError, TypeError, ValueError, ImportError) as error:
            raise SetupError(
                f"environment_isolation=True needs an environment_factory that other processes can import ({error}): "
                "define it in a module, or set environment_isolation=False."
            ) from None
        there.close()
        super().__init__(factory)
        self.environment = Remote(self)
        self.submit(self._receive).result()

    def call(self, method: str, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        return self.submit(lambda: self._exchange(("call", method, args, kwargs)))

    def read(self, name: str) -> Any:
        """An attribute of the environment."""
        found = self.wait(self.submit(lambda: self._exchange(("read", name, (), {}))), 30.0)
        if isinstance(found, BaseException):
            raise found
        return found

    def _exchange(self, message: tuple[Any, ...]) -> Any:
        self._pipe.send(message)
        return self._receive()

    def _receive(self) -> Any:
        try:
            worked, value = self._pipe.recv()
        except EOFError:
            self.lost = True
            self._process.join(1.0)
            raise RuntimeError(f"the environment's process died (exit code {self._process.exitcode})") from None
        if not worked:
            raise RuntimeError(value)
        return value

    def abandon(self) -> None:
        super().abandon()
        self._process.kill()


class Remote:
    """Stands for an environment of another process where rewards look at `environments`."""

    def __init__(self, slot: ProcessSlot) -> None:
        self._slot = slot

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._slot.read(name)


class Resident:
    """An environment in the thread that it lives in, and the loop of its coroutines: clients belong to a loop."""

    def __init__(self, factory: Callable[[], Any]) -> None:
        self.environment = factory()
        self._loop: asyncio.AbstractEventLoop | None = None

    def call(self, method: str, args: Any, kwargs: Any) -> Any:
        """Call a method; `reset` without the arguments that it does not name, `close` only where there is one."""
        function = getattr(self.environment, method, None)
        if method == "close" and function is None:
            return None
        if function is None:
            raise AttributeError(f"the environment has no {method}()")
        result = Accepts.of(function).call(function, kwargs) if method == "reset" else function(*args, **kwargs)
        if not inspect.isawaitable(result):
            return result
        self._loop = self._loop or asyncio.new_event_loop()
        return self._loop.run_until_complete(waiting_for(result))


def _serve(pipe: Any, factory: Callable[[], Any]) -> None:
    """The other process: make the environment, then answer until the pipe closes."""
    try:
        resident = Resident(factory)
        pipe.send((True, None))
    except BaseException as error:
        pipe.send((False, f"{type(error).__name__}: {error}"))
        return
    while True:
        try:
            kind, method, args, kwargs = pipe.recv()
        except EOFError:
            return
        try:
            reads = kind == "read"
            pipe.send((True, getattr(resident.environment, method) if reads else resident.call(method, args, kwargs)))
        except BaseException as error:
            pipe.send((False, f"{type(error).__name__}: {error}"))
