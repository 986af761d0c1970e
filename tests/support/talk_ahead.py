"""Conversations that are held while the policy learns: an engine that says whose weights it speaks with, who talks to
it, and a trainer for them."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import torch
from transformers import TrainerCallback

from strop.agents import AgentProgram
from strop.agents.tools import Rewarded
from strop.testing.cases import make_trainer
from strop.testing.tiny import tiny_model
from tests.support.conversations import Script
from tests.support.templates import KINDS, tokenizer_with

ROWS = [{"prompt": [{"role": "user", "content": f"go {i}"}], "start": i} for i in range(5)]


class Speaks(Script):
    """Each turn says which weights it is of, as `v0`; the first calls a tool, where it is shown one."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer.processing_class, self.turn)
        self.trainer, self.loaded = trainer, -1
        self.asked: list[int] = []  # the versions of all calls

    def stage(self, model: Any) -> Any:
        version = self.trainer.state.global_step
        return lambda: setattr(self, "loaded", version)

    def generate(self, prompts: list[list[int]], n: int, sampling: Any, *, mixture: Any = None) -> Any:
        self.asked.append(self.loaded)
        self.first = (sampling.prompt_numbers or (0,))[0]
        return super().generate([prompt for prompt in prompts for _ in range(n)], 1, sampling)

    def turn(self, text: str, place: int) -> str:
        if "look_up" in text and "<r>" not in text:
            return f'<tool_call>\n{{"name": "look_up", "arguments": {{"word": "v{self.loaded}"}}}}\n</tool_call>'
        return f"v{self.loaded} " + "abcdef"[(len(text) * 7 + (place + self.first) * 3) % 5 :]


class Still:
    """An engine of this process beside which weights do not move: it only has what sampling ahead asks for.

    Turns end after a few tokens, since a model that knows nothing seldom ends one.
    """

    def __init__(self, engine: Any, end: int) -> None:
        self.engine, self.end = engine, end

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def stage(self, model: Any) -> Any:
        return lambda: None

    def generate(self, prompts: list[list[int]], n: int, sampling: Any, **options: Any) -> Any:
        short = replace(sampling, max_new_tokens=min(5, sampling.max_new_tokens))
        rollout = self.engine.generate(prompts, n, short, **options)
        for index, reasons in enumerate(rollout.finish_reasons):
            for place, reason in enumerate(reasons):
                if reason == "length" and sampling.max_new_tokens > 5:
                    rollout.completions[index][place].append(self.end)
                    rollout.sampler_logps[index][place].append(-5.5)
                    reasons[place] = "stop"
        return rollout


def look_up(word: str) -> Any:
    """Look up a word.

    Args:
        word: To be looked up.
    """
    return Rewarded(f"{word} is a word", 0.25 * len(word))


class Game:
    """Answers twice, rewards each turn by its length, and remembers all that was said in it."""

    reward = 0.0  # of a game without a turn

    def reset(self, start: int = 0, **row: Any) -> str:
        self.said: list[str] = []
        return f" start {start}"

    def step(self, text: str) -> tuple[str, float, bool]:
        self.said.append(text)
        return f"turn {len(self.said)}", float(len(text)), len(self.said) == 2


def talker(endpoint: Any, row: dict[str, Any]) -> dict[str, Any]:
    """An agent that asks twice, and writes its first question anew in between, so that its contexts are two."""
    head, said = {"Authorization": f"Bearer {endpoint.api_key}"}, []
    with httpx2.Client(trust_env=False, timeout=60, headers=head) as client:
        for question in ("go", "go on"):
            asked = {"messages": [*row["prompt"], *said, {"role": "user", "content": question}]}
            answer = client.post(f"{endpoint.base_url}/chat/completions", json=asked)
            said = [{**answer.json()["choices"][0]["message"], "content": "I said something"}]
    return {"asked": 2, "turn_rewards": [1.0, float(row["start"])]}


def own_function(prompt_ids: list[list[int]], n: int, sampling: Any, trainer: Any) -> dict[str, Any]:
    """A rollout function that samples a turn, is answered, and samples another; the answer is masked."""
    found: dict[str, Any] = {"completion_ids": [], "logprobs": [], "env_mask": [], "word": []}
    numbers = itertools.count()

    def speak(context: list[int]) -> tuple[list[int], list[float]]:
        own = replace(sampling, prompt_numbers=(next(numbers),))
        said = trainer.generator.generate([context], 1, own)
        return said.completions[0][0], said.sampler_logps[0][0]

    for prompt in prompt_ids:
        rows: list[tuple[Any, ...]] = []
        for _ in range(n):
            ids, logps = speak(prompt)
            more, said = speak([*prompt, *ids, 7, 8])
            mask = [1] * len(ids) + [0, 0] + [1] * len(more)
            rows.append(([*ids, 7, 8, *more], [*logps, 0.0, 0.0, *said], mask, trainer.state.global_step))
        for name, values in zip(found, zip(*rows, strict=True), strict=True):
            found[name].append(list(values))
    return found


def rewarded(completions: list[Any], **columns: Any) -> list[float]:
    return [float(sum(map(ord, str(completion))) % 101) for completion in completions]


ACTORS: dict[str, dict[str, Any]] = {
    "tools": {"tools": [look_up], "reward_funcs": rewarded},
    "environment": {"environment_factory": Game, "reward_funcs": rewarded},
    "agent": {"rollout_func": AgentProgram(talker, gather_seconds=10.0), "reward_funcs": rewarded},
    "function": {"rollout_func": own_function, "reward_funcs": rewarded},
}


class Noted(TrainerCallback):
    """Keeps trees and gradients of every step."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.steps, self.gradients = trainer, [], []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.gradients.append([p.grad.clone() for p in self.trainer.model.parameters()])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(copy.deepcopy(self.trainer.step_work.examples))


def talking(folder: Path, actor: str, kind: str = "gathered", engine: Any = Speaks, **options: Any) -> Any:
    """GRPO, or another method, on two prompts a step, whose completions are conversations with `actor`."""
    tokenizer, _ = tokenizer_with(KINDS[kind])
    given = {**ACTORS[actor], **options.pop("trainer", {})}
    verb, rows = options.pop("verb", "grpo"), options.pop("rows", ROWS)
    settings = {
        "max_completion_length": 160, "num_generations": 2, "per_device_train_batch_size": 4, "max_length": None,
        "max_steps": 4, "max_staleness": 1, "logging_steps": 1, "beta": 0.0,
    }  # fmt: skip
    trainer = make_trainer(
        verb, folder, rows=rows, model=tiny_model("llama", dtype=torch.float64, vocab_size=len(tokenizer)),
        tokenizer=tokenizer, trainer=given, **settings | options,
    )  # fmt: skip
    trainer._generator = engine(trainer)
    trainer._sampler_compared = True
    trainer.noted = Noted(trainer)
    trainer.add_callback(trainer.noted)
    return trainer


def samples(folder: Path) -> list[dict[str, Any]]:
    """What the run wrote into samples.jsonl."""
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
