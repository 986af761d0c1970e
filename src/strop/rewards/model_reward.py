"""Reward models: one score per completion, read at its last real token by the model's own tokenizer.

transformers pools at the rightmost id that is not `pad_token_id`, which is one token too early wherever the padding
token is also the end-of-text token. `strop.model.score` knows the position from the lengths.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from strop.errors import ConfigError
from strop.model import Want, base_model, score
from strop.model.heads import scalar_head
from strop.records import Example
from strop.rewards.reading import batches_by_tokens, longest_input, path_of, reading, tokenizer_of
from strop.rewards.reward_tokens import RewardTokenizer
from strop.rewards.texts import completion_text


class ModelReward:
    """A sequence-classification model with one label as a reward.

    Decoders (a `score` head): r = score(h_T), T the last token of prompt + completion. Encoders and others: the
    model's own pooling and head.

    Args:
        model: a transformers model with one label, possibly with adapters.
        processing_class: its tokenizer; None loads the one saved beside the model.
        name: for metrics; default: the last part of the model's path.
        max_tokens: tokens of one forward pass, padding included.
        max_length: longest input; longer ones lose their beginning, and abstain if the completion itself is longer.
            Default: what the model has positions for.
        append_eos: plain text ends in EOS before it is scored, as in training.
        strip_after_eos: chat templates that print a line break after the end of turn: score the end of turn. Set
            this to False for reward models that were trained with the line break.

    Raises:
        ConfigError: no tokenizer can be found, or the model has more than one label.
    """

    runs_models = True

    def __init__(
        self,
        model: Any,
        processing_class: Any = None,
        *,
        name: str | None = None,
        max_tokens: int = 16384,
        max_length: int | None = None,
        append_eos: bool = True,
        strip_after_eos: bool = True,
    ) -> None:
        self.model = model
        self._inner = base_model(model)
        labels = getattr(self._inner.config, "num_labels", 1)
        if labels != 1:
            raise ConfigError(
                f"The reward model {path_of(self._inner)} has {labels} labels; one score per completion is needed. "
                "Use a model that was trained as a reward model (num_labels=1)."
            )
        self.tokenizer = tokenizer_of(path_of(self._inner), processing_class)
        self._is_decoder = scalar_head(self._inner) is not None
        self._tokens = RewardTokenizer(
            self.tokenizer,
            append_eos=append_eos,
            strip_after_eos=strip_after_eos,
            own_specials=not self._is_decoder,
        )
        self.reward_name = name or os.path.basename(path_of(self._inner).rstrip("/")) or type(self._inner).__name__
        self.max_tokens = max_tokens
        self.max_length = max_length or longest_input(self._inner, self.tokenizer)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """Scores, (n,); None where the completion is longer than the model can read."""
        whole = self._tokens.whole(prompts, completions)
        cut = [ids[-self.max_length :] for ids in whole]
        if log_metric is not None:
            for before, after in zip(whole, cut, strict=True):
                log_metric(f"rewards/{self.reward_name}/truncated", float(len(before) > len(after)))
        overflowing = [i for i, ids in enumerate(whole) if len(ids) > self.max_length]
        too_long = self._without_prompt_too_long(overflowing, completions)
        readable = [i for i, ids in enumerate(cut) if ids and i not in too_long]
        scores: list[float | None] = [None] * len(cut)
        for index, value in zip(readable, self.score_ids([cut[i] for i in readable]), strict=True):
            scores[index] = value
        return scores

    def score_ids(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Scores of ready token ids, (n,), each sequence with at least one id."""
        scores = [0.0] * len(sequences)
        with reading(self.model):
            for batch in batches_by_tokens([len(ids) for ids in sequences], self.max_tokens):
                values = self._forward([sequences[index] for index in batch])
                for index, value in zip(batch, values, strict=True):
                    scores[index] = value
        return scores

    def _forward(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        found = score(self.model, [Example([], [list(ids)]) for ids in sequences], want=Want.SCORE)
        return found.scores.tolist()  # type: ignore[union-attr]

    def _without_prompt_too_long(self, rows: Sequence[int], completions: Sequence[Any]) -> set[int]:
        alone = self._tokens.whole([""] * len(rows), [completion_text(completions[row]) for row in rows])
        return {row for row, ids in zip(rows, alone, strict=True) if len(ids) > self.max_length}
