"""Prompts -> groups of completions: with which settings and seed, by which engine, in one turn or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from strop.online.groups import Group, prompt_of
from strop.records import Example, Mean, Rollout
from strop.rollout import SamplingParams, make_generator
from strop.rollout.turns import Trajectory, Turns, check_rollout

RolloutFunction = Callable[[list[list[int]], int, SamplingParams], Any]


def sampling_params(args: Any, *, moment: int, player: int = 0) -> SamplingParams:
    """Sampling settings of a run's config; the seed follows from run seed, moment, rank and player."""
    seed = ((args.seed * 1_000_003 + moment) * 4099 + args.process_index) * 2 + player
    return SamplingParams(
        max_new_tokens=args.max_completion_length or 512,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        stop_token_ids=args.stop_token_ids,
        stop_strings=tuple(args.stop or ()),
        seed=seed % (2**31 - 1),
    )


def make_engine(args: Any, model: Any, tokenizer: Any) -> Any:
    """The rollout engine that the config names."""
    return make_generator(
        args.engine,
        model=model,
        tokenizer=tokenizer,
        max_slots=args.max_slots,
        autocast=torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None,
        **args.vllm_settings(),
    )


def sample_groups(
    engine: Any,
    tokenizer: Any,
    prompts: Sequence[Example],
    n: int,
    params: SamplingParams,
    *,
    turns: Turns | None = None,
    rollout_func: RolloutFunction | None = None,
) -> tuple[list[Group], dict[str, Mean]]:
    """`n` completions of each prompt, and what was counted on the way.

    They come from the engine, from the user's `rollout_func`, or from several `turns` with tools or an environment.
    """
    ids = [prompt.prompt_ids for prompt in prompts]
    trajectories: list[list[Trajectory]] | None = None
    if rollout_func is not None:
        sampled: Rollout = check_rollout(rollout_func(ids, n, params), ids, n)
    elif turns is not None:
        columns = [{"prompt": p.extras.get("prompt"), **p.extras.get("columns", {})} for p in prompts]
        sampled, trajectories = turns.run(engine, ids, columns, n, params)
    else:
        sampled = engine.generate(ids, n, params)
    groups = [
        Group(
            prompt,
            sampled.completions[i],
            sampled.sampler_logps[i],
            sampled.finish_reasons[i],
            sampled.loss_mask[i] if sampled.loss_mask is not None else None,
            prompt_of(tokenizer, prompt),
            environments=[t.environment for t in trajectories[i]] if trajectories else None,
        )
        for i, prompt in enumerate(prompts)
    ]
    calls_tools = turns is not None and turns.tools is not None
    return groups, tool_metrics(trajectories or []) if calls_tools else {}


def tool_metrics(trajectories: Sequence[Sequence[Trajectory]]) -> dict[str, Mean]:
    """Tool calls per completion, and the share of calls that failed."""
    everyone = [trajectory for group in trajectories for trajectory in group]
    calls, failures = sum(t.calls for t in everyone), sum(t.failures for t in everyone)
    return {
        "tools/call_frequency": Mean(float(calls), float(len(everyone))),
        "tools/failure_frequency": Mean(float(failures), float(calls)),
    }
