"""The one place where losses are divided.

The law: the loss of an optimizer step is

    sum over terms k of  weight_k * (sum of all values of term k in the step) / max(count of per_k in the step, 1)

where values are summed over micro-batches and ranks, and counts are those of the whole step. A micro-batch
therefore divides by the step's count, not its own; adding up the results over the step gives the loss above. So the
gradient depends on the set of rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from strop.errors import ConfigError, did_you_mean
from strop.losses.names import AGGREGATIONS, check_name
from strop.losses.numerics import widen
from strop.losses.segments import segment_lengths
from strop.records import Term


def step_loss(terms: Sequence[Term], counts: Mapping[str, float | Tensor], *, world_size: int = 1) -> Tensor:
    """This micro-batch's share of the step's loss: sum_k weight_k values_k.sum() / max(counts[per_k], 1) * world_size.

    Args:
        terms: of one micro-batch; at least one.
        counts: of the whole step and all ranks, by name: "tokens", "completions", "trees", ...
        world_size: ranks whose gradients are averaged afterwards; the factor undoes that average. 1 where they are
            summed, or for a loss to report.

    Returns:
        () with gradient; 0 with zero gradient where values are empty.

    Raises:
        ConfigError: no terms, or a count that was not given.
    """
    if not terms:
        raise ConfigError("step_loss was given no terms; a method must return at least one.")
    shares = [widen(term.values).sum() * (term.weight * world_size) / _count(counts, term.per) for term in terms]
    return torch.stack(shares).sum() if len(shares) > 1 else shares[0]


def _count(counts: Mapping[str, float | Tensor], name: str) -> float | Tensor:
    if name not in counts:
        known = ", ".join(repr(key) for key in counts)
        raise ConfigError(
            f"A loss term is divided by {name!r}, but the step counts {known}.{did_you_mean(name, counts)}"
        )
    count = counts[name]
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def policy_term(
    values: Tensor,
    segment: Tensor,
    num_completions: int,
    *,
    aggregation: str,
    max_completion_length: int | None = None,
    weight: float = 1.0,
) -> Term:
    """Per-token values as a `Term`, added up the way `aggregation` says.

    * `token_mean_global`: sum over all tokens / tokens of the step.
    * `seq_mean_token_mean`: mean over completions of the mean over their tokens.
    * `seq_mean_token_sum`: mean over completions of the sum over their tokens.
    * `constant`: sum over all tokens / (completions of the step * max_completion_length).

    A token's own length is known in its micro-batch, since completions are never split; the other denominators are
    step-wide counts.

    Args:
        values: (N,) losses of the scored tokens.
        segment: (N,) completion of each token.
        num_completions: S of this micro-batch. The step's count "completions" may include completions without a
            scored token: they stay in the denominator.
        aggregation: one of `AGGREGATIONS` (`names.POLICY_AGGREGATION` has that of each loss type).
        max_completion_length: L_max tokens, for `constant`.
        weight: of the term.

    Returns:
        a `Term` per "tokens" or "completions".

    Raises:
        ConfigError: an unknown aggregation, or `constant` without max_completion_length.
    """
    check_name(aggregation, AGGREGATIONS, "aggregation")
    if aggregation == "token_mean_global":
        return Term(values, "tokens", weight)
    if aggregation == "seq_mean_token_sum":
        return Term(values, "completions", weight)
    if aggregation == "constant":
        if not max_completion_length:
            raise ConfigError("aggregation 'constant' divides by max_completion_length; give it (1 or more tokens).")
        return Term(values, "completions", weight / max_completion_length)
    lengths = segment_lengths(segment, num_completions)  # (S,)
    return Term(values / lengths[segment].to(values.dtype), "completions", weight)


def class_terms(values: Tensor, labels: Tensor, *, weight: float = 1.0) -> list[Term]:
    """A mean over desirable rows plus a mean over undesirable ones: terms per "desirable" and "undesirable".

    Args:
        values: (B,) losses.
        labels: (B,) bool or 0/1; true means desirable.
        weight: of both terms.

    A class that is absent from the step contributes 0.
    """
    labels = torch.as_tensor(labels, device=values.device).bool()
    none = torch.zeros_like(values)
    good, bad = torch.where(labels, values, none), torch.where(labels, none, values)
    return [Term(good, "desirable", weight), Term(bad, "undesirable", weight)]
