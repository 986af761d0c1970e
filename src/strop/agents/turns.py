"""Rollouts of several turns: the model writes, tools or an environment answer, the model goes on.

All unfinished trajectories write their next turn in one call of the generator, then all are answered: async tools and
environments side by side. What goes wrong in one costs that trajectory only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from strop.agents.conversation import Conversation, PastTurns, PlainConversation
from strop.agents.environments import COLUMN, EnvironmentKind, Environments
from strop.agents.slots import Slot
from strop.agents.spoken import Spoken
from strop.agents.template import ConversationTemplate, Message
from strop.agents.threads import Hung
from strop.agents.tools import Answer, Tools, answer_of, as_text, error_text, no_answer, problem_of
from strop.data.chat import Unrenderable
from strop.errors import DataError, RolloutError
from strop.records import Example, Row
from strop.rewards.contract import read_number
from strop.rollout.generator import Generator
from strop.rollout.sampling import SamplingParams

TURN_SEEDS = 7_919


@dataclass
class Trajectory:
    """One completion in the making."""

    row: Row
    conversation: Conversation
    shown: list[Any]  # JSON schemas of the tools that the model may call
    slot: Slot | None = None
    kind: EnvironmentKind | None = None
    reason: str = "stop"  # "stop", "length", or "failed"
    done: bool = False
    problem: str = ""  # why it failed
    rounds: int = 0  # of answers
    calls: int = 0
    failures: int = 0  # calls that were answered by an error
    rolled_back: bool = False  # the last answers did not fit and were left out
    listed: dict[str, list[Any]] = field(default_factory=dict)  # call id -> the list that a tool gave
    turn_rewards: list[float] = field(default_factory=list)  # of each turn of the model, by what answered it
    extra: dict[str, Any] = field(default_factory=dict)  # what an agent returned, for rewards
    unseen: int = 0  # answers of the model that did not reach the agent

    @property
    def environment(self) -> Any:
        return None if self.slot is None else self.slot.environment

    @property
    def names(self) -> frozenset[str]:
        """Of the tools that it may call."""
        return frozenset(tool["function"]["name"] for tool in self.shown)

    def end(self, reason: str, problem: str = "") -> None:
        self.done, self.reason, self.problem = True, reason, problem


@dataclass
class Turns:
    """Runs trajectories turn by turn.

    Args:
        template: of the run.
        tools: functions that the model may call in every row that names no tools itself.
        environments: made for each completion.
        rounds: most rounds of answers; an answer of the model may follow the last. None: no bound.
        seconds: time limit of each tool.
        past: what becomes of turns that the template rewrites.
        stop_ids: ids that end a turn of the model.
        positions: tokens that the model can read; None: no end.
        at_once: completions whose plain tools run at a time; 1: in this thread, one after the other.
    """

    template: ConversationTemplate
    tools: Tools = field(default_factory=Tools)
    environments: Environments | None = None
    rounds: int | None = None
    seconds: float | None = None
    past: PastTurns = "template"
    stop_ids: tuple[int, ...] = ()
    positions: int | None = None
    at_once: int = 1

    @property
    def schemas(self) -> list[Any]:
        """Of every tool that a row may show."""
        return [*self.tools.schemas, *(self.environments.schemas if self.environments is not None else [])]

    @property
    def threads_left(self) -> int:
        """Threads of tools and environments that did not end in time and still run."""
        environments = 0 if self.environments is None else self.environments.left_behind.running
        return self.tools.left_behind.running + environments

    def run(
        self, generator: Generator, prompts: Sequence[Example], n: int, sampling: SamplingParams
    ) -> list[list[Trajectory]]:
        """Sample `n` trajectories for each prompt, of at most `sampling.max_new_tokens` tokens, answers among them."""
        turns = self.within(getattr(generator, "context_tokens", None))
        sampling = replace(sampling, first_prompt=sampling.first_prompt * n)  # numbers are those of completions here
        everyone = turns.begin([prompt for prompt in prompts for _ in range(n)])
        number = 0
        while active := [t for t in everyone if not t.done]:
            turns.reply(turns.speak(generator, active, number, sampling), sampling.max_new_tokens)
            number += 1
        for trajectory in everyone:
            if not any(stretch.ids for stretch in trajectory.conversation.stretches):  # it failed before it began
                trajectory.conversation.stretches[-1].write([self.stop_ids[0] if self.stop_ids else 0])
        return [everyone[start : start + n] for start in range(0, len(everyone), n)]

    def within(self, context: int | None) -> Turns:
        """The same for an engine that was started for `context` tokens, as vLLM for fewer than the model reads."""
        if context is None or (self.positions is not None and self.positions <= context):
            return self
        return replace(self, positions=context)

    # ---- the beginning

    def begin(self, prompts: Sequence[Example]) -> list[Trajectory]:
        """Trajectories with their environments reset; an observation joins the prompt's last turn of the user."""
        rows = [row_of(prompt) for prompt in prompts]
        if self.environments is None:
            return [self.trajectory(p, row) for p, row in zip(prompts, rows, strict=True)]
        slots = self.environments.take(rows)
        kinds = [self.environments.kind_of(row) for row in rows]
        resets = [index for index, kind in enumerate(kinds) if kind.has_reset]
        several = self.environments.several
        given = [{k: v for k, v in row.items() if not (several and k == COLUMN)} for row in rows]
        said = self.environments.ask([(slots[i], "reset", (), given[i]) for i in resets])
        observed = dict(zip(resets, said, strict=True))
        found = []
        for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            observation = observed.get(index)
            failed = isinstance(observation, BaseException)
            trajectory = self.trajectory(prompt, row, kinds[index], None if failed else observation)
            trajectory.slot, trajectory.kind = slots[index], kinds[index]
            if isinstance(observation, BaseException):
                trajectory.end("failed", f"reset(): {error_text(observation)}")
            found.append(trajectory)
        return found

    def trajectory(
        self, prompt: Example, row: Row, kind: EnvironmentKind | None = None, observation: Any = None
    ) -> Trajectory:
        given, own = row["prompt"], prompt.extras.get("tools")
        shown = [*self.tools.schemas, *(kind.schemas if kind is not None else [])]
        if own and own != self.schemas:
            shown = own
        if not isinstance(given, list):
            return Trajectory(row, self._plain(prompt, observation), shown)
        messages = join_observation(given, observation)
        kwargs = prompt.extras.get("chat_template_kwargs") or {}
        try:
            text = self.template.render(messages, shown, opened=True, kwargs=kwargs)
        except Unrenderable as problem:
            raise DataError(f"Row {prompt.row}: the chat template refuses its prompt ({problem}).") from None
        ids, past = self.template.prompt_ids(text), self.past
        if observation is None and shown in (own or [], self.schemas) and ids != prompt.prompt_ids:
            ids, past = list(prompt.prompt_ids), "sampled"  # it was cut to max_prompt_length: so it stays
        self.check_fits(prompt, ids)
        talk = Conversation(self.template, messages, text, ids, list(shown), kwargs, past)
        return Trajectory({**row, "prompt": messages}, talk, shown)

    def _plain(self, prompt: Example, observation: Any) -> Conversation:
        ids = list(prompt.prompt_ids)
        if observation is not None:
            ids += self.template.ids_of(as_text(observation))
        self.check_fits(prompt, ids)
        return PlainConversation(self.template, [], "", ids)

    def check_fits(self, prompt: Example, ids: Sequence[int]) -> None:
        """Raise `DataError` that names the row if the model has no position for an answer to its prompt."""
        if self.positions is not None and len(ids) >= self.positions:
            raise DataError(
                f"Row {prompt.row}: its prompt, with tools and observation, has {len(ids)} tokens, and the model reads "
                f"{self.positions}. Shorten it, or leave the row out."
            )

    # ---- a turn

    def speak(
        self, generator: Generator, active: list[Trajectory], turn: int, sampling: SamplingParams
    ) -> list[tuple[Trajectory, Spoken]]:
        """One turn of the model for all unfinished trajectories; those that ended it by themselves, with what they
        said."""
        for trajectory in active:
            if self.room(trajectory, sampling.max_new_tokens) <= 0:
                trajectory.end("length")
        active = [t for t in active if not t.done]
        if not active:
            return []
        rooms = [self.room(t, sampling.max_new_tokens) for t in active]
        seed = None if sampling.seed is None else (sampling.seed + turn * TURN_SEEDS) % (2**31 - 1)
        params = replace(
            sampling, max_new_tokens=max(rooms), seed=seed,
            stop_token_ids=sampling.stop_token_ids or self.stop_ids or None,
        )  # fmt: skip
        sampled = generator.generate([t.conversation.context for t in active], 1, params)
        ended: list[tuple[Trajectory, Spoken]] = []
        for index, (trajectory, room) in enumerate(zip(active, rooms, strict=True)):
            ids, logps = sampled.completions[index][0], sampled.sampler_logps[index][0]
            stopped = sampled.finish_reasons[index][0] == "stop" and len(ids) <= room
            closed = stopped and ids[-1] in (params.stop_token_ids or self.stop_ids)
            said = trajectory.conversation.hear(ids[:room], logps[:room], ended=closed)
            trajectory.turn_rewards.append(0.0)
            if stopped:
                ended.append((trajectory, said))
            else:
                trajectory.end("length")
        return ended

    def room(self, trajectory: Trajectory, budget: int) -> int:
        """Tokens that a trajectory may still grow by."""
        left = budget - trajectory.conversation.used
        positions = self.positions
        return left if positions is None else min(left, positions - len(trajectory.conversation.context))

    def reply(self, spoke: Sequence[tuple[Trajectory, Spoken]], budget: int) -> None:
        """Let tools and environments answer; a turn that nothing answers ends its trajectory."""
        asked = []
        for trajectory, said in spoke:
            steps = trajectory.kind is not None and trajectory.kind.takes_turns
            if (self.rounds is not None and trajectory.rounds >= self.rounds) or not (said.calls or steps):
                trajectory.end("stop")
            else:
                asked.append((trajectory, said))
        answers = self.call_tools([(t, s) for t, s in asked if s.calls])
        answers |= self.step([(t, s) for t, s in asked if not s.calls])
        for trajectory, _ in asked:
            messages = answers[id(trajectory)]
            if trajectory.done:
                continue
            trajectory.rounds += 1
            try:
                fits = trajectory.conversation.answer(messages, self.room(trajectory, budget) - 1)
            except Unrenderable as problem:
                trajectory.end("failed", f"the chat template refuses the conversation: {problem}")
                continue
            if not fits:
                trajectory.rolled_back = True
                trajectory.end("length")
                continue
            for told in (turn.message for turn in trajectory.conversation.turns[-len(messages) :]):
                told["content"] = trajectory.listed.get(told.get("tool_call_id", ""), told["content"])

    def call_tools(self, calling: Sequence[tuple[Trajectory, Spoken]]) -> dict[int, list[Message]]:
        """Messages that answer the calls of each turn, by the identity of its trajectory."""
        flat = [(t, call) for t, s in calling for call in s.calls]
        answers: dict[int, Answer] = {}
        functions, methods = [], []
        for index, (trajectory, call) in enumerate(flat):
            problem = problem_of(call, trajectory.names)
            if problem is not None:
                answers[index] = problem
            elif trajectory.kind is not None and call.name in trajectory.kind.tool_names:
                methods.append(index)
            else:
                functions.append(index)
        if methods:
            assert self.environments is not None
            work = [(flat[i][0].slot, flat[i][1].name, (), flat[i][1].arguments) for i in methods]
            for index, result in zip(methods, self.environments.ask(work), strict=True):  # type: ignore[arg-type]
                answers[index] = self._method_answer(flat[index][0], result)
        plain, whose = [flat[i][1] for i in functions], [id(flat[i][0]) for i in functions]
        said = self.tools.answer(plain, self.seconds, whose=whose, at_once=self.at_once)
        answers.update(zip(functions, said, strict=True))
        messages: dict[int, list[Message]] = {id(t): [] for t, _ in calling}
        for index, (trajectory, call) in enumerate(flat):
            answer = answers[index]
            trajectory.calls, trajectory.failures = trajectory.calls + 1, trajectory.failures + (not answer.worked)
            trajectory.turn_rewards[-1] += answer.reward
            made = {"role": "tool", "name": call.name, "tool_call_id": call.id, "content": answer.text}
            messages[id(trajectory)].append(made)
            if answer.listed is not None:
                trajectory.listed[call.id] = answer.listed
        return messages

    def _method_answer(self, trajectory: Trajectory, result: Any) -> Answer:
        """What a method of an environment said; one that hangs takes its environment with it."""
        if isinstance(result, Hung):
            trajectory.end("failed", f"a tool of the environment gave {result}")
            return no_answer(self.environments.seconds if self.environments else None)
        if isinstance(result, BaseException):
            return Answer(error_text(result), False)
        return answer_of(result)

    def step(self, stepping: Sequence[tuple[Trajectory, Spoken]]) -> dict[int, list[Message]]:
        """The observation after each turn, as a message of the user, by the identity of its trajectory."""
        if not stepping:
            return {}
        assert self.environments is not None
        said = self.environments.ask([(t.slot, "step", (s.bare,), {}) for t, s in stepping])  # type: ignore[misc]
        messages: dict[int, list[Message]] = {id(t): [] for t, _ in stepping}
        for (trajectory, _), result in zip(stepping, said, strict=True):
            if isinstance(result, BaseException):
                trajectory.end("failed", f"step(): {error_text(result)}")
                continue
            if not isinstance(result, tuple) or len(result) not in (2, 3):
                raise RolloutError(
                    f"step() of {type(trajectory.environment).__name__} returned {as_text(result)[:100]}; "
                    "it must return (observation or None, done), or (observation or None, reward, done)."
                )
            observation, *reward, done = result
            if reward:
                assert trajectory.kind is not None
                trajectory.kind.rewards_steps = True
                number, problem = read_number(reward[0])
                if number is None:
                    trajectory.end("failed", f"step(), its reward: {problem or 'None is no number'}")
                    continue
                trajectory.turn_rewards[-1] = number
            if done:
                trajectory.end("stop")
            else:
                text = "" if observation is None else as_text(observation)
                messages[id(trajectory)].append({"role": "user", "content": text})
        return messages


def row_of(prompt: Example) -> dict[str, Any]:
    """The row of a prompt, as tools, environments and agents are shown it."""
    return {"prompt": prompt.extras.get("prompt"), **prompt.extras.get("columns", {})}


def join_observation(prompt: list[Message], observation: Any) -> list[Message]:
    """A prompt with what `reset()` returned at the end of its last turn, if that is the user's; else behind it."""
    if observation is None:
        return list(prompt)
    text = as_text(observation)
    last: Mapping[str, Any] = prompt[-1] if prompt else {}
    if last.get("role") != "user":
        return [*prompt, {"role": "user", "content": text}]
    content = last.get("content") or ""
    joined = content + text if isinstance(content, str) else [*content, {"type": "text", "text": text}]
    return [*prompt[:-1], {**last, "content": joined}]
