"""Groups of completions -> rewards: which rewards a trainer was given, whether they can be asked, and their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from strop.agents.environments import EnvironmentReward, Environments
from strop.engine.refusals import check_apart
from strop.errors import ConfigError
from strop.online.groups import Group, add, replies
from strop.online.turn_credit import NOTE, rewards_of_turns
from strop.records import Extreme, Mean
from strop.rewards import JudgeReward, RewardSet
from strop.rewards.model_reward import ModelReward

SHARED = ("tools", "chat_template_kwargs")
"""Columns that shape a row's prompt, which rewards may ask for too."""


def reward_source(trainer: str, args: Any, *, needed: bool, environments: Environments | None, **given: Any) -> Any:
    """The one reward source among the names that it goes by, else the config's `reward_model_path`; and what the
    environments say themselves: of those with `get_reward()` beside it, of others in its place. None where a method
    needs none.
    """
    sources = [value for value in given.values() if value is not None]
    if not sources and getattr(args, "reward_model_path", None) is not None:
        sources = [args.reward_model_path]
    if len(sources) > 1:
        raise ConfigError(f"{', '.join(given)} are names for one thing; give one of them (a list is fine).")
    kinds = list(environments.kinds.values()) if environments is not None else []
    own = [EnvironmentReward(environments, kind) for kind in kinds if kind.has_reward or not sources]  # type: ignore[arg-type]
    if own:
        told = sources[0] if sources else []
        sources = [[*(told if isinstance(told, (list, tuple)) else [told]), *own]]
    if needed and not sources:
        raise ConfigError(
            f"{trainer} needs a reward: pass reward_funcs=, a function, a model, an id, a judge, or a list of them."
        )
    return sources[0] if sources else None


def made_in_code(source: Any, tokenizer: Any) -> list[Any]:
    """For each reward the policy's tokenizer, if it is a model without a place that a tokenizer could be loaded from,
    and knows all its tokens; else None."""
    sources = source if isinstance(source, (list, tuple)) else [source]
    configs = [getattr(item, "config", None) if isinstance(item, torch.nn.Module) else None for item in sources]
    return [
        tokenizer
        if config is not None and not config.name_or_path and getattr(config, "vocab_size", 0) >= len(tokenizer)
        else None
        for config in configs
    ]


def make_rewards(args: Any, source: Any, processing_classes: Any, tokenizer: Any) -> RewardSet:
    """The rewards with the weights and the treatment of failures that the config sets; a reward model that was made in
    code, and given without its tokenizer, reads with the policy's."""
    if processing_classes is None:
        processing_classes = made_in_code(source, tokenizer)
    own = sum(isinstance(reward, EnvironmentReward) for reward in source) if isinstance(source, list) else 0
    weights = args.reward_weights
    if weights is not None and own and len(weights) == len(source) - own:
        weights = [*weights, *[1.0] * own]  # what environments say of themselves weighs 1
    return RewardSet(
        source,
        weights=weights,
        processing_classes=processing_classes,
        on_error=args.reward_on_error,
        penalty=args.reward_penalty,
        timeout_seconds=args.reward_timeout,
        isolate=args.reward_isolation,
        run_directory=lambda: str(args.output_dir),
        device=args.device,
    )


def check_rewards(
    trainer: str, rewards: RewardSet, dataset: Any, policy: Any, *, alone: bool, environments: bool, own_rollouts: bool
) -> None:
    """Whether the rewards find what they ask for, before anything is sampled.

    `alone`: each prompt has one completion, and a judge would have nothing to compare it with. `own_rollouts`: a
    rollout function may bring further columns, so that it is known at the first batch only.
    """
    for name, reward in zip(rewards.names, rewards.functions, strict=True):
        if isinstance(reward, ModelReward):
            check_apart(f"The reward {name!r}", reward.model, policy)
    if alone and any(isinstance(reward, JudgeReward) for reward in rewards.functions):
        raise ConfigError(
            f"A judge compares completions of one prompt, and {trainer} samples one; "
            "set num_generations to 2 or more, or give a reward that scores a single completion."
        )
    if hasattr(dataset, "__len__") and len(dataset) and not own_rollouts:
        extras = dataset[0].extras
        shared = [name for name in SHARED if name in extras]
        rewards.check_columns([*extras.get("columns", {}), *shared], has_environments=environments)


def reward_groups(
    groups: Sequence[Group], rewards: RewardSet, tokenizer: Any, *, state: Any = None, missing_eos_penalty: Any = None
) -> dict[str, Mean | Extreme]:
    """Write the rewards of every completion into its group; returns the metrics of the rewards."""
    flat = [(group, i) for group in groups for i in range(len(group.completions))]
    columns: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for group in groups for name in group.columns):
        columns[name] = [group.columns.get(name) for group, _ in flat]
    for name in SHARED:
        if name not in columns and any(name in group.example.extras for group in groups):
            columns[name] = [group.example.extras.get(name) for group, _ in flat]
    for name in dict.fromkeys(name for group in groups for name in group.extra):
        columns[name] = [group.extra[name][i] for group, i in flat]
    table = rewards.score(
        [group.prompt_at(i) for group, i in flat],
        [text for group in groups for text in replies(tokenizer, group)],
        [group.completions[i] for group, i in flat],
        columns,
        trainer_state=state,
        environments=[e for group in groups for e in group.environments or []] or None,
    )
    values = torch.from_numpy(table.values).T.contiguous()  # (completions, rewards)
    totals = torch.from_numpy(table.total())  # (completions,)
    if missing_eos_penalty:
        ended = torch.tensor([group.finish_reasons[i] == "stop" for group, i in flat])
        totals = totals - missing_eos_penalty * (~ended).double()
    failed = torch.tensor([group.finish_reasons[i] == "failed" for group, i in flat])
    values[failed], totals[failed] = float("nan"), float("nan")  # no fault of the model: it is not learned from
    metrics = table.log_metrics()
    start = 0
    for group in groups:
        stop = start + len(group.completions)
        group.reward_names, group.values, group.rewards = table.names, values[start:stop], totals[start:stop]
        group.notes = {name: column[start:stop] for name, column in table.extras.items()}
        start = stop
    add_turns(groups, rewards, metrics)
    return metrics


def add_turns(groups: Sequence[Group], rewards: RewardSet, metrics: dict[str, Mean | Extreme]) -> None:
    """Add what turns were rewarded with to the rewards of their completions. One that has not one finite number for
    each turn is treated as one whose reward failed: it is left out, or its last turn has the penalty.

    Raises:
        RewardError: there is one, and failures are to stop the run.
    """
    problems: list[tuple[str, str]] = []
    for group in groups:
        sums, wrong = rewards_of_turns(group)
        if sums is None:
            continue
        assert group.turn_rewards is not None
        add(metrics, "rewards/turns/mean", float(sums.sum()), float(len(sums) - len(wrong)))
        problems += [(NOTE, text) for text in wrong.values()]
        for index in wrong:
            if rewards.on_error == "penalize":
                group.turn_rewards[index][-1:] = [rewards.penalty]
                sums[index] = rewards.penalty
            else:
                group.values[index], sums[index] = float("nan"), float("nan")
        group.rewards = group.rewards + sums
    rewards.tell(problems)
    if problems:
        count = float(sum(len(group.completions) for group in groups))
        add(metrics, "rewards/turns/errors_fraction", float(len(problems)), count)
