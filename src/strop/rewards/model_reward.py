"""Reward models: one score per completion, read at its last real token by the model's own tokenizer.

transformers pools at the rightmost id that is not `pad_token_id`, which is one token too early wherever the padding
token is also the end-of-text token. Here the position comes from the lengths.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from strop.errors import ConfigError, SetupError
from strop.model.heads import scalar_head, score_rows
from strop.model.wrappers import base_model
from strop.rewards.padded import batches_by_tokens, device_of, evaluating, final_hidden, right_padded
from strop.rewards.reward_tokens import RewardTokenizer


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
                f"The reward model {_path_of(self._inner)} has {labels} labels; one score per completion is needed. "
                "Use a model that was trained as a reward model (num_labels=1)."
            )
        self.tokenizer = processing_class if processing_class is not None else load_tokenizer(_path_of(self._inner))
        self._is_decoder = scalar_head(self._inner) is not None
        self._tokens = RewardTokenizer(
            self.tokenizer,
            append_eos=append_eos,
            strip_after_eos=strip_after_eos,
            own_specials=not self._is_decoder,
        )
        self.reward_name = name or os.path.basename(_path_of(self._inner).rstrip("/")) or type(self._inner).__name__
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
        for index, score in zip(readable, self.score_ids([cut[i] for i in readable]), strict=True):
            scores[index] = score
        return scores

    def score_ids(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Scores of ready token ids, (n,), each sequence with at least one id."""
        scores = [0.0] * len(sequences)
        device = device_of(self._inner)
        with evaluating(self.model):
            for batch in batches_by_tokens([len(ids) for ids in sequences], self.max_tokens):
                values = self._forward([sequences[index] for index in batch], device)
                for index, value in zip(batch, values.tolist(), strict=True):
                    scores[index] = value
        return scores

    def _forward(self, sequences: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
        ids, mask = right_padded(sequences, device)
        if not self._is_decoder:
            return self._inner(input_ids=ids, attention_mask=mask).logits.float().squeeze(-1)  # (S,)
        hidden = final_hidden(self._inner, ids, mask)  # (S, T, H)
        last = mask.sum(dim=1) - 1  # (S,)
        rows = torch.arange(len(sequences), device=hidden.device)  # (S,)
        return score_rows(self._inner, hidden[rows, last.to(hidden.device)])  # (S,)

    def _without_prompt_too_long(self, rows: Sequence[int], completions: Sequence[Any]) -> set[int]:
        alone = self._tokens.whole([""] * len(rows), [_said(completions[row]) for row in rows])
        return {row for row, ids in zip(rows, alone, strict=True) if len(ids) > self.max_length}


def load_reward_model(path: str, processing_class: Any = None, *, device: Any = None, **kwargs: Any) -> Any:
    """A reward model, or a process reward model, from an id or a directory; adapters alone work too.

    Args:
        path: hub id or directory.
        processing_class: its tokenizer; None loads the one saved with it.
        device: where to put it; None: this process's GPU if there is one, else the CPU.
        kwargs: for `from_pretrained`.

    Raises:
        SetupError: it cannot be loaded, or it has no trained head.
    """
    from transformers import AutoConfig

    try:
        is_adapter = os.path.exists(os.path.join(path, "adapter_config.json"))
        model = _load_adapter(path, kwargs) if is_adapter else _load_full(path, AutoConfig, kwargs)
    except (OSError, ValueError, ImportError) as error:
        raise SetupError(
            f"The reward model '{path}' cannot be loaded: {str(error).splitlines()[0]} "
            "Give a directory or hub id of a sequence- or token-classification model, or the name of a built-in reward."
        ) from None
    model = model.to(device if device is not None else _default_device())
    tokenizer = processing_class if processing_class is not None else load_tokenizer(path)
    return wrap_reward_model(model, tokenizer)


def wrap_reward_model(model: Any, processing_class: Any = None) -> Any:
    """A `ModelReward`, or a `ProcessReward` for token-classification models.

    Raises:
        ConfigError: the model is a language model without a head.
    """
    from strop.rewards.process_reward import ProcessReward

    inner = base_model(model)
    kind = type(inner).__name__
    if "TokenClassification" in kind:
        return ProcessReward(model, processing_class)
    if "ForCausalLM" in kind or "LMHead" in kind:
        raise ConfigError(
            f"A {kind} was given as a reward, but it has no score head. Train one with RewardTrainer, "
            "or use it as a judge: LanguageModelJudge(model)."
        )
    return ModelReward(model, processing_class)


def load_tokenizer(path: str) -> Any:
    """The tokenizer saved with a model.

    Raises:
        ConfigError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, TypeError, ImportError):
        raise ConfigError(
            f"The reward model '{path}' comes without a tokenizer. Pass it as reward_processing_classes, "
            "one per reward, in their order."
        ) from None


def longest_input(model: Any, tokenizer: Any) -> int:
    """How many tokens the model has positions for, and the tokenizer admits."""
    positions = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
    limits = [int(limit) for limit in (positions, getattr(tokenizer, "model_max_length", None)) if limit]
    return min(limits, default=1 << 30)


def _load_full(path: str, auto_config: Any, kwargs: dict[str, Any]) -> Any:
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    config = auto_config.from_pretrained(
        path, **{k: v for k, v in kwargs.items() if k in ("revision", "trust_remote_code")}
    )
    per_token = any("TokenClassification" in name for name in getattr(config, "architectures", None) or [])
    auto = AutoModelForTokenClassification if per_token else AutoModelForSequenceClassification
    model, info = auto.from_pretrained(path, output_loading_info=True, **{"dtype": "auto", **kwargs})
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(model.base_model_prefix + "."))
    if missing:
        raise SetupError(
            f"'{path}' has no trained reward head ({', '.join(missing)} would be random). "
            "Train it with RewardTrainer first, or use it as a judge: LanguageModelJudge."
        )
    return model


def _load_adapter(path: str, kwargs: dict[str, Any]) -> Any:
    from peft import AutoPeftModelForSequenceClassification

    return AutoPeftModelForSequenceClassification.from_pretrained(path, num_labels=1, **{"dtype": "auto", **kwargs})


def _default_device() -> str:
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def _path_of(model: Any) -> str:
    return str(getattr(model.config, "_name_or_path", "") or "")


def _said(completion: Any) -> str:
    from strop.rewards.texts import completion_text

    return completion_text(completion)
