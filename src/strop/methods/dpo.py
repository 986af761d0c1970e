"""DPO: learn from preference pairs against a reference model."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch

from strop.errors import ConfigError
from strop.losses import (
    AOTPartners,
    aot_loss,
    aot_partners,
    check_dpo_options,
    dpo_loss,
    exponential_metrics,
    ld_logps,
    shared_lengths,
    wpo_alignment,
    wpo_weights,
)
from strop.losses.names import DPO_BATCH_LOSS_TYPES, DPO_OPTIONS, DPO_TERM_TYPES, check_name, check_option
from strop.methods.pairs import PairTrainer, chosen_nll, pair_metrics
from strop.metric import LN2, LOSS, Entry
from strop.records import Batch, LossOutput, Scores, StepContext, Term, Want
from strop.settings.config import ReferenceConfig
from strop.settings.prerequisites import Needs
from strop.settings.schema import OneOrMore, Range, config


@config
class DPOConfig(ReferenceConfig):
    """Settings of `DPOTrainer`."""

    aliases = {**ReferenceConfig.aliases, "f_alpha": "f_alpha_divergence_coef"}  # noqa: RUF012
    removed = {  # noqa: RUF012
        **ReferenceConfig.removed,
        "rpo_alpha": "Use loss_type=['sigmoid', 'sft'] with loss_weights=[1.0, rpo_alpha].",
        "tools": "Give the rows a column `tools`.",
        "reference_free": "Use CPOTrainer, whose losses need no reference.",
    }
    needs: ClassVar[dict[str, Needs]] = {
        **ReferenceConfig.needs,
        "ipo_length_norm": Needs({"loss_type": ("ipo",)}),
        "f_alpha_divergence_coef": Needs({"f_divergence_type": ("alpha_divergence",)}),
        "wpo_clamp": Needs({"use_weighting": (True,)}),
        "discopop_tau": Needs({"loss_type": ("discopop",)}),
    }

    beta: Annotated[float, Range(min=0, open_min=True)] = 0.1
    """Strength of the pull to the reference: the loss sees beta times the log-ratios."""
    loss_type: Annotated[list[str], OneOrMore()] = "sigmoid"
    """One loss or a list of them, added up with `loss_weights`: sigmoid, robust, hinge, ipo, sigmoid_norm, exo_pair,
    nca_pair, bco_pair, sppo_hard, aot, aot_unpaired, apo_zero, apo_down, discopop, exponential, sft."""
    loss_weights: list[float] | None = None
    """Weight of each loss of the list. None: 1 each."""
    label_smoothing: Annotated[float, Range(min=0, max=0.5)] = 0.0
    """Share of labels taken to be flipped (cDPO with sigmoid; robust, exo_pair and aot have their own forms)."""
    ipo_length_norm: bool = True
    """ipo of log-ratios divided by length, as its authors advise. False: of sums, as the paper prints it."""
    ld_alpha: Annotated[float, Range(min=0, max=1)] | None = None
    """Weight of tokens beyond the shorter completion's length (LD-DPO, arXiv 2409.06411). None: 1."""
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """Divergence that holds the policy to the reference (arXiv 2309.16240)."""
    f_alpha_divergence_coef: float = 0.5
    """c of the alpha-divergence: 1 is the reverse KL, 0 the forward KL (the paper's alpha is 1 - c)."""
    use_weighting: bool = False
    """Weight each pair by how likely the policy is to write it (WPO, arXiv 2406.11827)."""
    wpo_clamp: bool = True
    """Cap WPO's weights at 1, as its authors' code does."""
    discopop_tau: Annotated[float, Range(min=0, open_min=True)] = 0.05
    """Temperature of DiscoPOP's gate."""

    def __post_init__(self) -> None:
        if isinstance(self.loss_type, str):
            self.loss_type = [self.loss_type]
        super().__post_init__()

    def contradictions(self) -> list[str]:
        problems = super().contradictions()
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            problems.append(
                f"loss_weights has {len(self.loss_weights)} entries for {len(self.loss_type)} losses; give one each."
            )
        for name in self.loss_type:
            try:
                check_name(name, DPO_TERM_TYPES, "loss_type")
                if name != "sft":
                    smooths = name in DPO_OPTIONS["label_smoothing"] or len(self.loss_type) == 1
                    smoothing = self.label_smoothing if smooths else 0.0
                    check_dpo_options(name, label_smoothing=smoothing, f_divergence=self.f_divergence_type)
                    if self.use_weighting:
                        check_option(DPO_OPTIONS, "use_weighting", name)
            except ConfigError as error:
                problems.append(str(error))
        return problems


class DPOTrainer(PairTrainer):
    """Direct preference optimisation: L = mean over pairs of softplus(-beta (u_w - u_l)), u = log pi(y|x) - log
    mu(y|x).

    mu is a copy of the model taken from memory when training starts; with an adapter it is the model with the adapter
    as it was at the start. `ref_model` may be another model, an id or a path. Rows: `prompt`, `chosen`, `rejected`.
    At step 0 the loss is ln 2. Fifteen loss types, mixtures, f-divergences, LD-DPO, WPO: see `DPOConfig`.
    Source: arXiv 2305.18290 Eq. 7.
    """

    config_class = DPOConfig
    glossary: ClassVar[tuple[Entry, ...]] = (
        Entry(
            "loss", LOSS, "Preference loss: how badly the chosen completion is told from the rejected one.", "nats",
            "pair", healthy=f"the sigmoid loss alone starts at ln 2 = {LN2:.3f}, then falls",
            advice=(
                "Not ln 2 at step 0 with the sigmoid loss: the reference is not the starting model. Near 0 within an "
                "epoch: pairs are too easy or the learning rate is too high."
            ),
        ),
    )  # fmt: skip
    uses_reference = True

    def __init__(self, model: Any = None, ref_model: Any = None, args: DPOConfig | None = None, **kwargs: Any) -> None:
        super().__init__(model, args, ref_model=ref_model, **kwargs)

    @property
    def coupled(self) -> bool:  # type: ignore[override]
        """AOT sorts over all pairs of a step."""
        return any(name in DPO_BATCH_LOSS_TYPES for name in self.args.loss_type)

    def want(self, log: bool) -> Want:
        return super().want(log) | Want.LOG_SQUARE if self.args.use_weighting else super().want(log)

    def sums(self, scores: Scores, lengths: torch.Tensor) -> torch.Tensor:
        """Summed log-probs of chosen and rejected, (B, 2); the excess length damped by `ld_alpha`."""
        if self.args.ld_alpha is None:
            return scores.sum().view(-1, 2)
        shared = shared_lengths(lengths.flatten())
        summed = ld_logps(scores.logps, scores.segment, scores.num_completions, shared, alpha=self.args.ld_alpha)
        return summed.view(-1, 2)

    def statistics(self, scores: Scores, batch: Batch, step: StepContext) -> dict[str, torch.Tensor]:
        lengths = scores.lengths.view(-1, 2)
        return {"policy": self.sums(scores, lengths), "ref": self.sums(step.ref, lengths)}

    def reduce_statistics(self, values: dict[str, torch.Tensor], training: bool) -> dict[str, Any]:
        """What each pair of the step is compared with, by loss (AOT)."""
        columns = (*values["policy"].unbind(1), *values["ref"].unbind(1))
        return {
            name: aot_partners(*columns, loss_type=name) for name in self.args.loss_type if name in DPO_BATCH_LOSS_TYPES
        }

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        lengths = scores.lengths.view(-1, 2)  # (B, 2)
        policy, ref = self.sums(scores, lengths), self.sums(step.ref, lengths)  # (B, 2) each
        weights = self.pair_weights(scores)
        metrics = pair_metrics(scores, self.args.beta * (policy - ref).detach(), policy.detach())
        terms, names = [], self.args.loss_type
        for name, weight in zip(names, self.args.loss_weights or [1.0] * len(names), strict=True):
            if name == "sft":
                terms.append(Term(chosen_nll(scores)[0], "chosen_tokens", weight))
                continue
            values = self.pair_loss(name, policy, ref, lengths, step)
            terms.append(Term(values if weights is None else values * weights, "trees", weight))
            if name == "exponential":
                metrics |= exponential_metrics(values)
        return LossOutput(terms, metrics)

    def pair_loss(
        self, name: str, policy: torch.Tensor, ref: torch.Tensor, lengths: torch.Tensor, step: StepContext
    ) -> torch.Tensor:
        """One loss of the family for pairs (B, 2), (B,)."""
        smoothing = self.args.label_smoothing if name in DPO_OPTIONS["label_smoothing"] else 0.0
        if name in DPO_BATCH_LOSS_TYPES:
            partners = AOTPartners(*(values[step.rows] for values in step.statistics[name]))
            options = {"beta": self.args.beta, "loss_type": name, "label_smoothing": smoothing}
            return aot_loss(policy[:, 0], policy[:, 1], ref[:, 0], ref[:, 1], partners, **options)
        normed = name == "sigmoid_norm" or (name == "ipo" and self.args.ipo_length_norm)
        return dpo_loss(
            *policy.unbind(1),
            *ref.unbind(1),
            beta=self.args.beta,
            loss_type=name,
            label_smoothing=smoothing,
            lengths_chosen=lengths[:, 0] if normed else None,
            lengths_rejected=lengths[:, 1] if normed else None,
            f_divergence=self.args.f_divergence_type,
            f_alpha=self.args.f_alpha_divergence_coef,
            discopop_tau=self.args.discopop_tau,
        )

    def pair_weights(self, scores: Scores) -> torch.Tensor | None:
        """WPO's weights (B,), or None."""
        if not self.args.use_weighting:
            return None
        alignment = wpo_alignment(scores.logps, scores.log_square, scores.segment, scores.num_completions).view(-1, 2)
        return wpo_weights(alignment[:, 0], alignment[:, 1], clamp=self.args.wpo_clamp)
