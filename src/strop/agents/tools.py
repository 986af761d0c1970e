"""Tools that a model may call: their description for the prompt, and their answers as text."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from strop.agents.call_formats import ToolCall
from strop.agents.threads import InTurn, LeftBehind, side_by_side
from strop.errors import ConfigError, did_you_mean
from strop.event_loop import REWARDS, TOOLS, run_in_loop
from strop.rewards.invoke import is_async
from strop.time_limit import TimeLimit, call_with_limit

MOST_CHARACTERS = 4000
"""Longer answers of tools are cut, and say so."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a tool or an environment said."""

    text: str
    worked: bool = True
    listed: list[Any] | None = None  # the list that it gave, if it gave one: rewards see that
    reward: float = 0.0  # of the turn that called


@dataclass(frozen=True, slots=True)
class Rewarded:
    """What a tool returns to reward the turn that called it: the model is shown `result` alone."""

    result: Any
    reward: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.reward):
            raise ValueError(f"the reward {self.reward} is not a finite number")


class Tools:
    """Python functions with type hints and docstrings, by name; sync or async.

    Sync ones are called one after the other in this thread, with the state that the script has, or in one of their own
    (`apart`), or side by side in threads; async ones of all completions are awaited together, in the loop of async
    rewards, or in one of their own (`apart`).

    Raises:
        ConfigError: two of one name, or a function that cannot be described (no docstring or type hints).
    """

    def __init__(self, functions: Sequence[Callable[..., Any]] = ()) -> None:
        self.functions = {function.__name__: function for function in functions}
        self.left_behind = LeftBehind()
        self.apart = False  # rewards are asked beside them: sync ones have a thread, async ones a loop of their own
        self._line = InTurn("strop-tools", self.left_behind)
        problems = ["two tools have the same name; rename one."] if len(self.functions) < len(functions) else []
        self.schemas, unclear = describe_tools(self.functions)
        if problems := [*problems, *unclear]:
            raise ConfigError.collect("These tools cannot be offered to the model:", problems)

    def answer(
        self,
        calls: Sequence[ToolCall],
        seconds: float | None = None,
        *,
        whose: Sequence[Hashable] | None = None,
        at_once: int = 1,
    ) -> list[Answer]:
        """Answers to calls, in their order. Exceptions, and the end of the time, become words for the model.

        Args:
            whose: the completion that each call is of; None: all are of one.
            at_once: completions that sync tools work for at a time; 1: in this thread, where `seconds` interrupts them.
        """
        answers: dict[int, Answer] = {}
        waiting: dict[int, Any] = {}
        plain: dict[Hashable, list[int]] = {}
        for index, call in enumerate(calls):
            problem = problem_of(call, self.functions)
            if problem is not None:
                answers[index] = problem
            elif is_async(self.functions[call.name]):
                waiting[index] = self.functions[call.name]
            elif at_once > 1:
                plain.setdefault(None if whose is None else whose[index], []).append(index)
            elif self.apart:
                own = partial(_alone, self.functions[call.name], call.arguments)
                answers[index] = self._line.call(own, seconds, no_answer(seconds))
            else:
                answers[index] = call_tool(self.functions[call.name], call.arguments, seconds)
        if plain:
            answers |= self._in_threads(calls, list(plain.values()), at_once, seconds)
        if waiting:
            work = [_awaited(function, calls[index].arguments, seconds) for index, function in waiting.items()]
            limit = None if seconds is None else seconds + 1.0
            try:
                said = run_in_loop(_together(work), limit, name=TOOLS if self.apart else REWARDS)
            except TimeLimit:  # one blocked the loop that all of them share
                said = [no_answer(seconds)] * len(work)
            answers.update(zip(waiting, said, strict=True))
        return [answers[index] for index in range(len(calls))]

    def _in_threads(
        self, calls: Sequence[ToolCall], chains: Sequence[list[int]], at_once: int, seconds: float | None
    ) -> dict[int, Answer]:
        """Answers by the number of the call; `chains` are the calls of each completion."""
        works = [[partial(_alone, self.functions[calls[i].name], calls[i].arguments) for i in own] for own in chains]
        said = side_by_side(works, at_once, seconds, no_answer(seconds), self.left_behind)
        return dict(zip(chain.from_iterable(chains), chain.from_iterable(said), strict=True))


def describe_tools(functions: Mapping[str, Callable[..., Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """JSON schemas of functions, and what keeps others from having one."""
    schemas, problems = [], []
    for name, function in functions.items():
        try:
            schemas.append(describe_tool(function))
        except ConfigError as error:
            problems.append(f"{name}: {error}")
    return schemas, problems


def describe_tool(function: Callable[..., Any]) -> dict[str, Any]:
    """The JSON schema of a function; raises `ConfigError` where hints or docstring do not suffice."""
    from transformers.utils import get_json_schema

    try:
        return get_json_schema(function)
    except Exception as error:  # its many kinds all mean that the description is incomplete
        raise ConfigError(f"{error} Give it type hints and a docstring with an Args section.") from None


def problem_of(call: ToolCall, known: Iterable[str]) -> Answer | None:
    """Why a call cannot be made, in words for the model."""
    if call.problem is not None:
        return Answer(f"Error: {call.problem}", False)
    if call.name not in known:
        return Answer(f"Error: there is no tool '{call.name}'.{did_you_mean(call.name, list(known))}", False)
    return None


def call_tool(function: Callable[..., Any], arguments: Mapping[str, Any], seconds: float | None) -> Answer:
    """What a sync function says."""
    try:
        return answer_of(call_with_limit(lambda: function(**arguments), seconds))
    except TimeLimit:
        return no_answer(seconds)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a tool does not end the run
        return Answer(error_text(error), False)


def _alone(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Answer:
    """What a sync function says in a thread, which nothing interrupts and nobody hears."""
    try:
        return call_tool(function, arguments, None)
    except BaseException as error:
        return Answer(error_text(error), False)


async def _awaited(function: Callable[..., Any], arguments: Mapping[str, Any], seconds: float | None) -> Answer:
    task: asyncio.Future[Any] | None = None
    try:
        task = asyncio.ensure_future(function(**arguments))
        await asyncio.wait({task}, timeout=seconds)  # and not for what it does when it is cancelled
        return answer_of(task.result()) if task.done() else no_answer(seconds)
    except asyncio.CancelledError as error:
        if task is None or not task.cancelled():  # it is this call that is cancelled
            raise
        return Answer(error_text(error), False)
    except Exception as error:
        return Answer(error_text(error), False)
    finally:
        if task is not None:
            task.cancel()


async def _together(work: Sequence[Any]) -> list[Answer]:
    return list(await asyncio.gather(*work))


def answer_of(result: Any) -> Answer:
    """What a tool returned, as an answer."""
    reward = 0.0
    if isinstance(result, Rewarded):
        result, reward = result.result, float(result.reward)
    return Answer(as_text(result), listed=result if isinstance(result, list) else None, reward=reward)


def no_answer(seconds: float | None) -> Answer:
    """In place of what did not come in time; None: there is no limit, and this is never shown."""
    seconds = math.inf if seconds is None else seconds
    return Answer(f"Error: no answer within {seconds:g} seconds.", False)


def error_text(error: BaseException) -> str:
    """An exception in words for the model."""
    try:
        return shorten(f"Error: {type(error).__name__}: {error}")
    except Exception:
        return f"Error: {type(error).__name__}"


def as_text(result: Any) -> str:
    """A tool's result as text: a string as it is, else JSON, else as it prints."""
    try:
        if isinstance(result, str):
            text = result
        elif isinstance(result, bytes | bytearray):
            text = bytes(result).decode("utf-8", "replace")
        else:
            text = json.dumps(result, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError, RecursionError):  # keys that are no text, circles
        try:
            text = repr(result)
        except Exception:
            text = f"(a {type(result).__name__} that cannot be shown)"
    return shorten(text.encode("utf-8", "replace").decode())


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    try:
        return str(value)
    except Exception:
        return f"(a {type(value).__name__} that cannot be shown)"


def shorten(text: str) -> str:
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[:MOST_CHARACTERS]} (cut after {MOST_CHARACTERS} characters)"
