"""Process reward models: a score for every step of a completion, and one number out of them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

from strop.errors import ConfigError, did_you_mean
from strop.model import Want, base_model, score
from strop.records import Example
from strop.rewards.reading import batches_by_tokens, longest_input, path_of, reading, tokenizer_of
from strop.rewards.reward_tokens import RewardTokenizer

REDUCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "product": math.prod,
    "mean": lambda scores: sum(scores) / len(scores),
    "last": lambda scores: scores[-1],
}


class ProcessReward:
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
        self.model = model
        self._inner = base_model(model)
        path = path_of(self._inner)
        if self._inner.config.num_labels != 2:
            raise ConfigError(
                f"The process reward model {path} has {self._inner.config.num_labels} labels; "
                "two are needed, of which label 1 means a good step."
            )
        self.tokenizer = tokenizer_of(path, processing_class)
        self._tokens = RewardTokenizer(self.tokenizer, step_separator=step_separator)
        self._reduce = REDUCTIONS[reduce]
        self.reward_name = name or os.path.basename(path.rstrip("/")) or type(self._inner).__name__
        self.max_tokens = max_tokens
        self.max_length = max_length or longest_input(self._inner, self.tokenizer)

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
        scores: list[list[float]] = [[] for _ in tokenized]
        readable = [i for i, (ids, ends) in enumerate(tokenized) if ends and len(ids) <= self.max_length]
        with reading(self.model):
            for batch in batches_by_tokens([len(tokenized[i][0]) for i in readable], self.max_tokens):
                rows = [readable[position] for position in batch]
                found = score(self.model, [_example(*tokenized[row]) for row in rows], want=Want.STEP)
                good = found.step_logits.softmax(-1)[:, 1].tolist()  # type: ignore[union-attr]
                for at, value in zip(found.segment.tolist(), good, strict=True):
                    scores[rows[at]].append(value)
        return scores


def _example(ids: list[int], ends: list[int]) -> Example:
    """One completion whose step ends are what is read."""
    marked = set(ends)
    return Example([], [ids], loss_mask=[[int(at in marked) for at in range(len(ids))]])
