"""Environments: two protocols, told apart before the first rollout; made once per slot, and closed.

A **tool environment** has `reset(**row)` and public methods that the model calls as tools. A **turn environment** has
`step(text) -> (observation or None, done)`, which is given each turn of the model, or `(observation or None, reward,
done)` where the turn has a reward of its own, which is then in the place of the attribute `reward`. Either may have
`get_reward()`, or keep its reward in the attribute `reward`; and `close()`.

Each slot calls its environment in a thread of its own, always the same one (a connection may belong to its thread), so
that the environments of a batch answer side by side. One that does not answer in time is abandoned with its thread.

Where a round of sampling begins before the one before it is rewarded, rounds take two sets of environments in turn
(`lend`): rewards look at those that a completion really had.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import inspect
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from strop.agents.slots import ProcessSlot, Slot, ThreadSlot
from strop.agents.threads import Hung, LeftBehind
from strop.agents.tools import describe_tool, describe_tools
from strop.errors import ConfigError, RolloutError, StropError, did_you_mean
from strop.records import Row

COLUMN = "environment"
"""Where there are several environments, the column that names a row's own."""
RESERVED = ("reset", "step", "get_reward", "close")
CLOSING_SECONDS = 5.0
"""How long all environments together may take to close."""


class EnvironmentKind:
    """One way to make environments, and what those offer.

    Args:
        name: in a dictionary of environments; None for a single one.
        factory: makes one, called without arguments.
        example: a first one, to be looked at.

    Raises:
        ConfigError: no `reset` where it is needed, nothing that a model can do, or methods without description.
    """

    def __init__(self, name: str | None, factory: Callable[[], Any], example: Any) -> None:
        self.name, self.factory = name, factory
        self.title = getattr(type(example), "__name__", str(name))
        found = {
            method: getattr(example, method)
            for method, _ in inspect.getmembers(type(example), predicate=inspect.isfunction)
            if not method.startswith("_")
        }
        self.has_reset, self.has_reward = "reset" in found, "get_reward" in found
        self.rewards_steps = False  # a reply of `step` had a reward in it
        self.takes_turns = "step" in found and not _is_tool(found["step"])
        tools = [] if self.takes_turns else [m for m in found if m not in RESERVED or m == "step"]
        self.schemas, unclear = describe_tools({method: found[method] for method in tools})
        problems = [f"{problem} Or begin its name with '_' if the model may not call it." for problem in unclear]
        if not self.takes_turns and not tools:
            problems.append("it has neither step(text) nor public methods, so the model can do nothing in it.")
        if not self.takes_turns and not self.has_reset:
            problems.append("it has no reset(**row).")
        if problems:
            raise ConfigError.collect(f"The environment {self.title} cannot be used:", problems)

    @property
    def tool_names(self) -> frozenset[str]:
        return frozenset(schema["function"]["name"] for schema in self.schemas)


def _is_tool(step: Callable[..., Any]) -> bool:
    """Whether a method called `step` is a tool: described as one, and without a tuple as its answer."""
    annotation = inspect.signature(step).return_annotation
    try:
        describe_tool(step)
    except ConfigError:
        return False
    return "tuple" not in str(annotation).lower()


class Environments:
    """The environments of a run.

    Args:
        factory: makes one environment, or a dictionary of such by name, of which a row's column `environment` chooses.
        seconds: time limit of each call; None: none.
        isolated: a process for each environment, which can be killed when it hangs.
    """

    def __init__(
        self, factory: Callable[[], Any] | Mapping[str, Callable[[], Any]], *, seconds: float | None = None,
        isolated: bool = False,
    ) -> None:  # fmt: skip
        self.several = isinstance(factory, Mapping)
        factories: Mapping[Any, Callable[[], Any]] = factory if isinstance(factory, Mapping) else {None: factory}
        if not factories:
            raise ConfigError("environment_factory is an empty dictionary; give at least one environment.")
        self.seconds, self.isolated = seconds, isolated
        self.kinds: dict[Any, EnvironmentKind] = {}
        self._pool: dict[tuple[int, Any], list[Slot]] = {}  # by set and kind
        self._set = 0
        self._kept: list[concurrent.futures.Future[Any] | None] = [None, None]  # until when each set is looked at
        self._closing, self._lent = threading.Lock(), threading.local()  # a thread's own: who asks whether it is wanted
        self.left_behind = LeftBehind()
        weakref.finalize(self, _leave, self._pool)  # nobody asks them any more: no thread waits for a call
        for name, make in factories.items():
            if not callable(make):
                raise ConfigError(f"environment_factory: {make!r} cannot be called; give a class or a function.")
            slot = ThreadSlot(make)
            self.kinds[name] = EnvironmentKind(name, make, slot.environment)
            self._pool[0, name] = [slot]
        if isolated:
            self.close()

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """Of the methods of all kinds that are tools, each name once."""
        found = {schema["function"]["name"]: schema for kind in self.kinds.values() for schema in kind.schemas}
        return list(found.values())

    @property
    def takes_turns(self) -> bool:
        return any(kind.takes_turns for kind in self.kinds.values())

    def kind_of(self, row: Row) -> EnvironmentKind:
        """The kind that a row asks for; raises `ConfigError` for a name that there is not."""
        name = row.get(COLUMN) if self.several else None
        if name not in self.kinds:
            raise ConfigError(
                f"A row has environment={name!r}; there are {sorted(self.kinds)}.{did_you_mean(str(name), self.kinds)}"
            )
        return self.kinds[name]

    def take(self, rows: Sequence[Row]) -> list[Slot]:
        """One slot for each row; slots are made where there are not enough, and used again the next time."""
        taken: dict[Any, int] = {}
        slots = []
        for row in rows:
            kind = self.kind_of(row)
            place = taken.setdefault(kind.name, 0)
            taken[kind.name] += 1
            with self._closing:
                self._check()
                pool = self._pool.setdefault((self._set, kind.name), [])
            if place == len(pool) or pool[place].lost:
                self._put(pool, place, self._make(kind))
            slots.append(pool[place])
        return slots

    def _check(self) -> None:
        """Raise where nobody waits any more for what this thread takes environments for."""
        getattr(self._lent, "check", _wanted)()

    def _put(self, pool: list[Slot], place: int, slot: Slot) -> None:
        """Keep a slot where `close` finds it; one that was in the making when the run ended is closed here."""
        with self._closing:
            try:
                self._check()
            except RolloutError:
                ended = True
            else:
                ended, pool[place : place + 1] = False, [slot]
        if ended:
            _close([slot])
            self._check()

    def _make(self, kind: EnvironmentKind) -> Slot:
        try:
            return ProcessSlot(kind.factory) if self.isolated else ThreadSlot(kind.factory)
        except StropError:
            raise
        except Exception as error:
            raise RolloutError(
                f"Another environment {kind.title} could not be made: {type(error).__name__}: {error}. The first one "
                "could; is its server still there, and does it take so many at a time?"
            ) from error

    def lend(self, check: Callable[[], None] | None = None) -> None:
        """Let the calls of `take` that follow have the other set, once nobody looks at that any more.

        Args:
            check: raises `RolloutError` once nobody waits for what this thread takes them for: then it gets none.
        """
        self._lent.check = check or _wanted
        self._check()
        self._set = 1 - self._set
        if (kept := self._kept[self._set]) is not None:
            with contextlib.suppress(concurrent.futures.CancelledError):
                kept.exception()
        self._kept[self._set] = None

    def keep(self, until: concurrent.futures.Future[Any]) -> None:
        """Do not lend the environments that are lent now again before `until` is done."""
        self._kept[self._set] = until

    def ask(self, work: Sequence[tuple[Slot, str, tuple[Any, ...], Mapping[str, Any]]]) -> list[Any]:
        """Call methods of several environments side by side; results in order, an exception where one was raised.

        A call that is not answered within `seconds` gives `Hung`, and its slot is lost.
        """
        asked = [(slot, slot.call(method, *args, **kwargs)) for slot, method, args, kwargs in work]
        began = time.monotonic()
        results: list[Any] = []
        for slot, answer in asked:
            left = None if self.seconds is None else max(0.0, self.seconds - (time.monotonic() - began))
            result = slot.wait(answer, left)
            if isinstance(result, Hung) and not slot.lost:
                slot.abandon()
                self.left_behind.add(slot.thread)
            results.append(result)
        return results

    def slot_of(self, environment: Any) -> Slot | None:
        """The slot that an environment lives in."""
        pools = list(self._pool.values())  # another thread may add to it meanwhile
        return next((slot for pool in pools for slot in list(pool) if slot.environment is environment), None)

    def close(self) -> None:
        """Close every environment, all at once; slots are made anew when they are asked for."""
        with self._closing:
            slots = [slot for pool in self._pool.values() for slot in pool if not slot.lost]
            self._pool.clear()
            self._kept = [None, None]
        _close(slots)


def _close(slots: Sequence[Slot]) -> None:
    """Close environments, all at once; those that do not answer in time are left behind."""
    asked = [(slot, slot.call("close")) for slot in slots]
    began = time.monotonic()
    for slot, answer in asked:
        slot.wait(answer, max(0.0, CLOSING_SECONDS - (time.monotonic() - began)))
        slot.abandon()


def _wanted() -> None:
    """In strict order what is taken is waited for."""


def _leave(pool: Mapping[Any, list[Slot]]) -> None:
    for slots in pool.values():
        for slot in slots:
            slot.abandon()


class EnvironmentReward:
    """What environments of one kind say that their trajectories are worth: `get_reward()`, else the attribute `reward`.

    Abstains from completions of other kinds.
    """

    def __init__(self, environments: Environments, kind: EnvironmentKind) -> None:
        self._environments, self._kind = environments, kind
        self.__name__ = self.reward_name = kind.title

    def __call__(self, environments: Sequence[Any], **kwargs: Any) -> list[float | None]:
        slots = [self._environments.slot_of(environment) for environment in environments]
        known = (slot if slot is not None and not slot.lost else None for slot in slots)  # one that hung has no reward
        own = [slot if slot is not None and slot.made_by is self._kind.factory else None for slot in known]
        if not self._kind.has_reward:
            of_steps = self._kind.rewards_steps
            return [None if slot is None else 0.0 if of_steps else slot.environment.reward for slot in own]
        said = iter(self._environments.ask([(slot, "get_reward", (), {}) for slot in own if slot is not None]))
        rewards = [None if slot is None else next(said) for slot in own]
        for reward in rewards:
            if isinstance(reward, BaseException):
                raise reward
        return rewards
