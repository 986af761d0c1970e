"""From rewards of completions to advantages: groups, leave-one-out, several rewards at once, penalties.

Rewards are in group order: the `num_generations` completions of a prompt are neighbours. A reward that is None or NaN
abstains: it counts in no statistic and its advantage is 0. Statistics are computed in the widest float, and a group
whose rewards are all equal has advantages of exactly 0: in float32 eight copies of 0.1 differ from their mean, and
dividing by a tiny deviation would blow that up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from strop.device import wide
from strop.errors import ConfigError, RewardError
from strop.losses.names import MULTI_OBJECTIVE_AGGREGATIONS, SCALE_REWARDS, check_name

Rewards = Tensor | Sequence[float | None]


def group_advantages(rewards: Rewards, *, num_generations: int, scale: str = "group", eps: float = 1e-4) -> Tensor:
    """Advantage of each completion over its group: (R - mean of the group) / (std + eps).

    Args:
        rewards: (B,) tensor, or a list that may hold None; B a multiple of num_generations.
        num_generations: completions of a prompt, G >= 1.
        scale: what the deviation is divided by: `group` std of the group, `batch` std of all rewards given (give
            those of all ranks), `none` nothing (Dr. GRPO). Standard deviations are unbiased.
        eps: added to the std. TRL has 1e-4, verl 1e-6.

    Returns:
        (B,) in the dtype of `rewards` (the default dtype for a list).

    Raises:
        ConfigError: an unknown scale, or B not a multiple of num_generations.
        RewardError: an infinite reward.

    Source: arXiv 2402.03300; batch 2508.08221; none 2503.20783.
    """
    check_name(scale, SCALE_REWARDS, "scale_rewards")
    flat, dtype = _in_wide(rewards)
    groups = _groups(flat, num_generations)  # (P, G)
    deviation, count = _deviation(groups)
    if scale == "group":
        deviation = deviation / (_std(deviation, count) + eps)
    elif scale == "batch":
        everything, total = _deviation(flat[None])
        deviation = deviation / (_std(everything, total) + eps)
    return deviation.reshape(-1).to(dtype)


def leave_one_out(rewards: Rewards, *, num_generations: int) -> Tensor:
    """Advantage of each completion over the mean of the others of its group: R_i - sum_{j != i} R_j / (G - 1).

    Args:
        rewards: (B,) tensor, or a list that may hold None.
        num_generations: G >= 2.

    Returns:
        (B,) in the dtype of `rewards`; 0 where no other completion of the group has a reward.

    Raises:
        ConfigError: num_generations below 2, or B not a multiple of it.
        RewardError: an infinite reward.

    Source: arXiv 2402.14740.
    """
    if num_generations < 2:
        raise ConfigError(
            f"num_generations is {num_generations}; leave-one-out compares with others: set it to 2 or more."
        )
    flat, dtype = _in_wide(rewards)
    deviation, count = _deviation(_groups(flat, num_generations))
    return (deviation * count / (count - 1).clamp(min=1)).reshape(-1).to(dtype)


def returns_by_turn(totals: Tensor, turn_rewards: Sequence[Sequence[float]]) -> Tensor:
    """What is still to come at each turn of a completion: G_k = R - sum_{j < k} r_j, and 0 after its last turn.

    What came before a turn does not depend on it, so sum_k grad log pi(turn k) (G_k - b_k) has the expectation of
    grad log pi(completion) R, for any baseline b_k that does not depend on the turn: the mean of G_k over the other
    completions of the prompt is one, if those that ended earlier are in it.

    Args:
        totals: (B,) rewards R of whole completions, those of turns included; NaN abstains.
        turn_rewards: B lists with the reward r of each turn.

    Returns:
        (B, K), K the most turns of a completion; NaN where the total is.
    """
    most = max(1, *map(len, turn_rewards))
    to_come = totals.new_zeros(len(turn_rewards), most)
    for index, rewards in enumerate(turn_rewards):
        past = totals.new_tensor([0.0, *rewards[:-1]][: len(rewards)]).cumsum(0)
        to_come[index, : len(rewards)] = totals[index] - past
    return to_come.masked_fill(totals.isnan()[:, None], float("nan"))


def rloo_rewards(
    rewards: Tensor,
    logps: Tensor,
    ref_logps: Tensor,
    *,
    beta: float,
    clip_range: tuple[float, float] | None = None,
) -> Tensor:
    """Rewards of whole completions less their KL: clip(R) - beta (log pi(y) - log mu(y)).

    Args:
        rewards: (S,).
        logps, ref_logps: (S,) log-probs summed over the completion, nats.
        beta: weight of the KL.
        clip_range: (low, high) for R, applied before the KL; None: none.

    Returns:
        (S,) without gradient. The KL is k1: its value may be negative, its mean is not.

    Source: arXiv 2402.14740.
    """
    rewards = rewards if clip_range is None else rewards.clamp(*clip_range)
    return (rewards - beta * (logps - ref_logps)).detach()


def normalize_advantages(advantages: Tensor, *, eps: float = 1e-4) -> Tensor:
    """(A - mean) / (std + eps) over the whole batch of all ranks, (B,); all equal gives exactly 0."""
    deviation, count = _deviation(wide(advantages)[None])
    return (deviation / (_std(deviation, count) + eps))[0].to(advantages.dtype)


def weighted_rewards(rewards_per_func: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of several rewards, abstentions left out; NaN where all abstain.

    Args:
        rewards_per_func: (B, F), NaN where a function abstains.
        weights: (F,).

    Returns:
        (B,).
    """
    total = (rewards_per_func * weights.to(rewards_per_func)).nansum(dim=1)
    return torch.where(rewards_per_func.isnan().all(dim=1), torch.nan, total)


def multi_reward_advantages(
    rewards_per_func: Tensor,
    weights: Tensor,
    *,
    num_generations: int,
    scale: str = "group",
    aggregation: str = "sum_then_normalize",
    eps: float = 1e-4,
) -> Tensor:
    """Advantages from several rewards of each completion.

    `sum_then_normalize`: `group_advantages` of the weighted sum. `normalize_then_sum` (GDPO): each reward is normalised
    within its group first, so that none drowns the others; the weighted sum is divided by its std over the batch.

    Args:
        rewards_per_func: (B, F), NaN where a function abstains; of all ranks for `normalize_then_sum` or batch scale.
        weights: (F,).
        num_generations, scale, eps: see `group_advantages`; normalize_then_sum knows the scale `group` only.
        aggregation: one of `MULTI_OBJECTIVE_AGGREGATIONS`.

    Returns:
        (B,).

    Raises:
        ConfigError: an unknown name, or a scale other than `group` with normalize_then_sum.

    Source: GDPO arXiv 2601.05242.
    """
    check_name(aggregation, MULTI_OBJECTIVE_AGGREGATIONS, "multi_objective_aggregation")
    if aggregation == "sum_then_normalize":
        summed = weighted_rewards(wide(rewards_per_func), weights)
        advantages = group_advantages(summed, num_generations=num_generations, scale=scale, eps=eps)
        return advantages.to(rewards_per_func.dtype)
    if scale != "group":
        raise ConfigError(
            f"scale_rewards is {scale!r}, but multi_objective_aggregation 'normalize_then_sum' divides each reward by "
            "the std of its group; set scale_rewards to 'group', or use 'sum_then_normalize'."
        )
    columns = [
        group_advantages(column, num_generations=num_generations, eps=eps)
        for column in wide(rewards_per_func).unbind(dim=1)
    ]
    summed = torch.stack(columns, dim=1) @ weights.to(columns[0])  # (B,)
    # Every column is centred in its group, so the batch mean is 0 already, and groups without spread stay exactly 0.
    deviation, count = _deviation(summed[None])
    return (summed / (_std(deviation, count)[0] + eps)).to(rewards_per_func.dtype)


def missing_eos_penalty(scores: Tensor, has_eos: Tensor, *, penalty: float | None) -> Tensor:
    """Scores less `penalty` (> 0) where the completion did not end by itself, (S,); None: unchanged."""
    return scores if penalty is None else scores - penalty * (~has_eos.bool()).to(scores.dtype)


def _in_wide(rewards: Rewards) -> tuple[Tensor, torch.dtype]:
    if isinstance(rewards, Tensor):
        dtype = rewards.dtype if rewards.is_floating_point() else torch.get_default_dtype()
        flat = wide(rewards.detach())
    else:
        dtype = torch.get_default_dtype()
        flat = torch.tensor(
            [float("nan") if reward is None else float(reward) for reward in rewards], dtype=torch.float64
        )
    if bool(flat.isinf().any()):
        place = int(flat.isinf().nonzero()[0])
        raise RewardError(f"Reward {place} is {float(flat[place])}; rewards must be finite, or None to abstain.")
    return flat, dtype


def _groups(flat: Tensor, num_generations: int) -> Tensor:
    if num_generations < 1 or flat.numel() % num_generations:
        raise ConfigError(
            f"{flat.numel()} rewards do not make whole groups of num_generations = {num_generations}; "
            "give all completions of every prompt, one prompt after the other."
        )
    return flat.reshape(-1, num_generations)


def _deviation(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of every valid reward from its row's mean, exactly 0 in rows of equal rewards, and counts (P, 1)."""
    valid = ~groups.isnan()
    count = wide(valid.sum(dim=1, keepdim=True))
    mean = groups.nansum(dim=1, keepdim=True) / count.clamp(min=1)
    highest = groups.masked_fill(~valid, -torch.inf).amax(dim=1, keepdim=True)
    lowest = groups.masked_fill(~valid, torch.inf).amin(dim=1, keepdim=True)
    return torch.where(valid & (highest > lowest), groups - mean, 0.0), count


def _std(deviation: Tensor, count: Tensor) -> Tensor:
    """Unbiased standard deviation of each row, (P, 1); 0 below two rewards."""
    return (deviation.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
