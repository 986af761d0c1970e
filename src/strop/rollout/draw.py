"""Drawing one token per row from logits, with random numbers that belong to the row and not to the batch.

A row's uniforms come from a counter-based generator keyed by (seed, prompt index, sample index), and a token is found
by inverting the cumulative distribution with one uniform. Gumbel noise would need a random number per vocabulary
entry: 3 million a step at 64 rows of a 49k vocabulary, more time than the head takes. The caller's torch, numpy and
python random states are never touched.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
import torch

from strop.errors import RolloutError
from strop.rollout.sampling import History, SamplingParams, warp_logits

_BLOCK = 128  # tokens summed together: the long cumulative sum then runs over V / 128 entries, in float64


def fresh_seed() -> int:
    """A seed from the operating system's randomness."""
    return secrets.randbits(63)


def row_uniforms(seed: int, prompt: int, sample: int, count: int) -> np.ndarray:
    """`count` uniforms in [0, 1) for one row, (count,) float64; a longer call starts with the same numbers."""
    sequence = np.random.SeedSequence(seed, spawn_key=(prompt, sample))
    return np.random.Generator(np.random.Philox(sequence)).random(count)


def sample(
    logits: torch.Tensor, params: SamplingParams, history: History | None, uniforms: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row from the distribution that `params` describes.

    Args:
        logits: (R, V) of the model.
        history: see `warp_logps`.
        uniforms: (R,) in [0, 1); not used when greedy.

    Returns:
        ids (R,) int64 and their log-probabilities (R,) in nats, float64, under that very distribution.

    Raises:
        RolloutError: a row has a NaN or +inf logit, or none that is finite.
    """
    _check_finite(logits.amax(-1, keepdim=True))  # warping would turn NaN into -inf
    warped = warp_logits(logits, params, history)
    if params.greedy:
        return take_first(warped)
    return draw(warped, torch.tensor(uniforms, dtype=torch.float64).to(warped.device))


def draw(logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row from `softmax(logits)`: the first whose cumulative probability exceeds the row's uniform.

    The exponentials are summed in blocks; the block is found in the cumulative sum of block sums, the token in the
    cumulative sum of its block, both in float64. A token of probability 0 is never drawn.

    Args:
        logits: (R, V) float32 or float64; -inf where a token is excluded.
        uniforms: (R,) float64 in [0, 1).

    Returns:
        ids (R,) int64 and their log-probabilities (R,) in nats, float64.
    """
    rows, vocab = logits.shape
    top = logits.amax(-1, keepdim=True)  # (R, 1)
    weights = (logits - top).exp_()  # (R, V), 1 at the largest
    whole = vocab // _BLOCK * _BLOCK
    sums = weights[:, :whole].view(rows, -1, _BLOCK).sum(-1).double()  # (R, V // block)
    if whole < vocab:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True).double()], -1)  # (R, blocks)
    cumulative = sums.cumsum(-1)  # (R, blocks)
    target = uniforms[:, None] * cumulative[:, -1:]  # (R, 1)
    block = _first_above(cumulative, target, sums)  # (R, 1)
    before = cumulative.gather(-1, block) - sums.gather(-1, block)  # (R, 1) mass before the block
    columns = block * _BLOCK + torch.arange(_BLOCK, device=logits.device)  # (R, block)
    inside = weights.gather(-1, columns.clamp(max=vocab - 1)).double()  # (R, block)
    inside = inside.masked_fill(columns >= vocab, 0.0)
    rest = (target - before).clamp_(min=0.0)  # (R, 1); rounding below 0 would reach entries of weight 0
    ids = block * _BLOCK + _first_above(inside.cumsum(-1), rest, inside)  # (R, 1)
    logps = logits.gather(-1, ids).double() - top.double() - cumulative[:, -1:].log()  # (R, 1)
    return ids[:, 0], logps[:, 0]


def take_first(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The most probable token of every row, the lowest id on a tie, (R,); its log-probability as a point mass is 0."""
    top = logits.amax(-1, keepdim=True)  # (R, 1)
    ids = torch.arange(logits.shape[-1], device=logits.device).expand_as(logits)
    ids = ids.masked_fill(logits != top, logits.shape[-1]).amin(-1)  # (R,)
    return ids, torch.zeros(logits.shape[0], dtype=torch.float64, device=logits.device)


def _first_above(cumulative: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Index of the first entry above `target`, (R, 1); the last of positive weight where rounding leaves none."""
    index = (cumulative <= target).sum(-1, keepdim=True)  # (R, 1)
    last = (torch.arange(weights.shape[-1], device=weights.device) * (weights > 0)).amax(-1, keepdim=True)  # (R, 1)
    return torch.minimum(index, last)


def _check_finite(top: torch.Tensor) -> None:
    """Refuse rows whose largest logit is not a number to sample from."""
    bad = ~top.isfinite().flatten()
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise RolloutError(
            f"The model gave logits that cannot be sampled from: the largest of row {row} is {float(top[row]):g} "
            f"({int(bad.sum())} of {len(bad)} rows). The weights have probably diverged: lower the learning rate, "
            "or use a wider dtype."
        )
