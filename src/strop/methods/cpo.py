"""CPO, SimPO and AlphaPO: preference pairs without a reference model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch

from strop.engine.parts import Facts
from strop.errors import ConfigError
from strop.losses import check_cpo_options, contrastive_hidden_loss, cpo_loss, cpo_score, mean_of, pool_hidden
from strop.losses.names import CPO_AVERAGED_TYPES, CPO_TERM_TYPES, check_name
from strop.methods.pairs import PairTrainer, chosen_nll, pair_metrics
from strop.metric import REWARD, Entry
from strop.records import Batch, Example, LossOutput, Scores, StepContext, Term, Want
from strop.settings.config import TrainerConfig
from strop.settings.prerequisites import Needs
from strop.settings.schema import Range, config


@config
class CPOConfig(TrainerConfig):
    """Settings of `CPOTrainer`."""

    needs: ClassVar[dict[str, Needs]] = {
        **TrainerConfig.needs,
        "simpo_gamma": Needs({"loss_type": ("simpo", "alphapo")}),
        "contrastive_temperature": Needs({"loss_type": ("contrastive_hidden",)}),
        "contrastive_anchor": Needs({"loss_type": ("contrastive_hidden",)}),
    }

    beta: Annotated[float, Range(min=0, open_min=True)] = 0.1
    """Scale of the difference of log-probs."""
    loss_type: str = "sigmoid"
    """sigmoid, hinge, ipo, simpo, alphapo, or contrastive_hidden (a term on hidden states, see the trainer)."""
    label_smoothing: Annotated[float, Range(min=0, max=0.5)] = 0.0
    """Share of labels taken to be flipped."""
    cpo_alpha: Annotated[float, Range(min=0)] | None = None
    """Weight of the likelihood of the chosen completion. None: 1, but 0 for simpo and alphapo, which have none."""
    simpo_gamma: float = 0.5
    """Margin of simpo and alphapo, an absolute number. SimPO's authors advise about half of beta, with beta of 2
    or more."""
    alpha: float = 0.0
    """AlphaPO's reward shape; 0 is SimPO. loss_type alphapo with 0 takes the paper's 0.25."""
    contrastive_temperature: Annotated[float, Range(min=0, open_min=True)] = 1.0
    """Temperature of contrastive_hidden. 1 is the literal formula, 0.1 is usual."""
    contrastive_anchor: Literal["prompt", "ref_chosen"] = "prompt"
    """Anchor of contrastive_hidden: the reference's states of the prompt, or of the chosen completion."""

    def __post_init__(self) -> None:
        if self.loss_type == "alphapo" and self.alpha == 0.0:
            self.alpha = 0.25
        if self.cpo_alpha is None:
            self.cpo_alpha = 0.0 if self.loss_type in ("simpo", "alphapo") else 1.0
        super().__post_init__()

    def contradictions(self) -> list[str]:
        problems = super().contradictions()
        try:
            check_name(self.loss_type, CPO_TERM_TYPES, "loss_type")
            if self.loss_type != "contrastive_hidden":
                check_cpo_options(self.loss_type, label_smoothing=self.label_smoothing, alpha=self.alpha)
            elif not self.cpo_alpha:
                problems.append(
                    "loss_type='contrastive_hidden' gives the output head no gradient; set cpo_alpha above 0."
                )
        except ConfigError as error:
            problems.append(str(error))
        return problems


class CPOTrainer(PairTrainer):
    """Contrastive preference optimisation: L = softplus(-beta (log pi(y_w) - log pi(y_l))) + cpo_alpha NLL(y_w).

    `loss_type="simpo"` is SimPO as published (no NLL); set cpo_alpha=1 for CPO-SimPO. `contrastive_hidden` replaces
    the preference term by a contrast of pooled hidden states against an anchor of the starting model; it shapes
    representations only. Rows: `prompt`, `chosen`, `rejected`.
    Sources: arXiv 2401.08417 Eqs. 3 and 5; SimPO 2405.14734 Eq. 6; AlphaPO 2501.03884.
    Differs from the paper: its NLL is a sum over the sequence; here a mean over the chosen tokens of the step.
    """

    config_class = CPOConfig
    glossary: ClassVar[tuple[Entry, ...]] = (
        Entry(
            "rewards/chosen", REWARD, "Reward of the chosen completion under the method's own measure, times beta.",
            "nats * beta", "completion", healthy="rises",
        ),
    )  # fmt: skip
    reference_want = Want.HIDDEN
    remembers_reference = False

    @classmethod
    def facts(cls, args: Any, given: Mapping[str, Any]) -> Facts:
        return replace(super().facts(args, given), uses_reference=args.loss_type == "contrastive_hidden")

    def want(self, log: bool) -> Want:
        return super().want(log) | Want.HIDDEN if self.reference is not None else super().want(log)

    def context(self, batch: Batch, work: Any, training: bool) -> StepContext:
        step = super().context(batch, work, training)
        if self.reference_scores is not None and self.args.contrastive_anchor == "prompt":
            prompts = [Example([], [example.prompt_ids]) for example in batch.examples]
            step.ref = self.reference_scores.compute(self.build(prompts))
        return step

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        name, beta = self.args.loss_type, self.args.beta
        sums, lengths = scores.sum().view(-1, 2), scores.lengths.view(-1, 2)  # (B, 2) each
        if name == "contrastive_hidden":
            values, rewards = self.contrast(scores, step), beta * sums
        else:
            values = cpo_loss(
                *sums.unbind(1),
                beta=beta,
                loss_type=name,
                label_smoothing=self.args.label_smoothing,
                lengths_chosen=lengths[:, 0],
                lengths_rejected=lengths[:, 1],
                simpo_gamma=self.args.simpo_gamma,
                alpha=self.args.alpha,
            )
            averaged = name in CPO_AVERAGED_TYPES
            rewards = beta * (cpo_score(sums / lengths, alpha=self.args.alpha) if averaged else sums)
        nll, chosen = chosen_nll(scores)
        terms = [Term(values, "trees")]
        if self.args.cpo_alpha:
            terms.append(Term(nll, "chosen_tokens", self.args.cpo_alpha))
        metrics = pair_metrics(scores, rewards.detach(), sums.detach())
        metrics["nll_loss"] = mean_of(nll, chosen)
        return LossOutput(terms, metrics)

    def contrast(self, scores: Scores, step: StepContext) -> torch.Tensor:
        """The contrastive term (B,): states that the completion's tokens are drawn from, pooled, against the anchor."""
        pooled = pool_hidden(scores.hidden, scores.segment, scores.num_completions)  # (S, H)
        anchor = pool_hidden(step.ref.hidden, step.ref.segment, step.ref.num_completions)
        anchor = anchor if self.args.contrastive_anchor == "prompt" else anchor[0::2]
        return contrastive_hidden_loss(
            pooled[0::2], pooled[1::2], anchor, temperature=self.args.contrastive_temperature
        )
