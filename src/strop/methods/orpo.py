"""ORPO: likelihood of the chosen completion and a preference term in one stage, without a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch

from strop.engine import rows
from strop.engine.parts import Facts
from strop.losses import log_odds_ratio, mean_of, nll_loss, orpo_loss, orpo_metrics
from strop.methods.pairs import PairTrainer, chosen_nll, pair_metrics
from strop.metric import LOGPS, LOSS, REWARD, Entry
from strop.records import Batch, Counts, Example, LossOutput, Scores, StepContext, Term
from strop.settings.config import TrainerConfig
from strop.settings.schema import Range, config


@config
class ORPOConfig(TrainerConfig):
    """Settings of `ORPOTrainer`."""

    aliases = {**TrainerConfig.aliases, "lambda_": "beta"}  # noqa: RUF012

    beta: Annotated[float, Range(min=0)] = 0.1
    """Weight of the odds-ratio term (lambda in the paper)."""
    nll_on_prompt: bool = True
    """Learn the prompt too, as the paper's code does. False: the chosen completion only."""
    length_normalize: bool = True
    """Odds of length-averaged log-probs, as in the paper. False: of sums, which degenerates to a log-ratio."""


class ORPOTrainer(PairTrainer):
    """Odds-ratio preference optimisation: L = NLL(chosen) + beta softplus(-logOR).

    logOR = log odds(P_w) - log odds(P_l), odds = P / (1 - P), P = e^(mean log-prob). The NLL is a mean over the tokens
    of the whole step. Rows: `prompt`, `chosen`, `rejected`. Source: arXiv 2403.07691 Eqs. 3-7.
    """

    config_class = ORPOConfig
    glossary: ClassVar[tuple[Entry, ...]] = (
        Entry(
            "log_odds_chosen", LOSS, "Log odds ratio of chosen over rejected, from length-averaged probabilities.",
            "nats", "pair", low=0, healthy="rises above 0",
            advice="Below 0: the model still prefers the rejected completions.",
        ),
        Entry(
            "log_odds_ratio", LOSS, "log sigmoid of the log odds ratio; ORPO maximises it.", "nats", "pair",
            healthy="rises to 0",
        ),
        Entry(
            "logps/chosen", LOGPS, "Length-averaged log-probability of the chosen completion.", "nats",
            "token, then completion",
        ),
        Entry(
            "logps/rejected", LOGPS, "Length-averaged log-probability of the rejected completion.", "nats",
            "token, then completion",
        ),
        Entry(
            "rewards/chosen", REWARD, "Reward of the chosen completion under the method's own measure, times beta.",
            "nats * beta", "completion", healthy="rises",
        ),
    )  # fmt: skip

    @classmethod
    def facts(cls, args: Any, given: Mapping[str, Any]) -> Facts:
        options = rows.tokenize_options(args, score_prompt=args.nll_on_prompt)
        return replace(super().facts(args, given), tokenize=options)

    def counts(self, examples: Sequence[Example]) -> Counts:
        counts = super().counts(examples)
        return {**counts, "nll_tokens": counts["chosen_tokens"] + counts["prompt_tokens"]}

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        sums = scores.sum().view(-1, 2)
        values = sums / scores.lengths.view(-1, 2) if self.args.length_normalize else sums  # (B, 2)
        nll, chosen = chosen_nll(scores)
        if scores.prompt_logps is not None:
            nll = torch.cat([nll, nll_loss(scores.prompt_logps)])
            chosen = torch.cat([chosen, torch.ones_like(scores.prompt_logps, dtype=torch.bool)])
        terms = [Term(nll, "nll_tokens"), Term(orpo_loss(values[:, 0], values[:, 1], beta=self.args.beta), "trees")]
        values = values.detach()
        metrics = pair_metrics(scores, self.args.beta * values, values)
        metrics |= orpo_metrics(log_odds_ratio(values[:, 0], values[:, 1]))
        metrics["nll_loss"] = mean_of(nll, chosen)
        return LossOutput(terms, metrics)
