"""Log-probs under the very distribution that was sampled from, where sampling cuts the vocabulary or penalises repeats.

Temperature alone is a factor on the logits, which the head takes in its stride. top-k, top-p, min-p and repetition
penalties need the logits of a whole row, so they are computed chunk by chunk, and again in the backward pass. The set
of tokens kept is a constant; the sampled token always belongs to it, because the sampler kept it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from strop.model import LMHead
from strop.records import Batch, Scores
from strop.rollout import SamplingParams, warp_logps


def changes_distribution(params: SamplingParams) -> bool:
    """Whether more than a temperature lies between the model's softmax and what is sampled from."""
    return params.truncates or params.repetition_penalty != 1


def rescore(scores: Scores, head: LMHead, batch: Batch, params: SamplingParams, *, head_bytes: int) -> Scores:
    """`scores` with `logps` (N,) replaced by those of the sampled distribution; needs `scores.hidden`."""
    hidden = scores.hidden
    with torch.no_grad():
        vocabulary = head.logits(hidden[:1]).shape[-1]
    chunk = max(1, head_bytes // (8 * vocabulary))
    seen = _seen_before(batch) if params.repetition_penalty != 1 else None

    def part(states: torch.Tensor, targets: torch.Tensor, history: Any) -> torch.Tensor:
        values = warp_logps(head.logits(states), params, history, always_keep=targets)
        return values.gather(1, targets[:, None]).squeeze(1)

    pieces = []
    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        history = None if seen is None else seen[rows]
        pieces.append(checkpoint(part, hidden[rows], batch.targets[rows], history, use_reentrant=False))
    scores.logps = torch.cat(pieces) if pieces else hidden.sum(1)
    return scores


def _seen_before(batch: Batch) -> list[list[int]]:
    """The distinct ids that stand before each scored token, prompt and completion so far, in the flat order."""
    histories: list[list[int]] = []
    for example in batch.examples:
        for index, completion in enumerate(example.completions):
            mask = example.mask(index)
            ids = list(dict.fromkeys(example.prompt_ids))
            known = set(ids)
            for position, token in enumerate(completion):
                if mask[position] and (position or example.prompt_ids):
                    histories.append(list(ids))
                if token not in known:
                    known.add(token)
                    ids.append(token)
    return histories
