"""An agent program as it is, trained: it talks to the policy as to OpenAI's chat API, and what was sampled is kept.

The trainer's thread alone renders, tokenises and samples. Agents run beside it; their requests come in by a queue, and
those of several trajectories are answered by one call of the engine.
"""

from __future__ import annotations

import copy
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from strop.agents.attempt import Attempt, nobody_waits
from strop.agents.chat_api import Refused
from strop.agents.chat_server import WATCH_SECONDS, Call, ChatServer
from strop.agents.conversation import Conversation, PastTurns, TurnRecord
from strop.agents.environments import Environments
from strop.agents.recorded import Asked, Recorded
from strop.agents.running import Agent, AgentAtWork, Ended, Endpoint
from strop.agents.set_up import make_turns
from strop.agents.threads import LeftBehind
from strop.agents.tools import Tools, error_text
from strop.agents.turns import Trajectory, Turns, row_of
from strop.data.options import TokenizeOptions
from strop.errors import ConfigError, RolloutError
from strop.records import Example, Stretch
from strop.rewards.contract import OFFERED
from strop.rollout.generator import Generator
from strop.rollout.sampling import SamplingParams


class AgentProgram:
    """An agent that speaks OpenAI's chat-completions dialect, as `rollout_func` of GRPO and RLOO.

        def agent(endpoint, row):
            client = OpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key)
            ...
            return {"answer": answer}                # columns for the rewards

        GRPOTrainer(model, reward_funcs=reward, train_dataset=rows, rollout_func=AgentProgram(agent))

    Args:
        agent: called once per completion with an `Endpoint` and the row (its prompt and columns), in a thread; a
            coroutine function; or a command line, which has OPENAI_BASE_URL and OPENAI_API_KEY in its environment and
            the row as JSON on standard input, and prints what it returns.
        columns: names of what it returns, where rewards are to find them (None) in a batch of which no agent returns.
        seconds: time limit of an agent, without what it waits for the model, > 0; None: no limit.
        most_calls: of the model, by one agent, >= 1.
        at_once: most agents at a time, >= 1; None: all of a batch.
        gather_seconds: how long a request waits for those of other agents, >= 0; no longer than until all have asked.

    Raises:
        ConfigError: values out of range.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        columns: Sequence[str] = (),
        seconds: float | None = 600.0,
        most_calls: int = 64,
        at_once: int | None = None,
        gather_seconds: float = 0.05,
    ) -> None:
        is_command = isinstance(agent, list | tuple) and agent and all(isinstance(word, str) for word in agent)
        rules = {
            f"agent must be a function or a list of words; got {agent!r}.": callable(agent) or is_command,
            f"seconds must be > 0 or None; got {seconds}.": seconds is None or seconds > 0,
            f"most_calls must be >= 1; got {most_calls}.": most_calls >= 1,
            f"at_once must be >= 1 or None; got {at_once}.": at_once is None or at_once >= 1,
            f"gather_seconds must be >= 0; got {gather_seconds}.": gather_seconds >= 0,
            f"columns must be a list of names, none of {list(OFFERED)}; got {columns!r}.": (
                not isinstance(columns, str) and not set(columns) & set(OFFERED)
            ),
        }
        if problems := [rule for rule, holds in rules.items() if not holds]:
            raise ConfigError.collect("This AgentProgram cannot be made:", problems)
        self.agent, self.columns, self.seconds, self.most_calls = agent, tuple(columns), seconds, most_calls
        self.at_once, self.gather_seconds = at_once, gather_seconds


def stroptool(first: str, second: int) -> str:
    """Stands for the tools of requests while the chat template is learned.

    Args:
        first: A text.
        second: A number.
    """
    return first * second


def make_agent_turns(
    program: AgentProgram,
    tokenizer: Any,
    options: TokenizeOptions,
    *,
    past: PastTurns,
    can_fork: bool,
    stop_ids: Iterable[int],
    positions: int | None,
    say: Callable[[str], None],
    tools: Tools | None = None,
    environments: Environments | None = None,
) -> AgentTurns:
    """Rollouts of a run by an agent; see `make_turns` for the arguments. Raises `ConfigError`."""
    if not isinstance(program, AgentProgram):
        raise ConfigError(f"rollout_func must be a function or an AgentProgram; got {program!r}.")
    if tools is not None or environments is not None:
        raise ConfigError("An AgentProgram brings its own tools; leave out tools and environment_factory.")
    if not can_fork:
        raise ConfigError(
            "An agent may rewrite its history, and its completions then lie on several contexts, from which GRPO and "
            "RLOO learn; use one of them, or rollout_func with a function that returns one context."
        )
    if not (options.template() or getattr(tokenizer, "chat_template", None)):
        raise ConfigError("An agent's messages need a tokenizer with a chat template (chat_template_path).")
    given: dict[str, Any] = {"past": past, "stop_ids": tuple(stop_ids), "positions": positions}
    notices: list[str] = []
    try:
        turns = make_turns(tokenizer, options, tools=Tools([stroptool]), say=notices.append, **given)
        return AgentTurns(program, turns, say, notices)
    except ConfigError as problem:
        return AgentTurns(program, make_turns(tokenizer, options, say=say, **given), say, [], str(problem))


@dataclass
class AgentTurns:
    """Rollouts by an agent, as `Turns` are by tools.

    Args:
        turns: whose template, stop ids and limits hold.
        say: told what the user should know.
        notices: of the template with tools, said once an agent has some.
        no_tools: why the template cannot serve tools, "" if it can.
    """

    program: AgentProgram
    turns: Turns
    say: Callable[[str], None]
    notices: list[str]
    no_tools: str = ""
    has_worked: bool = False
    said: set[str] = field(default_factory=set)
    left_behind: LeftBehind = field(default_factory=LeftBehind)

    def __post_init__(self) -> None:
        self.columns = set(self.program.columns)  # what agents have returned, from the first batch on

    def run(
        self, generator: Generator, prompts: Sequence[Example], n: int, sampling: SamplingParams
    ) -> list[list[Trajectory]]:
        """`n` trajectories for each prompt, each of at most `sampling.max_new_tokens` tokens.

        Raises:
            RolloutError: no agent has ever come through, or `columns` has names of the rows' own.
        """
        of_rows = {name for prompt in prompts for name in prompt.extras.get("columns", {})}
        if taken := sorted(of_rows & set(self.program.columns)):
            raise RolloutError(f"columns={taken} of the AgentProgram are columns of the rows; choose other names.")
        numbered = replace(sampling, first_prompt=sampling.first_prompt * n)
        batch = AgentBatch(self, generator, [prompt for prompt in prompts for _ in range(n)], numbered)
        everyone = batch.run()
        if batch.given_up or any(t.unseen for t in everyone):
            self.tell("unseen", "Warning: an agent's client closed the connection before the model had answered, as "
                      "when its time limit is over (raise that: a request waits for the whole batch). What it did not "
                      "see is not learned from.")  # fmt: skip
        failed = [t.problem for t in everyone if t.reason == "failed"]
        if len(failed) == len(everyone) and not self.has_worked:
            raise RolloutError(f"The agent failed on all {len(everyone)} completions; the first: {failed[0]}")
        self.has_worked = True
        if failed:
            self.tell("failed", f"Warning: an agent failed on {len(failed)} of {len(everyone)} completions, which are "
                      f"not learned from; the first: {failed[0]}")  # fmt: skip
        self.columns |= {name for t in everyone for name in t.extra}
        for trajectory in everyone:
            trajectory.extra = {name: trajectory.extra.get(name) for name in sorted(self.columns)}
        return [everyone[start : start + n] for start in range(0, len(everyone), n)]

    @property
    def threads_left(self) -> int:
        """Threads of agents that did not end in time and still run."""
        return self.left_behind.running

    def tell(self, about: str, line: str) -> None:
        """A line for the user, once."""
        if about not in self.said:
            self.said.add(about)
            self.say(line)


class AgentBatch:
    """The agents of one batch, from their start to their end."""

    def __init__(
        self, owner: AgentTurns, generator: Generator, examples: Sequence[Example], sampling: SamplingParams
    ) -> None:
        self.owner, self.program = owner, owner.program
        self.turns = owner.turns.within(getattr(generator, "context_tokens", None))
        self.generator, self.sampling = generator, sampling
        self.check_wanted = getattr(generator, "check", None)  # of a run that may end meanwhile
        self.given_up = 0  # requests that were closed before the model was asked
        self.inbox: queue.SimpleQueue[Call | Ended] = queue.SimpleQueue()
        self.attempts = [self._attempt(number, example) for number, example in enumerate(examples)]
        self.running: dict[int, Attempt] = {}
        self.calls: list[Call] = []

    def _attempt(self, number: int, example: Example) -> Attempt:
        kwargs = example.extras.get("chat_template_kwargs") or {}
        turns = self.turns
        recorded = Recorded(turns.template, turns.past, self.sampling.max_new_tokens, turns.positions, kwargs)
        most = self.program.most_calls
        return Attempt(number, example, recorded, most, self.sampling.number(number) * most)

    def run(self) -> list[Trajectory]:
        self.server = ChatServer(self.inbox)
        to_start = deque(self.attempts)
        try:
            while to_start or self.running:
                if self.check_wanted is not None:
                    self.check_wanted()
                while to_start and len(self.running) < (self.program.at_once or len(self.attempts)):
                    self._start(to_start.popleft())
                self._hear(self._patience())
                self._drop_closed()
                self._expire()
                if self.calls and (not self._working() or self._gathering_ends() <= time.monotonic()):
                    calls, self.calls = self.calls, []
                    self._answer(calls)
        finally:
            self.server.close()
            for attempt in self.running.values():
                assert attempt.work is not None
                attempt.work.abandon()
        return [self._trajectory(attempt) for attempt in self.attempts]

    def _start(self, attempt: Attempt) -> None:
        attempt.key = self.server.admit(attempt.number)
        if self.program.seconds is not None:
            attempt.deadline = time.monotonic() + self.program.seconds
        endpoint, row = Endpoint(self.server.base_url, attempt.key), copy.deepcopy(row_of(attempt.example))
        attempt.work = AgentAtWork(self.program.agent, endpoint, row, attempt.number, self.inbox.put)
        self.running[attempt.number] = attempt  # last of all: there is work to abandon now

    # ---- what comes in

    def _working(self) -> list[Attempt]:
        """Of the agents that run, those that do not wait for the model."""
        waiting = {call.trajectory for call in self.calls}
        return [attempt for attempt in self.running.values() if attempt.number not in waiting]

    def _patience(self) -> float:
        """Seconds until something is due without an event, or the run is to be asked whether it goes on."""
        due = min([self._gathering_ends(), *(attempt.deadline for attempt in self._working())])
        return min(max(due - time.monotonic(), 0.0), WATCH_SECONDS)

    def _gathering_ends(self) -> float:
        first = min((call.arrived for call in self.calls), default=float("inf"))
        return first + self.program.gather_seconds

    def _hear(self, seconds: float) -> None:
        """Wait for an event, and take all that have come."""
        try:
            event = self.inbox.get(timeout=seconds)
            while True:
                self._take(event)
                event = self.inbox.get_nowait()
        except queue.Empty:
            pass

    def _take(self, event: Call | Ended) -> None:
        attempt = self.running.get(event.trajectory)
        if isinstance(event, Ended):
            if attempt is not None:
                self._end(attempt, event)
        elif attempt is None:
            event.give(Refused("This trajectory has ended.", 410, "trajectory_ended"))
        else:
            self.calls.append(event)

    def _drop_closed(self) -> None:
        """Requests whose client is gone are not answered: it may be asking again."""
        for call in [call for call in self.calls if not call.is_awaited()]:
            self.calls.remove(call)
            self.given_up += 1
            call.give(nobody_waits())

    def _expire(self) -> None:
        for attempt in self._working():
            if attempt.deadline <= time.monotonic():
                assert attempt.work is not None
                attempt.work.abandon()
                self.owner.left_behind.add(attempt.work.thread)
                self._end(attempt, Ended(attempt.number, {}, f"no end within {self.program.seconds:g} seconds"))

    def _end(self, attempt: Attempt, ended: Ended) -> None:
        """The end of an agent; requests that it has not waited for are left unanswered by the model."""
        attempt.ended = ended
        del self.running[attempt.number]
        self.server.dismiss(attempt.key)
        self.calls = [call for call in self.calls if call.trajectory != attempt.number]

    # ---- what the model says

    def _answer(self, calls: list[Call]) -> None:
        """Answer requests; those with the same stop strings by one call of the engine."""
        opened: list[Asked] = []
        for call in sorted(calls, key=lambda call: call.trajectory):
            try:
                opened.append(self._open(self.running[call.trajectory], call))
            except Refused as refused:
                call.give(refused)
            except Exception as problem:  # templates and tokenizers are others' code: what they raise costs the request
                call.give(Refused(f"The conversation cannot be rendered: {error_text(problem)}"))
        by_stop = sorted(opened, key=lambda asked: asked.request.stop)
        for stop, together in groupby(by_stop, key=lambda asked: asked.request.stop):
            self._sample(list(together), stop)
        now = time.monotonic()
        first = {call.trajectory: call.arrived for call in reversed(calls)}
        for number, arrived in first.items():
            self.running[number].deadline += now - arrived

    def _open(self, attempt: Attempt, call: Call) -> Asked:
        request, owner = call.request, self.owner
        most = getattr(self.generator, "most_stop_strings", None)
        if most is not None and len({*self.sampling.stop_strings, *request.stop}) > most:
            raise Refused(f"stop: the run's vLLM server takes {most} stop strings, those of the run among them.")
        if request.tools:
            if owner.no_tools:
                raise Refused(owner.no_tools)
            for notice in owner.notices:
                owner.tell(notice, notice)
            attempt.shown = request.tools
        for name, value in request.sampling.items():
            if name != "seed" and value != getattr(self.sampling, name):
                owner.tell(name, f"The agent asks for {name}={value}; the run's {getattr(self.sampling, name)} is "
                           "used, as the ratio is that of what was sampled.")  # fmt: skip
        return attempt.open(call)

    def _sample(self, together: list[Asked], stop: tuple[str, ...]) -> None:
        stops = self.sampling.stop_token_ids or self.turns.stop_ids
        params = replace(
            self.sampling, max_new_tokens=max(asked.limit for asked in together), stop_token_ids=stops or None,
            stop_strings=tuple(dict.fromkeys((*self.sampling.stop_strings, *stop))),
            prompt_numbers=tuple(asked.number for asked in together),
        )  # fmt: skip
        sampled = self.generator.generate([asked.talk.context for asked in together], 1, params)
        for place, asked in enumerate(together):
            ids, logps = sampled.completions[place][0], sampled.sampler_logps[place][0]
            stopped = sampled.finish_reasons[place][0] == "stop"
            attempt = self.attempts[asked.call.trajectory]
            if not asked.call.is_awaited():
                attempt.take_back(asked)
                continue
            try:
                reply = attempt.recorded.hear(asked, ids, logps, stopped=stopped, stop_ids=stops)
            except Refused as refused:
                asked.call.give(refused)
            except Exception as problem:  # an agent's schemas may be anything
                attempt.take_back(asked, Refused(f"What the model said cannot be read: {error_text(problem)}"))
            else:
                attempt.give(asked, reply)

    # ---- what is learned from

    def _trajectory(self, attempt: Attempt) -> Trajectory:
        assert attempt.ended is not None
        attempt.settle()
        record, ended, row = attempt.recorded.whole(), attempt.ended, row_of(attempt.example)
        if record is None:
            trajectory = Trajectory(row, self._silence(attempt.example), attempt.shown, unseen=attempt.unseen)
            trajectory.end("failed", ended.problem or "the agent asked the model for nothing")
            return trajectory
        fields = dict(ended.fields)
        rewards, answers, problem = fields.pop("turn_rewards", None) or (), len(attempt.recorded.heard), ended.problem
        reason = "length" if attempt.recorded.is_cut else "failed" if problem else "stop"
        if rewards and len(rewards) != answers:
            reason, problem = "failed", f"turn_rewards has {len(rewards)} numbers for {answers} answers of the model"
            rewards, fields = (), {}
        trajectory = Trajectory(row, record, attempt.shown, extra=fields, unseen=attempt.unseen)
        trajectory.turn_rewards = attempt.recorded.rewards_in_order(rewards)
        trajectory.calls, trajectory.failures = attempt.recorded.calls, attempt.recorded.broken
        trajectory.end(reason, problem)
        return trajectory

    def _silence(self, example: Example) -> Conversation:
        """What stands for an agent that asked for nothing: a token that is not learned."""
        prompt = example.extras.get("prompt")
        messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": str(prompt or "")}]
        talk = Conversation(self.turns.template, messages, "", list(example.prompt_ids))
        end = (self.turns.stop_ids or (0,))[0]
        talk.stretches = [Stretch(list(example.prompt_ids), [end], [0], [0.0])]
        talk.turns = [TurnRecord({"role": "assistant", "content": ""}, 0)]
        return talk
