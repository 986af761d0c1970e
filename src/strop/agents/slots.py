"""Where one environment lives: a thread of this process, or a process of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import multiprocessing
import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol

from strop.errors import SetupError
from strop.rewards.contract import Accepts
from strop.rewards.event_loop import waiting_for


class Hung(Exception):
    """A call was not answered in time."""


class Slot(Protocol):
    """Makes an environment and calls it, one call at a time."""

    environment: Any
    made_by: Callable[[], Any]
    thread: threading.Thread
    lost: bool  # it hangs, died or was closed: its calls are not answered any more

    def call(self, method: str, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        """Begin a call; `reset` is given those of its arguments that its signature names."""
        ...

    def wait(self, answer: concurrent.futures.Future[Any], seconds: float | None) -> Any:
        """What a call returned or raised; `Hung` after so many seconds."""
        ...

    def abandon(self) -> None: ...


class OneThread:
    """A thread that answers calls in their order, until one hangs and is left behind with it."""

    def __init__(self, name: str) -> None:
        self.lost = False
        self._work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._giving = threading.RLock()  # a finalizer may come in between, in this thread
        self.thread = threading.Thread(target=self._live, name=name, daemon=True)
        self.thread.start()

    def submit(self, work: Callable[[], Any]) -> concurrent.futures.Future[Any]:
        """Call `work` after what was given before; where the thread was left behind, the answer is an error at once."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._giving:
            if self.lost:
                future.set_exception(RuntimeError("it was closed, or left behind when it did not answer"))
            else:
                self._work.put((work, future))
        return future

    def _live(self) -> None:
        while (item := self._work.get()) is not None:
            work, future = item
            try:
                future.set_result(work())
            except BaseException as error:  # SystemExit of an environment ends its call, not the run
                future.set_exception(error)

    def wait(self, answer: concurrent.futures.Future[Any], seconds: float | None) -> Any:
        if not concurrent.futures.wait([answer], seconds).done:
            return Hung(f"no answer within {seconds:g} seconds" if seconds else "no answer in time")
        error = answer.exception()
        return error if error is not None else answer.result()

    def abandon(self) -> None:
        """Leave a hanging call alone: a thread cannot be killed. What is asked from now on is an error at once."""
        with self._giving:
            self.lost = True
            self._work.put(None)


class ThreadSlot(OneThread):
    """An environment of this process. Raises what its factory raises."""

    def __init__(self, factory: Callable[[], Any]) -> None:
        super().__init__("strop-environment")
        self.made_by = factory
        self._loop: asyncio.AbstractEventLoop | None = None
        self.environment = self.submit(factory).result()

    def call(self, method: str, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        return self.submit(lambda: self._finished(call_method(self.environment, method, args, kwargs)))

    def _finished(self, result: Any) -> Any:
        if not inspect.isawaitable(result):
            return result
        self._loop = self._loop or asyncio.new_event_loop()  # one for all calls: clients belong to a loop
        return self._loop.run_until_complete(waiting_for(result))


class ProcessSlot(OneThread):
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
        super().__init__("strop-environment")
        self.made_by = factory
        self.environment: Any = Remote(self)
        made = self.wait(self.submit(self._receive), None)
        if isinstance(made, BaseException):
            raise made

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


def call_method(environment: Any, method: str, args: Any, kwargs: Any) -> Any:
    """Call a method; `reset` without the arguments that it does not name, `close` only where there is one."""
    function = getattr(environment, method, None)
    if method == "close" and function is None:
        return None
    if function is None:
        raise AttributeError(f"the environment has no {method}()")
    return Accepts.of(function).call(function, kwargs) if method == "reset" else function(*args, **kwargs)


def _serve(pipe: Any, factory: Callable[[], Any]) -> None:
    """The other process: make the environment, then answer until the pipe closes."""
    try:
        environment = factory()
        pipe.send((True, None))
    except BaseException as error:
        pipe.send((False, f"{type(error).__name__}: {error}"))
        return
    loop = asyncio.new_event_loop()
    while True:
        try:
            kind, method, args, kwargs = pipe.recv()
        except EOFError:
            return
        try:
            result = getattr(environment, method) if kind == "read" else call_method(environment, method, args, kwargs)
            if inspect.isawaitable(result):
                result = loop.run_until_complete(waiting_for(result))
            pipe.send((True, result))
        except BaseException as error:
            pipe.send((False, f"{type(error).__name__}: {error}"))
