"""Rollouts of several turns: the model writes, a tool or an environment answers, the model goes on.

Token in, token out: what the model wrote stays the ids that it sampled; only the answer's text is encoded, once, with
the template's words around it. Answer tokens have `loss_mask` 0 and log-prob 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from strop.errors import ConfigError, RolloutError
from strop.records import Rollout
from strop.rollout.generator import Generator
from strop.rollout.sampling import SamplingParams
from strop.rollout.tools import Tools, read_calls

_MARK = "strop-turn-mark"
TURN_SEEDS = 7_919


@dataclass
class Trajectory:
    """One completion in the making."""

    prompt: list[int]
    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)  # 1 where the model wrote the token
    logps: list[float] = field(default_factory=list)
    reason: str = "stop"
    done: bool = False
    environment: Any = None
    calls: int = 0
    failures: int = 0

    def write(self, ids: Sequence[int], logps: Sequence[float] | None = None) -> None:
        """Append tokens of the model (with log-probs) or of an answer (without)."""
        self.ids += ids
        self.mask += [int(logps is not None)] * len(ids)
        self.logps += [0.0] * len(ids) if logps is None else list(logps)


class Turns:
    """Runs trajectories turn by turn, all unfinished ones in one call of the generator.

    Args:
        tokenizer: renders and encodes answers, and decodes turns to find calls.
        tools: functions the model may call; a turn without a call ends the trajectory.
        environment_factory: makes an object with `step(text) -> (observation or None, done)`, and perhaps
            `reset(**row) -> observation or None`; one per completion.
        max_turns: most turns of the model.
        template_kwargs: variables for the chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        tools: Tools | None = None,
        environment_factory: Callable[[], Any] | None = None,
        max_turns: int = 8,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if (tools is None) == (environment_factory is None):
            raise ConfigError(
                "Give either tools or an environment_factory: an environment may offer tools of its own in step()."
            )
        if tools is not None and not tokenizer.chat_template:
            raise ConfigError("Tools need a tokenizer with a chat template, which shows them to the model.")
        self.tokenizer, self.tools, self.environment_factory = tokenizer, tools, environment_factory
        self.max_turns, self.template_kwargs = max_turns, dict(template_kwargs or {})

    def run(
        self,
        generator: Generator,
        prompts: list[list[int]],
        rows: Sequence[Mapping[str, Any]],
        n: int,
        sampling: SamplingParams,
    ) -> tuple[Rollout, list[list[Trajectory]]]:
        """Sample `n` trajectories for each prompt; `rows` go to `reset`. At most `sampling.max_new_tokens` tokens
        each."""
        groups = [[self.begin(prompt, row) for _ in range(n)] for prompt, row in zip(prompts, rows, strict=True)]
        everyone = [trajectory for group in groups for trajectory in group]
        for turn in range(self.max_turns):
            active = [t for t in everyone if not t.done]
            if not active:
                break
            self.write_turn(generator, active, turn, sampling)
        for trajectory in everyone:
            if not trajectory.done:
                trajectory.reason = "length"
        return (
            Rollout(
                prompts,
                [[t.ids for t in group] for group in groups],
                [[t.logps for t in group] for group in groups],
                [[t.reason for t in group] for group in groups],
                [[t.mask for t in group] for group in groups],
            ),
            groups,
        )

    def begin(self, prompt: list[int], row: Mapping[str, Any]) -> Trajectory:
        trajectory = Trajectory(list(prompt))
        if self.environment_factory is not None:
            trajectory.environment = self.environment_factory()
            if hasattr(trajectory.environment, "reset"):
                observation = trajectory.environment.reset(**row)
                if observation is not None:
                    trajectory.write(self.answer_ids("user", str(observation)))
        return trajectory

    def write_turn(self, generator: Generator, active: list[Trajectory], turn: int, sampling: SamplingParams) -> None:
        """One turn of the model for all unfinished trajectories, and the answers to it."""
        room = [sampling.max_new_tokens - len(t.ids) for t in active]
        for trajectory, left in zip(active, room, strict=True):
            if left <= 0:
                trajectory.done, trajectory.reason = True, "length"
        active = [t for t in active if not t.done]
        if not active:
            return
        seed = None if sampling.seed is None else (sampling.seed + turn * TURN_SEEDS) % (2**31 - 1)
        most = max(sampling.max_new_tokens - len(t.ids) for t in active)
        sampled = generator.generate(
            [t.prompt + t.ids for t in active], 1, replace(sampling, max_new_tokens=most, seed=seed)
        )
        for index, trajectory in enumerate(active):
            left = sampling.max_new_tokens - len(trajectory.ids)
            ids, logps = sampled.completions[index][0][:left], sampled.sampler_logps[index][0][:left]
            trajectory.write(ids, logps)
            cut = sampled.finish_reasons[index][0] != "stop" or len(sampled.completions[index][0]) > left
            if cut:
                trajectory.done, trajectory.reason = True, "length"
            else:
                self.reply(trajectory, self.tokenizer.decode(ids, skip_special_tokens=True))

    def reply(self, trajectory: Trajectory, text: str) -> None:
        """Let the tools or the environment answer a finished turn."""
        if trajectory.environment is not None:
            observation, done = trajectory.environment.step(text)
            trajectory.done = bool(done)
            if not trajectory.done and observation is not None:
                trajectory.write(self.answer_ids("user", str(observation)))
            return
        assert self.tools is not None
        calls = read_calls(text)
        trajectory.done = not calls
        for call in calls:
            answer, worked = self.tools.answer(call)
            trajectory.calls, trajectory.failures = trajectory.calls + 1, trajectory.failures + (not worked)
            last = call is calls[-1]
            trajectory.write(self.answer_ids("tool", answer, open_turn=last))

    def answer_ids(self, role: str, text: str, *, open_turn: bool = True) -> list[int]:
        """Ids of an answer with what the template puts around it, up to where the model writes again.

        The words around an answer do not depend on the model's turn before it, so they are read off a conversation
        with a stand-in turn: all that follows the end of that turn.
        """
        if not self.tokenizer.chat_template:
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        before = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        options = {"tokenize": False, "tools": self.tools.schemas if self.tools else None, **self.template_kwargs}
        shown = self.tokenizer.apply_chat_template(before, **options)
        whole = self.tokenizer.apply_chat_template(
            [*before, {"role": role, "content": text}], add_generation_prompt=open_turn, **options
        )
        end = self.tokenizer.eos_token or ""
        start = whole.index(_MARK) + len(_MARK)
        tail = shown[shown.index(_MARK) + len(_MARK) :]
        if end and end in tail:
            start = whole.index(end, start) + len(end)
        return self.tokenizer(whole[start:], add_special_tokens=False)["input_ids"]


def check_rollout(given: Any, prompts: list[list[int]], n: int) -> Rollout:
    """What a user's rollout function returned, as a `Rollout`, or a `RolloutError` that says what is wrong with it.

    A `Rollout`, or a dictionary with `completion_ids` [prompt][sample], `logprobs` alike and perhaps `loss_mask`.
    """
    if isinstance(given, dict):
        missing = {"completion_ids", "logprobs"} - set(given)
        if missing:
            raise RolloutError(f"rollout_func returned {sorted(given)}, without {sorted(missing)}.")
        ids = given["completion_ids"]
        reasons = given.get("finish_reasons") or [["stop"] * len(group) for group in ids]
        given = Rollout(prompts, ids, given["logprobs"], reasons, given.get("loss_mask"))
    if not isinstance(given, Rollout):
        raise RolloutError(f"rollout_func returned a {type(given).__name__}; it must return a Rollout or a dictionary.")
    shape = [len(group) for group in given.completions]
    if shape != [n] * len(prompts):
        raise RolloutError(
            f"rollout_func returned {shape} completions per prompt; {len(prompts)} prompts with {n} each were asked "
            f"for."
        )
    for completions, logps in zip(given.completions, given.sampler_logps, strict=True):
        if [len(c) for c in completions] != [len(values) for values in logps] or not all(completions):
            raise RolloutError(
                "rollout_func returned an empty completion, or log-probs that do not match its tokens one by one."
            )
    return given
