"""PRM: train a model that judges every step of a solution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch

from strop.data import DatasetKind, TokenizeOptions, prepare
from strop.device import sent
from strop.engine import rows
from strop.engine.parts import Facts
from strop.engine.trainer import BaseTrainer
from strop.losses import last_steps, solution_scores, step_probabilities, stepwise_loss
from strop.metric import LN2, LOSS, REWARD, Entry
from strop.model import score
from strop.records import Batch, Counts, Example, Extreme, LossOutput, Mean, Scores, StepContext, Term, Want
from strop.settings.config import SCORES_ONLY, TrainerConfig
from strop.settings.schema import Range, config


@config
class PRMConfig(TrainerConfig):
    """Settings of `PRMTrainer`."""

    unused: ClassVar[dict[str, str]] = {**TrainerConfig.unused, **SCORES_ONLY}

    learning_rate: Annotated[float, Range(min=0)] = 1e-5
    step_separator: str = "\n"
    """Text put after every step; its last token is where the step is judged."""
    train_on_last_step_only: bool = False
    """Learn the label of the last step only. Evaluation keeps all steps."""
    label_format: Literal["separator", "inline"] = "separator"
    """separator: columns `completions` and `labels`. inline: `[+]` and `[-]` marks in the text, which are removed."""


class PRMTrainer(BaseTrainer):
    """Process reward model: two-class cross entropy at the last token of each step's separator, mean over labelled
    steps.

    Labels are true / false, or numbers between (soft labels). Rows: `prompt`, `completions` (list of steps),
    `labels`; or `prompt`, `completion` with inline marks. `score_steps` judges new solutions in the same layout.
    Sources: arXiv 2211.14275, 2305.20050, 2312.08935.
    """

    config_class = PRMConfig
    glossary: ClassVar[tuple[Entry, ...]] = (
        Entry(
            "loss", LOSS, "Cross entropy of the step labels.", "nats", "labelled step", high=LN2,
            healthy="ln 2 is guessing when labels are balanced",
        ),
        Entry(
            "accuracy", REWARD, "Share of labelled steps classified right.", "share", "labelled step", low=0.5, high=1,
        ),
        Entry(
            "first_error_accuracy", REWARD, "Share of solutions whose first wrong step (or absence of one) is found.",
            "share", "solution",
        ),
    )  # fmt: skip
    dataset_kind = DatasetKind.STEPWISE
    task = "step"

    @classmethod
    def facts(cls, args: Any, given: Mapping[str, Any]) -> Facts:
        return replace(super().facts(args, given), tokenize=step_options(args))

    def want(self, log: bool) -> Want:
        return Want.STEP

    def counts(self, examples: Sequence[Example]) -> Counts:
        steps = float(sum(sum(example.mask(0)) for example in examples))
        learned = float(len(examples)) if self.args.train_on_last_step_only else steps
        return {**super().counts(examples), "steps": learned, "all_steps": steps}

    def predictions(self, scores: Scores, batch: Batch) -> torch.Tensor:
        """Smallest step probability of each solution, (B, 1)."""
        return solution_scores(step_probabilities(scores.step_logits), scores.segment, scores.num_completions)[:, None]

    def labels(self, batch: Batch) -> list[int]:
        """1 for a solution whose steps are all right."""
        return [int(all(example.extras["labels"])) for example in batch.examples]

    def loss(self, scores: Scores, batch: Batch, step: StepContext) -> LossOutput:
        labels = sent([label for e in batch.examples for label in e.extras["labels"]], batch.targets.device)
        values = stepwise_loss(scores.step_logits, labels)  # (N,)
        metrics = step_metrics(scores, labels.float())
        if self.args.train_on_last_step_only and step.training:
            values = values.masked_fill(~last_steps(scores.segment, scores.num_completions), 0.0)
            return LossOutput([Term(values, "steps")], metrics)
        return LossOutput([Term(values, "all_steps")], metrics)


def step_metrics(scores: Scores, labels: torch.Tensor) -> dict[str, Mean | Extreme]:
    """Accuracy over labelled steps (a probability of 1/2 or more counts as good), and over the first wrong step."""
    good, truth = step_probabilities(scores.step_logits.detach()) >= 0.5, labels >= 0.5
    judged, wrong = (first_place(~flags, scores.segment, scores.num_completions) for flags in (good, truth))
    some = wrong < len(truth)  # solutions with a wrong step
    return {
        "accuracy": Mean((good == truth).float().sum(), good.numel()),
        "first_error_accuracy": Mean((some & (judged == wrong)).float().sum(), some.float().sum()),
    }


def first_place(flags: torch.Tensor, segment: torch.Tensor, num_completions: int) -> torch.Tensor:
    """The first place in the flat order at which a flag (N,) is up, for each completion, (S,); N where none is."""
    count = len(flags)
    places = torch.where(flags, torch.arange(count, device=flags.device), count)
    return segment.new_full((num_completions,), count).scatter_reduce(0, segment, places, "amin")


def step_options(args: PRMConfig) -> TokenizeOptions:
    """Tokenisation of stepwise rows, the same for training and for `score_steps`."""
    return rows.tokenize_options(args, step_separator=args.step_separator, label_format=args.label_format)


def score_steps(
    model: torch.nn.Module, tokenizer: Any, prompt: str, steps: Sequence[str], *, args: PRMConfig | None = None
) -> list[float]:
    """Probability that each step of a solution is good, by a model that `PRMTrainer` trained.

    The layout is that of training: prompt, step 1, separator, step 2, separator, ..., each tokenised on its own.
    `args` are the settings it was trained with (default: `PRMConfig()`); only its separator and lengths matter.
    """
    args = args or PRMConfig()
    options = replace(step_options(args), label_format="separator")
    row = {"prompt": prompt, "completions": list(steps), "labels": [True] * len(steps)}
    example = next(iter(prepare([row], DatasetKind.STEPWISE, tokenizer, options)))
    with torch.no_grad():
        scores = score(model, [example], want=Want.STEP)
    return step_probabilities(scores.step_logits).tolist()
