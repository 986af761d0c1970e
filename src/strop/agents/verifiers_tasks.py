"""Tasks of the `verifiers` package: its rows, its conversations and its rewards, played by the policy in strop's turns.

`verifiers` writes a conversation from the other side: a task's environment awaits the turns of an agent. Here the agent
is a seat whose turns are those of the policy, so its programs, harnesses and endpoints are not needed.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from strop.agents.spoken import THOUGHTS, split_thought
from strop.errors import ConfigError

ENDED = object()
"""Told to the seat when the conversation is cut, and by it when there is nothing more to say."""


class VerifiersTasks:
    """A taskset or an environment of `verifiers` as rows, environments and their rewards.

    `GRPOTrainer(..., train_dataset=tasks.rows, environment_factory=tasks.environment)`. The tasks of a `Taskset` are
    prompts that are answered once; an `Env` with one agent holds the conversation in its `run`. The reward is the
    trace's: all rewards of the task, weighted, and what `run` and `finalize` record.

    Args:
        played: the `Taskset` or `Env`.
        limit: most tasks; needed where they are infinite.

    Raises:
        ConfigError: no tasks, or tasks that need what the policy's turns do not have: a container, tools of their own,
            several agents.
    """

    def __init__(self, played: Any, limit: int | None = None) -> None:
        self.env = played if hasattr(played, "taskset") else None
        taskset = played if self.env is None else self.env.taskset
        if limit is None and not taskset.bounded:
            raise ConfigError(f"{type(taskset).__name__} has tasks without end; say how many to learn from: limit=.")
        self.tasks = list(taskset if limit is None else taskset.take(limit))
        if not self.tasks:
            raise ConfigError(f"{type(taskset).__name__} has no tasks.")
        problems = [*_of_taskset(taskset, self.tasks[0]), *([] if self.env is None else _of_env(self.env))]
        if problems:
            raise ConfigError.collect(f"The tasks of {type(taskset).__name__} cannot be played here:", problems)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each task: its prompt as messages, if it has one, and its number in the column `task`."""
        prompts = [prompt_of(task.data) for task in self.tasks]
        return [{**({"prompt": p} if p else {}), "task": number} for number, p in enumerate(prompts)]

    def environment(self) -> Played:
        """One environment of turns, for `environment_factory`."""
        return Played(self)

    async def play(self, seat: Seat, task: Any) -> None:
        """One task from its first turn to its rewards."""
        if self.env is None:
            await seat.run(task)
            return
        from verifiers.v1 import Episode

        agents = SimpleNamespace(**dict.fromkeys(_agents(self.env), seat))
        await self.env.setup(agents)
        await self.env.run(task, agents)
        await self.env.finalize(task, Episode(task=seat.trace.task, traces=[seat.trace], ok=True))


class Played:
    """The task of a row as an environment of turns."""

    def __init__(self, tasks: VerifiersTasks) -> None:
        self._tasks = tasks
        self.seat = Seat()
        self._play: asyncio.Future[None] | None = None

    async def reset(self, task: int, **row: Any) -> str | None:
        await self.close()
        agents = {} if self._tasks.env is None else _agents(self._tasks.env)
        self.seat = Seat(next((agent.max_turns for agent in agents.values()), None))
        self._play = asyncio.ensure_future(self._tasks.play(self.seat, self._tasks.tasks[task]))
        return await self._told()

    async def step(self, text: str) -> tuple[str | None, bool]:
        assert self._play is not None
        self.seat.said.put_nowait(text)
        return await self._told(), self._play.done()

    async def get_reward(self) -> float | None:
        assert self._play is not None
        if self._play.done() and self._play.exception() is not None:
            return None  # a turn of it has failed, and its completion with it
        self.seat.said.put_nowait(ENDED)  # a conversation that was cut ends here, on its side too
        await self._play
        return float(self.seat.trace.reward)

    async def close(self) -> None:
        if self._play is not None and not self._play.done():
            self._play.cancel()
            await asyncio.wait([self._play])

    async def _told(self) -> str | None:
        """What is said to the policy next; raises what the task raised."""
        assert self._play is not None
        told = asyncio.ensure_future(self.seat.told.get())
        either: tuple[asyncio.Future[Any], ...] = (told, self._play)
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if told.done():
            return told.result()
        told.cancel()
        self._play.result()
        return None


class Seat:
    """The policy as an agent of `verifiers`: `run(task)`, or `interaction(task)` with its turns.

    Args:
        max_turns: of the agent; None: no bound.
    """

    trainable = True

    def __init__(self, max_turns: int | None = None) -> None:
        self.max_turns = max_turns
        self.trace: Any = None
        self.told: asyncio.Queue[str | None] = asyncio.Queue()
        self.said: asyncio.Queue[Any] = asyncio.Queue()

    async def run(self, task: Any) -> Any:
        async with self.interaction(task):
            await self.turn()
        return self.trace

    @asynccontextmanager
    async def interaction(self, task: Any) -> AsyncIterator[Seat]:
        """The conversation of a task, which is scored at its end."""
        if self.trace is not None:
            raise ConfigError(f"{type(task).__name__} lets its agent play twice in an episode, which is not learned.")
        self.trace = new_trace(task)
        for message in messages_of(task.data):
            self._note(message)
        yield self
        await task.score(self.trace)

    async def turn(self, message: Any = None) -> Any:
        """What the policy says to `message` (text), or to the prompt."""
        from verifiers.v1 import AssistantMessage, Segment, UserMessage

        over = Segment(messages=[], terminated=True)
        if self.max_turns is not None and self.trace.num_turns >= self.max_turns:
            return over
        if message is not None:
            if not isinstance(message, str):
                raise TypeError(f"turn() was given a {type(message).__name__}; the policy is told text here.")
            self._note(UserMessage(content=message))
        self.told.put_nowait(message)
        text = await self.said.get()
        if text is ENDED:
            return over
        answer = AssistantMessage(**without_thought(text))
        self._note(answer, sampled=True)
        return Segment(messages=[answer])

    def _note(self, message: Any, *, sampled: bool = False) -> None:
        from verifiers.v1 import MessageNode

        nodes = self.trace.nodes
        nodes.append(MessageNode(parent=len(nodes) - 1 if nodes else None, message=message, sampled=sampled))


def new_trace(task: Any) -> Any:
    """An empty trace of a task."""
    from verifiers.v1 import AgentConfig, AgentInfo, Trace, TraceTask
    from verifiers.v1.state import state_cls

    record = TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
    return Trace(task=record, state=state_cls(type(task))(), agent=AgentInfo(config=AgentConfig()))


def without_thought(text: str) -> dict[str, Any]:
    """A turn of the policy, its thoughts apart, also where the prompt has opened them."""
    opened = next((marks for marks in THOUGHTS if marks[1] in text and marks[0] not in text), None)
    thought, words = split_thought(text, opened)
    return {"content": words, "reasoning_content": thought or None}


def messages_of(data: Any) -> Iterator[Any]:
    """The prompt of a task as the package's messages, the system's first."""
    from verifiers.v1 import SystemMessage, UserMessage

    if data.system_prompt is not None:
        yield SystemMessage(content=data.system_prompt)
    yield from [UserMessage(content=data.prompt)] if isinstance(data.prompt, str) else data.prompt or []


def prompt_of(data: Any) -> list[dict[str, Any]]:
    """The prompt of a task as a row has it."""
    return [message.model_dump(exclude_none=True) for message in messages_of(data)]


def _agents(env: Any) -> dict[str, Any]:
    from verifiers.v1.configs.agent import agent_config_fields

    return dict(agent_config_fields(env.config))


def _of_taskset(taskset: Any, task: Any) -> list[str]:
    """What tasks need that the policy's turns do not have."""
    from verifiers.v1 import Task
    from verifiers.v1.utils.decorators import discover_decorated

    kind = type(task)
    hooks = [name for name in ("setup", "finalize") if getattr(kind, name) is not getattr(Task, name)]
    signals = [*task.hooks("reward"), *task.hooks("metric"), *(judge.score for judge in task.plugged_judges())]
    needs = {
        f"{kind.__name__}.{' and '.join(hooks)} prepare a machine, and there is none.": hooks,
        f"{kind.__name__} runs in a container.": task.NEEDS_CONTAINER or task.data.image or task.data.skills,
        "they bring tools on servers of their own; give functions as tools=.": (
            kind.toolsets(task.config) or taskset.toolsets(taskset.config)
        ),
        "@stop and @intercept look at requests to a model, and there are none.": (
            task.hooks("stop") or discover_decorated(task, "intercept")
        ),
    }
    of_machines = [signal.__name__ for signal in signals if _needs_runtime(signal)]
    return [text for text, found in needs.items() if found] + [
        f"{name} looks into a machine (runtime), and there is none." for name in of_machines
    ]


def _of_env(env: Any) -> list[str]:
    from verifiers.v1 import Env

    names = list(_agents(env))
    several = [f"{type(env).__name__} has {len(names)} agents, {', '.join(names)}; one is learned here."]
    own = [f"{type(env).__name__}.start brings up resources of its own, which nobody does here."]
    return [*(several if len(names) > 1 else []), *(own if type(env).start is not Env.start else [])]


def _needs_runtime(signal: Callable[..., Any]) -> bool:
    parameter = inspect.signature(signal).parameters.get("runtime")
    return parameter is not None and parameter.default is inspect.Parameter.empty
