"""Prompts -> groups of completions: with which settings and seed, by which engine, in one turn or several."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from strop.agents.program import AgentTurns
from strop.agents.rollout_function import OwnRollout
from strop.agents.turns import Trajectory, Turns
from strop.errors import RolloutError
from strop.online.groups import Group, add, prompt_of
from strop.records import Example, Extreme, Mean, Rollout, Stretch
from strop.rollout import SamplingParams, make_generator
from strop.rollout.generator import help_others, keeping
from strop.rollout.own_process import ProcessGenerator
from strop.rollout.ray_workers import RayGenerator

OwnFunction = Callable[[list[Any], list[list[int]], int, SamplingParams], OwnRollout]
"""(prompts, their ids, n, how to sample) -> what a user's rollout function made of them."""
Drawn = tuple[list[Group], dict[str, Mean | Extreme]]
"""Groups, and what was counted on the way."""
Load = Callable[[], None]
"""What gives an engine the weights that it samples with."""
SEEDS = 2**31 - 1


def sampling_params(args: Any, *, moment: int) -> SamplingParams:
    """Sampling settings of a run's config; the seed follows from run seed, moment and rank."""
    seed = ((args.seed * 1_000_003 + moment) * 4099 + args.process_index) * 2
    return SamplingParams(
        max_new_tokens=args.max_completion_length or 512,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        stop_token_ids=args.stop_token_ids,
        stop_strings=tuple(args.stop or ()),
        seed=seed % SEEDS,
    )


def of_opponent(params: SamplingParams) -> SamplingParams:
    """The same for an opponent of the policy: another draw."""
    assert params.seed is not None
    return replace(params, seed=(params.seed + 1) % SEEDS)


def make_engine(args: Any, model: Any, tokenizer: Any, reference: Any = None) -> Any:
    """The rollout engine that the config names; one that samples while the policy learns has a process, with a copy of
    the `reference` where that is sampled from too."""
    settings = {
        "engine": args.engine,
        "tokenizer": tokenizer,
        "max_slots": args.max_slots,
        "autocast": torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None,
        **args.vllm_settings(),
    }
    if args.engine == "ray":
        settings["engine"] = "auto"
        return RayGenerator(model, workers=args.ray_workers, seconds=args.ray_timeout, **settings)
    if args.overlap and args.engine != "vllm":
        return ProcessGenerator(model, reference=reference, timeout_s=args.ddp_timeout, **settings)
    return make_generator(model=model, **settings)


def teacher_engine(args: Any, teacher: Any, tokenizer: Any) -> Any:
    """An engine for a model that is not trained, in a process of its own where it samples while the policy learns."""
    if args.overlap:
        return ProcessGenerator(teacher, tokenizer, timeout_s=args.ddp_timeout)
    return make_generator("auto", model=teacher, tokenizer=tokenizer)


class RoundEngine:
    """An engine for one round: it counts the prompt tokens that it computed for those it was given, where it says.

    With `ended` it samples for as long as somebody waits: once that is set, who converses through it stops. A
    conversation that goes on beside a run that has ended would otherwise write into the sampling of the next one.
    """

    def __init__(self, engine: Any, ended: threading.Event | None = None) -> None:
        self.engine, self.ended, self.metrics = engine, ended, dict[str, Mean | Extreme]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def check(self) -> None:
        if self.ended is not None and self.ended.is_set():
            raise RolloutError("The run that asked for these completions has ended.")

    def generate(self, *given: Any, **options: Any) -> Rollout:
        """As the engine's. Raises `RolloutError` where nobody waits any more."""
        self.check()
        rollout: Rollout = self.engine.generate(*given, **options)
        if rollout.prefilled is not None:
            add(self.metrics, "prefilled_tokens", float(rollout.prefilled), float(rollout.prompt_tokens))
        return rollout


def sample_groups(
    engine: Any,
    tokenizer: Any,
    prompts: Sequence[Example],
    n: int,
    params: SamplingParams,
    *,
    turns: Turns | AgentTurns | None = None,
    rollout_func: OwnFunction | None = None,
) -> Drawn:
    """`n` completions of each prompt, and what was counted on the way.

    They come from the engine, from the user's `rollout_func`, or from several `turns` with tools, environments or an
    agent. Without prompts there are none; where other ranks have some and share the policy's weights, they are helped.
    """
    drawn = _sample_groups(engine, tokenizer, prompts, n, params, turns, rollout_func) if prompts else ([], {})
    help_others(engine)
    return drawn


def _sample_groups(
    engine: Any,
    tokenizer: Any,
    prompts: Sequence[Example],
    n: int,
    params: SamplingParams,
    turns: Turns | AgentTurns | None,
    rollout_func: OwnFunction | None,
) -> Drawn:
    if rollout_func is not None:
        return own_groups(tokenizer, prompts, n, params, rollout_func), {}
    engine = engine if isinstance(engine, RoundEngine) else RoundEngine(engine)
    if turns is not None:
        with keeping(engine):
            trajectories = turns.run(engine, prompts, n, params)
        groups = [conversation_group(tokenizer, *pair) for pair in zip(prompts, trajectories, strict=True)]
        return groups, turn_metrics([t for group in trajectories for t in group], turns.threads_left) | engine.metrics
    sampled = engine.generate([prompt.prompt_ids for prompt in prompts], n, params)
    lists = zip(prompts, sampled.completions, sampled.sampler_logps, sampled.finish_reasons, strict=True)
    return [Group(prompt, *parts, prompt=prompt_of(tokenizer, prompt)) for prompt, *parts in lists], engine.metrics


def own_groups(
    tokenizer: Any, prompts: Sequence[Example], n: int, params: SamplingParams, function: OwnFunction
) -> list[Group]:
    given = [prompt_of(tokenizer, prompt) for prompt in prompts]
    own = function(given, [prompt.prompt_ids for prompt in prompts], n, params)
    groups = []
    for i, prompt in enumerate(prompts):
        sampled, mask = own.rollout, own.rollout.loss_mask
        group = Group(
            prompt, sampled.completions[i], sampled.sampler_logps[i], sampled.finish_reasons[i],
            None if mask is None else mask[i], given[i],
            replies=None if own.messages is None else own.messages[i],
            turn_rewards=own.extra["turn_rewards"][i] if "turn_rewards" in own.extra else None,
            extra={name: values[i] for name, values in own.extra.items()},
        )  # fmt: skip
        contexts = [prompt.prompt_ids] * n if own.prompt_ids is None else own.prompt_ids[i]
        masks = group.loss_mask or [[1] * len(ids) for ids in group.completions]
        whole = zip(contexts, group.completions, masks, group.sampler_logps, strict=True)
        stretches = [[Stretch(*parts)] for parts in whole] if own.stretches is None else own.stretches[i]
        groups.append(on_contexts(group, stretches))
    return groups


def conversation_group(tokenizer: Any, prompt: Example, trajectories: list[Trajectory]) -> Group:
    talks = [trajectory.conversation for trajectory in trajectories]
    group = Group(
        prompt,
        [[i for stretch in talk.stretches for i in stretch.ids] for talk in talks],
        [[logp for stretch in talk.stretches for logp in stretch.logps] for talk in talks],
        [trajectory.reason for trajectory in trajectories],
        [[on for stretch in talk.stretches for on in stretch.mask] for talk in talks],
        prompt_of(tokenizer, prompt),
        environments=[t.environment for t in trajectories] if trajectories[0].slot is not None else None,
        prompts=[talk.messages for talk in talks] if talks[0].messages else None,
        replies=[[turn.message for turn in talk.turns] for talk in talks],
        turn_tokens=[[turn.tokens for turn in talk.turns] for talk in talks],
        turn_rewards=[t.turn_rewards for t in trajectories] if any(any(t.turn_rewards) for t in trajectories) else None,
        extra={name: [t.extra[name] for t in trajectories] for name in trajectories[0].extra},
    )
    for index, trajectory in enumerate(trajectories):
        if trajectory.reason == "failed":
            for stretch in trajectory.conversation.stretches:
                stretch.mask = [0] * len(stretch.mask)
            group.loss_mask[index] = [0] * len(group.loss_mask[index])  # type: ignore[index]
    return on_contexts(group, [talk.stretches for talk in talks])


def on_contexts(group: Group, stretches: list[list[Stretch]]) -> Group:
    """A group whose completions know where they lie: all on one prompt, or each on contexts of its own."""
    first = stretches[0][0].prompt_ids
    if all(parts[0].prompt_ids == first for parts in stretches):
        group.example = replace(group.example, prompt_ids=list(first))
        apart = [len(parts) > 1 for parts in stretches]
    else:
        apart = [True] * len(stretches)
    if any(apart):
        group.stretches = [parts if alone else None for parts, alone in zip(stretches, apart, strict=True)]
    return group


def turn_metrics(everyone: Sequence[Trajectory], threads_left: int = 0) -> dict[str, Mean | Extreme]:
    """Calls and failures of tools; turns, tokens of tools and environments, forks and failures per completion; threads
    that were left behind, where there are any."""
    count = float(len(everyone))
    metrics: dict[str, Mean | Extreme] = {}
    if any(t.shown for t in everyone):
        calls, failures = sum(t.calls for t in everyone), sum(t.failures for t in everyone)
        metrics["tools/call_frequency"] = Mean(float(calls), count)
        metrics["tools/failure_frequency"] = Mean(float(failures), float(calls))
    spoken = [[turn for turn in t.conversation.turns if turn.message["role"] == "assistant"] for t in everyone]
    turns = sum(map(len, spoken))
    answers = sum(mask.count(0) for t in everyone for mask in (s.mask for s in t.conversation.stretches))
    per_completion = {
        "turns/mean_count": turns,
        "turns/answer_tokens": answers,
        "turns/rolled_back": sum(t.rolled_back for t in everyone),
        "turns/forked": sum(len(t.conversation.stretches) > 1 for t in everyone),
        "turns/rewritten": sum(t.conversation.rewritten for t in everyone),
        "turns/failed": sum(t.reason == "failed" for t in everyone),
    }
    if unseen := sum(t.unseen for t in everyone):
        per_completion["turns/unseen"] = unseen
    metrics |= {name: Mean(float(total), count) for name, total in per_completion.items()}
    if threads_left:
        metrics["turns/left_behind"] = Mean(float(threads_left), 1.0)
    respelled = sum(t.conversation.respelled for t in everyone)
    return metrics | {"turns/respelled": Mean(float(respelled), float(turns))}
