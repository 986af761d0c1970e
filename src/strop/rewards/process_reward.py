"""Process reward models: a score for every step of a completion, and one number out of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from strop.errors import ConfigError, did_you_mean
from strop.model import Want, score
from strop.records import Example
from strop.rewards.reading import TextReader, path_of
from strop.rewards.reward_tokens import RewardTokenizer

REDUCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "product": math.prod,
    "mean": lambda scores: sum(scores) / len(scores),
    "last": lambda scores: scores[-1],
}


class ProcessReward(TextReader):
    """A token-classification model with two labels as a reward.

    p_k = softmax(z_k)[1] at the last token of the separator that follows step k;  r = reduce(p_1, ..., p_K).

    Args:
        model: a transformers model with a two-label head on every token; label 1 means "good step".
        processing_class: its tokenizer; None loads the one saved beside the model.
        reduce: "min" (a chain is as good as its weakest step), "product", "mean" or "last".
        step_separator: text between steps, as in training.
        name: for metrics; default: the last part of the model's path.
        max_tokens: tokens of one forward pass, padding included.
        max_length: completions with more tokens, prompt included, abstain. Default: the model's positions.

    Raises:
        ConfigError: an unknown reduction, a model with other than two labels, or no tokenizer.

    Source: Lightman et al., arXiv 2305.20050 (product); Math-Shepherd, arXiv 2312.08935 (minimum).
    """

    runs_models = True

    def __init__(
        self,
        model: Any,
        processing_class: Any = None,
        *,
        reduce: str = "min",
        step_separator: str = "\n",
        name: str | None = None,
        max_tokens: int = 16384,
        max_length: int | None = None,
    ) -> None:
        if reduce not in REDUCTIONS:
            hint = did_you_mean(reduce, REDUCTIONS)
            raise ConfigError(f"reduce is {reduce!r}; it must be one of {', '.join(REDUCTIONS)}.{hint}")
        super().__init__(model, processing_class, name=name, max_tokens=max_tokens, max_length=max_length)
        labels = self._inner.config.num_labels
        if labels != 2:
            raise ConfigError(
                f"The process reward model {path_of(self._inner)} has {labels} labels; "
                "two are needed, of which label 1 means a good step."
            )
        self._tokens = RewardTokenizer(self.tokenizer, step_separator=step_separator)
        self._reduce = REDUCTIONS[reduce]

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """One number per completion, (n,) in [0, 1]; None for completions without a step, or too long ones."""
        scores = self.step_scores(prompts, completions)
        if log_extra is not None:
            log_extra(f"{self.reward_name}/steps", scores)
        return [self._reduce(steps) if steps else None for steps in scores]

    def step_scores(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[list[float]]:
        """P(good) of every step, per completion; empty for completions without a step, or too long ones."""
        tokenized = self._tokens.steps(prompts, completions)
        readable = [(ids, ends) if ends and len(ids) <= self.max_length else None for ids, ends in tokenized]
        return [steps or [] for steps in self.in_batches(self._read, readable, lambda pair: len(pair[0]))]

    def _read(self, tokenized: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        """P(good) at the step ends of each completion."""
        marked = [(ids, set(ends)) for ids, ends in tokenized]
        examples = [Example([], [ids], loss_mask=[[int(t in ends) for t in range(len(ids))]]) for ids, ends in marked]
        found = score(self.model, examples, want=Want.STEP)
        good = found.step_logits.softmax(-1)[:, 1].tolist()  # type: ignore[union-attr]
        steps: list[list[float]] = [[] for _ in tokenized]
        for row, value in zip(found.segment.tolist(), good, strict=True):
            steps[row].append(value)
        return steps
