"""From an id, a directory or a module to a reward: the kind of its head decides which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from strop.errors import ConfigError, SetupError
from strop.model import base_model, load_model
from strop.rewards.model_reward import ModelReward
from strop.rewards.process_reward import ProcessReward
from strop.rewards.reading import default_device, tokenizer_of


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
    options = {"dtype": "auto", **kwargs}
    try:
        task = _task_of(path, options)
        model = load_model(path, task=task, trainable=False, model_init_kwargs=options, fresh_head=False)
    except SetupError as error:
        raise SetupError(
            f"The reward model '{path}' cannot be loaded: {error} Give a directory or hub id of a sequence- or "
            "token-classification model, or the name of a built-in reward. A language model without a head can be "
            "trained with RewardTrainer first, or used as a judge: LanguageModelJudge."
        ) from None
    model = model.to(device if device is not None else default_device())
    return wrap_reward_model(model, tokenizer_of(path, processing_class))


def _task_of(path: str, options: dict[str, Any]) -> str:
    """ "step" for a token classifier, "score" for everything else; an adapter names no architecture and is a score."""
    if (Path(path) / "adapter_config.json").exists():
        return "score"
    known = {name: value for name, value in options.items() if name in ("revision", "trust_remote_code")}
    try:
        config = AutoConfig.from_pretrained(path, **known)
    except (OSError, ValueError, KeyError):
        return "score"  # reading the weights says what is wrong
    return "step" if any("TokenClassification" in name for name in config.architectures or []) else "score"


def wrap_reward_model(model: Any, processing_class: Any = None) -> Any:
    """A `ModelReward`, or a `ProcessReward` for token-classification models.

    Raises:
        ConfigError: the model is a language model without a head.
    """
    kind = type(base_model(model)).__name__
    if "TokenClassification" in kind:
        return ProcessReward(model, processing_class)
    if "ForCausalLM" in kind or "LMHead" in kind:
        raise ConfigError(
            f"A {kind} was given as a reward, but it has no score head. Train one with RewardTrainer, "
            "or use it as a judge: LanguageModelJudge(model)."
        )
    return ModelReward(model, processing_class)
