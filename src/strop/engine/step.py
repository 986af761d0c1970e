"""One optimizer step: its rows, their denominators over all ranks, its micro-batches, its whole-step statistics.

The reduction law lives here and in `losses/reduce.py`: everything that a loss divides by, and every statistic that
ties rows to each other, is known for the whole step and all ranks before the first backward. So the gradient
depends on the set of rows only, not on how they are cut into micro-batches or shared out over processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from strop.device import Fetched, sent
from strop.records import Batch, Counts, Example, LossOutput, Mean, Scores, StepContext, Term

if TYPE_CHECKING:
    from strop.engine.step_trainer import StepTrainer


@dataclass
class MicroBatch:
    """A part of a step, computed: what `StepTrainer.micro_batches` gives to training and to evaluation."""

    batch: Batch
    scores: Scores
    step: StepContext
    output: LossOutput | None  # None: a stand-in, whose loss has weight zero


def in_training(model: torch.nn.Module, optimizer: Any) -> None:
    """Model and optimizer as a training step wants them: an optimizer without a schedule moves its weights for it."""
    model.train()
    if callable(getattr(optimizer, "train", None)):
        optimizer.train()


def zero_loss(scores: Scores) -> torch.Tensor:
    """A loss without effect that still reaches every parameter: what a rank without rows computes."""
    parts = (scores.logps, scores.scores, scores.step_logits, scores.values, scores.hidden)
    return torch.stack([part.sum() * 0.0 for part in parts if part is not None]).sum()


def add_router_loss(output: LossOutput | None, scores: Scores, batch: Batch, coefficient: float) -> None:
    """The load-balancing loss of mixture-of-experts models as one more term, weighted by the tokens of each
    micro-batch."""
    if output is not None and coefficient and scores.aux_loss is not None:
        tokens = routed_tokens(batch.examples)
        output.terms.append(Term((scores.aux_loss * tokens).view(1), "routed_tokens", coefficient))
        output.metrics["aux_loss"] = Mean(scores.aux_loss.detach() * tokens, tokens)


def step_counts(trainer: StepTrainer, examples: list[Example]) -> Counts:
    """The counts of a method, `num_tokens` (a prompt that several pieces of a tree share counts once), and
    `routed_tokens` of the trees that are computed with gradient."""
    routed = trainer.gradient_rows(trainer.rows_worth_computing(examples)) if trainer.router_coef else ()
    again = sum(len(e.prompt_ids) for e in examples if e.sampled is not None and e.sampled.continues)
    computed = float(sum(e.num_tokens for e in examples) - again)
    tokens = {"num_tokens": computed, "routed_tokens": routed_tokens(routed)}
    return {**tokens, **trainer.counts(examples)}


def routed_tokens(examples: Sequence[Example]) -> float:
    """Tokens of some trees as in the padded layout, a prompt once for each of its completions: so the weights of
    micro-batches in a router's loss add up to 1 however trees are cut, and whatever the pass with gradient leaves out.
    """
    return float(sum(len(e.prompt_ids) + len(ids) for e in examples for ids in e.completions))


def default_counts(examples: Sequence[Example]) -> Counts:
    """`trees`, `completions` and scored `tokens` of some examples (and `prompt_tokens` where prompts are scored)."""
    counts = {"trees": float(len(examples)), "completions": 0.0, "tokens": 0.0, "prompt_tokens": 0.0}
    for example in examples:
        counts["completions"] += len(example.completions)
        counts["tokens"] += sum(scored_tokens(example, i) for i in range(len(example.completions)))
        counts["prompt_tokens"] += max(0, len(example.prompt_ids) - 1) if example.score_prompt else 0
    return counts


def scored_tokens(example: Example, index: int) -> int:
    """Tokens of a completion that get a log-probability: mask 1, and something before them to be predicted from."""
    mask = example.mask(index)
    return sum(mask) - (mask[0] if not example.prompt_ids else 0)


def tree_field(batch: Batch, name: str, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """What every tree of a batch carries under a name, by its row or since it was sampled, as a tensor (B, ...)."""
    values = [dict(e.extras)[name] if e.sampled is None else getattr(e.sampled, name) for e in batch.examples]
    return sent(values, batch.targets.device, dtype=dtype)


def token_field(batch: Batch, name: str, device: torch.device | str | None = None) -> torch.Tensor:
    """A field of `Sampled` that each token has an entry of, in the flat order of the scored tokens, (N,), in the widest
    float of the device: the batch's, if none is named."""
    parts = []
    for example in batch.examples:
        for index, values in enumerate(getattr(example.sampled, name)):
            parts.append(torch.as_tensor(values, dtype=torch.float64)[_scored(example, index)])
    return sent(torch.cat(parts), batch.targets.device if device is None else device)


def token_lists(batch: Batch, **fields: torch.Tensor) -> None:
    """Write per-token values (N,) into fields of `Sampled`: a list per completion, 0 where a token is not scored."""
    write_token_lists(batch, {name: Fetched(values) for name, values in fields.items()})


def write_token_lists(batch: Batch, fields: Mapping[str, Fetched]) -> None:
    """As `token_lists`, of values that are on their way."""
    for name, coming in fields.items():
        parts = iter(coming.take().split(batch.sizes))
        for example in batch.examples:
            lists = []
            for index in range(len(example.completions)):
                mask, own = _scored(example, index), next(parts)
                lists.append(own.new_zeros(len(mask)).masked_scatter(mask, own).tolist())
            setattr(example.sampled, name, lists)


def _scored(example: Example, index: int) -> torch.Tensor:
    """Which tokens of a completion are scored, (C,) bool."""
    mask = torch.tensor(example.mask(index), dtype=torch.bool)
    if not example.prompt_ids:
        mask[:1] = False
    return mask


def completion_field(batch: Batch, name: str, *, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A field of `Sampled` that each completion has an entry of, as a tensor (S,)."""
    values = [value for example in batch.examples for value in getattr(example.sampled, name)]
    return sent(values, batch.targets.device, dtype=dtype)
