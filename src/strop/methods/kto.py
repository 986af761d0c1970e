"""KTO: learn from single completions labelled desirable or undesirable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch

from strop.data import mismatched
from strop.device import sent
from strop.engine.parts import Facts
from strop.engine.rows import RowPreparation, tokenized
from strop.engine.step import tree_field
from strop.losses import class_terms, kto_loss, kto_reference_point
from strop.losses.names import KTO_CLASS_MEAN_TYPES, KTO_KL_TYPES
from strop.methods.unpaired import UnpairedTrainer, advise_weights, label_metrics
from strop.metric import DRIFT, LOSS, Entry
from strop.online.pieces import part_of
from strop.records import Batch, Counts, Example, LossOutput, Scores, StepContext, StepWork, Term
from strop.settings.config import ReferenceConfig
from strop.settings.schema import Range, config


@config
class KTOConfig(ReferenceConfig):
    """Settings of `KTOTrainer`."""

    kl_is_distance: ClassVar[bool] = False  # it is the mean over mismatched completions

    beta: Annotated[float, Range(min=0, open_min=True)] = 0.1
    """Strength of the pull to the reference (kto_exp divides by it: larger is softer)."""
    desirable_weight: Annotated[float, Range(min=0)] = 1.0
    """Weight of desirable rows. Keep weight x count of the classes within a ratio of 1 to 3/2."""
    undesirable_weight: Annotated[float, Range(min=0)] = 1.0
    """Weight of undesirable rows."""
    loss_type: Literal["kto", "apo_zero_unpaired", "kto_exp", "kto_literal"] = "kto"
    """kto: the paper. apo_zero_unpaired: no reference point. kto_exp: saturating exponential value function.
    kto_literal: the formula of some guides as printed, which unlearns; for tests only."""


class KTOTrainer(UnpairedTrainer):
    """Kahneman-Tversky optimisation: L = mean over rows of w (1 - sigma(s beta (u - z))).

    u is the row's log-ratio to the reference, s = +1 for desirable rows and -1 for others, w the weight of the class,
    z = max(0, mean log-ratio of mismatched completions), over the whole optimizer step and all ranks, no gradient.
    Rows: `prompt`, `completion`, `label`; preference pairs are split into two rows each. Each row is given the
    completion of another row once, when the data are prepared, so any batch size from 1 and any shuffling is right.
    Source: arXiv 2402.01306.
    """

    config_class = KTOConfig
    glossary: ClassVar[tuple[Entry, ...]] = (
        Entry(
            "loss", LOSS, "KTO loss: weighted distance of each completion from the reference point.", "none",
            "completion", healthy="starts at half the weight (0.5) and falls slowly",
        ),
        Entry(
            "kl", DRIFT,
            "KL between policy and reference, estimated from mismatched completions: KTO's reference point.", "nats",
            "completion", healthy="0 at step 0; a few nats later are normal",
        ),
    )  # fmt: skip
    uses_reference = True
    tree_completions = 2  # its own, and another row's

    def __init__(self, model: Any = None, ref_model: Any = None, args: KTOConfig | None = None, **kwargs: Any) -> None:
        super().__init__(model, args, ref_model=ref_model, **kwargs)

    @property
    def coupled(self) -> bool:  # type: ignore[override]
        return self.args.loss_type in KTO_KL_TYPES

    @classmethod
    def facts(cls, args: Any, given: Mapping[str, Any]) -> Facts:
        return replace(super().facts(args, given), convert=labelled)

    def statistics_rows(self, examples: list[Example]) -> list[Example]:
        others = [part_of(e, slice(1, None)) for e in examples if len(e.completions) > 1]
        return [replace(other, extras={"mismatched_only": True}) for other in others]

    def counts(self, examples: Sequence[Example]) -> Counts:
        others = sum(len(ids) for example in examples for ids in example.completions[1:])
        prompts = sum(len(example.prompt_ids) for example in examples)
        return {**super().counts(examples), "mismatched_tokens": float(others), "prompt_tokens": float(prompts)}

    def statistics_apart(self, work: StepWork) -> bool:
        """Policy and reference compute the prompts once more, and no backward pass, twice a forward, is spent on
        mismatched completions. Where a router is balanced, it is over the rows' own tokens."""
        return self.router_coef > 0 or work.counts["mismatched_tokens"] > work.counts["prompt_tokens"]

    def gradient_rows(self, examples: list[Example]) -> list[Example]:
        return [part_of(e, slice(0, 1)) for e in examples]

    def statistics(self, scores: Scores, batch: Batch, step: StepContext) -> dict[str, torch.Tensor]:
        ratios = (scores.sum() - step.ref.sum()).detach()
        return {"mismatched": ratios.index_select(0, numbers_of(batch, own=False))}

    def reduce_statistics(self, values: dict[str, torch.Tensor], training: bool) -> dict[str, Any]:
        ratios = values.get("mismatched")
        return {"kl": 0.0 if ratios is None else kto_reference_point(ratios.sum(), ratios.numel())}

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        first = numbers_of(batch, own=True)  # (B,)
        policy, ref = (each.sum().index_select(0, first) for each in (scores, step.ref))  # (B,)
        labels = tree_field(batch, "label", dtype=torch.bool)  # (B,)
        own = torch.zeros_like(batch.tree_of, dtype=torch.bool).index_fill(0, first, True)  # (S,)
        kl = step.statistics.get("kl")
        values = kto_loss(
            policy - ref,
            labels,
            kl,
            beta=self.args.beta,
            desirable_weight=self.args.desirable_weight,
            undesirable_weight=self.args.undesirable_weight,
            loss_type=self.args.loss_type,
        )
        by_class = self.args.loss_type in KTO_CLASS_MEAN_TYPES
        terms = class_terms(values, labels) if by_class else [Term(values, "trees")]
        rewards = self.args.beta * (policy - ref).detach()
        return LossOutput(terms, label_metrics(scores, own, labels, rewards, policy.detach(), kl=kl))


def labelled(preparation: RowPreparation, dataset: Any, name: str) -> Any:
    """Rows -> examples, each with another row's completion where the loss has a reference point."""
    args: Any = preparation.args
    prepared = tokenized(preparation, dataset, name)
    if name == "train":
        advise_weights(args, prepared, args.desirable_weight, args.undesirable_weight)
    return mismatched(prepared) if args.loss_type in KTO_KL_TYPES else prepared


def numbers_of(batch: Batch, *, own: bool) -> torch.Tensor:
    """The numbers, 0..S-1, of the completions that are a row's own, or of the mismatched ones that rows were given for
    the KL term."""
    flags = []
    for example in batch.examples:
        first = not example.extras.get("mismatched_only", False)
        flags += [first, *[False] * (len(example.completions) - 1)]
    numbers = [number for number, flag in enumerate(flags) if flag is own]
    return sent(torch.tensor(numbers, dtype=torch.long), batch.targets.device)
