"""Drawing one token per row from logits, with random numbers that belong to the row and not to the batch.

A row's uniforms come from a counter-based generator keyed by (seed, prompt index, sample index), and a token is found
by inverting the cumulative distribution with one uniform. Gumbel noise would need a random number per vocabulary
entry: 3 million a step at 64 rows of a 49k vocabulary, more time than the head takes. The caller's torch, numpy and
python random states are never touched.

A card stands still wherever the host waits for it: a number that is asked of a tensor, a list, a mask as an index, a
copy of memory that is not pinned. A step of a rollout waits once, for its tokens, as only the host knows whether a row
ends. All before that is queued without a question, and one copy tells the host what was drawn, with what log-probs,
whether the logits were finite, and whether the nucleus was wider than was looked at; then the step is drawn again.
Cumulative sums are taken in float64, on the host where a device (Apple's) has none: the same logits give the same
token everywhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from strop.device import running_sum, sent, wide_dtype
from strop.errors import RolloutError
from strop.rollout.sampling import History, SamplingParams, penalised, warp_logits

_BLOCK = 128  # tokens summed together: the long cumulative sum then runs over V / 128 entries, in float64


class Drawn(NamedTuple):
    """One token per row, for the device and for the host."""

    ids: torch.Tensor  # (R,) int64, on the device of the logits
    tokens: torch.Tensor  # (R,) int64, the same on the host
    logps: torch.Tensor  # (R,) nats, float64, on the host


def fresh_seed() -> int:
    """A seed from the operating system's randomness."""
    return secrets.randbits(63)


def row_uniforms(seed: int, prompt: int, sample: int, count: int) -> np.ndarray:
    """`count` uniforms in [0, 1) for one row, (count,) float64; a longer call starts with the same numbers."""
    sequence = np.random.SeedSequence(seed, spawn_key=(prompt, sample))
    return np.random.Generator(np.random.Philox(sequence)).random(count)


def sample(logits: torch.Tensor, params: SamplingParams, history: History | None, uniforms: Sequence[float]) -> Drawn:
    """One token per row from the distribution that `params` describes; the host waits for the device once.

    Args:
        logits: (R, V) of the model.
        history: see `warp_logps`.
        uniforms: (R,) in [0, 1); not used when greedy.

    Returns:
        Tokens and their log-probabilities under that very distribution.

    Raises:
        RolloutError: a row has a NaN or +inf logit, or none that is finite.
    """
    top = logits.amax(-1)  # (R,); warping would turn NaN into -inf
    unsure: list[torch.Tensor] | None = None if logits.device.type == "cpu" else []
    ids, logps = _once(logits, params, history, uniforms, unsure)
    told = _on_host([ids, logps, top, *(unsure or ())])  # (3 or 4, R)
    _check_finite(told[2])
    if bool(told[3:].any()):
        ids, logps = _once(logits, params, history, uniforms, None)
        told = _on_host([ids, logps])
    return Drawn(ids.to(logits.device), told[0].long(), told[1])


def _once(
    logits: torch.Tensor,
    params: SamplingParams,
    history: History | None,
    uniforms: Sequence[float],
    unsure: list[torch.Tensor] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    if params.greedy:
        return take_first(penalised(logits, params, history))
    where = logits.device if wide_dtype(logits.device) == torch.float64 else torch.device("cpu")
    return draw(warp_logits(logits, params, history, unsure=unsure), sent(uniforms, where, dtype=torch.float64))


def _on_host(lines: Sequence[torch.Tensor]) -> torch.Tensor:
    """Lines of (R,) as one float64 tensor of the host, in one transfer where the device has float64; ids are exact."""
    if all(wide_dtype(line.device) == torch.float64 for line in lines):
        return torch.stack([line.double() for line in lines]).cpu()
    return torch.stack([_wide(line) for line in lines])


def _wide(values: torch.Tensor) -> torch.Tensor:
    """In float64, on the host where the device has none."""
    return (values if wide_dtype(values.device) == torch.float64 else values.cpu()).double()


def draw(logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row from `softmax(logits)`: the first whose cumulative probability exceeds the row's uniform.

    The exponentials are summed in blocks; the block is found in the cumulative sum of block sums, the token in the
    cumulative sum of its block, both in float64. A token of probability 0 is never drawn.

    Args:
        logits: (R, V) float32 or float64; -inf where a token is excluded.
        uniforms: (R,) float64 in [0, 1); on the host where the device has no float64.

    Returns:
        ids (R,) int64 and their log-probabilities (R,) in nats, float64, where the uniforms are.
    """
    rows, vocab = logits.shape
    top = logits.amax(-1, keepdim=True)  # (R, 1)
    weights = (logits - top).exp_()  # (R, V), 1 at the largest
    whole = vocab // _BLOCK * _BLOCK
    blocks = weights[:, :whole].view(rows, -1, _BLOCK).sum(-1)  # (R, V // block)
    if whole < vocab:
        blocks = torch.cat([blocks, weights[:, whole:].sum(-1, keepdim=True)], -1)  # (R, blocks)
    sums = _wide(blocks)
    cumulative = running_sum(sums)  # (R, blocks)
    target = uniforms[:, None] * cumulative[:, -1:]  # (R, 1)
    block = _first_above(cumulative, target, sums)  # (R, 1)
    before = cumulative.gather(-1, block) - sums.gather(-1, block)  # (R, 1) mass before the block
    columns = block * _BLOCK + torch.arange(_BLOCK, device=block.device)  # (R, block)
    inside = _wide(weights.gather(-1, columns.clamp(max=vocab - 1).to(weights.device)))  # (R, block)
    inside = inside.masked_fill(columns >= vocab, 0.0)
    rest = (target - before).clamp_(min=0.0)  # (R, 1); rounding below 0 would reach entries of weight 0
    ids = block * _BLOCK + _first_above(running_sum(inside), rest, inside)  # (R, 1)
    logps = _wide(logits.gather(-1, ids.to(logits.device))) - _wide(top) - cumulative[:, -1:].log()  # (R, 1)
    return ids[:, 0], logps[:, 0]


def take_first(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The most probable token of every row, the lowest id on a tie, (R,); its log-probability as a point mass is 0."""
    top = logits.amax(-1, keepdim=True)  # (R, 1)
    ids = torch.arange(logits.shape[-1], device=logits.device).expand_as(logits)
    ids = ids.masked_fill(logits != top, logits.shape[-1]).amin(-1)  # (R,)
    return ids, torch.zeros(logits.shape[0], dtype=wide_dtype(logits.device), device=logits.device)


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
