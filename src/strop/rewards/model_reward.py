"""Reward models: one score per completion, read at its last real token by the model's own tokenizer.

transformers pools at the rightmost id that is not `pad_token_id`, which is one token too early wherever the padding
token is also the end-of-text token. `strop.model.score` knows the position from the lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from strop.errors import ConfigError
from strop.model import Want, score
from strop.model.heads import scalar_head
from strop.records import Example
from strop.rewards.reading import TextReader, path_of
from strop.rewards.reward_tokens import RewardTokenizer
from strop.rewards.texts import completion_text


class ModelReward(TextReader):
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
        super().__init__(model, processing_class, name=name, max_tokens=max_tokens, max_length=max_length)
        labels = getattr(self._inner.config, "num_labels", 1)
        if labels != 1:
            raise ConfigError(
                f"The reward model {path_of(self._inner)} has {labels} labels; one score per completion is needed. "
                "Use a model that was trained as a reward model (num_labels=1)."
            )
        is_decoder = scalar_head(self._inner) is not None
        self._tokens = RewardTokenizer(
            self.tokenizer, append_eos=append_eos, strip_after_eos=strip_after_eos, own_specials=not is_decoder
        )

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
        readable = [ids if ids and row not in too_long else None for row, ids in enumerate(cut)]
        return self.in_batches(self._forward, readable)

    def _forward(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        found = score(self.model, [Example([], [list(ids)]) for ids in sequences], want=Want.SCORE)
        return found.scores.tolist()  # type: ignore[union-attr]

    def _without_prompt_too_long(self, rows: Sequence[int], completions: Sequence[Any]) -> set[int]:
        alone = self._tokens.whole([""] * len(rows), [completion_text(completions[row]) for row in rows])
        return {row for row, ids in zip(rows, alone, strict=True) if len(ids) > self.max_length}
