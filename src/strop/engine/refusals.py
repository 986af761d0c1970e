"""What could not learn, or not as it was asked to, refused at construction with a sentence."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers import Trainer

from strop.errors import ConfigError, SetupError
from strop.model import base_model, is_peft
from strop.model.wrappers import check_decoder_only


def check_optimizer_package(args: Any) -> None:
    """Refuse an `optim` whose package is not installed; transformers looks for it at the first step."""
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, ValueError) as error:  # ValueError: of settings too, and where the model is needed
        if isinstance(error, ImportError) or re.search("install|import", str(error)):
            raise SetupError(
                f"optim={str(getattr(args.optim, 'value', args.optim))!r} needs a package that is not installed "
                f"({' '.join(str(error).split())}). Install it, or take an optimizer of torch: optim='adamw_torch'."
            ) from None


def check_can_learn(model: nn.Module) -> None:
    """Refuse an encoder-decoder, quantised weights without an adapter, and an adapter that is merged or taken off.

    Raises:
        ConfigError, SetupError: which of them it is, and what to do.
    """
    inner = base_model(model)
    check_decoder_only(inner.config, type(inner).__name__)
    if is_peft(model):
        _check_adapter(model)
        return
    quantizer = getattr(inner, "hf_quantizer", None)
    if quantizer is not None and not getattr(quantizer, "is_qat_trainable", False):
        raise ConfigError(
            f"The weights of this {type(inner).__name__} are quantised and cannot move. Train an adapter beside them: "
            "peft_config=LoraConfig(r=16, target_modules='all-linear'); or load the model without quantisation."
        )


def _check_adapter(model: Any) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if any(layer.merged for layer in layers):
        raise ConfigError(
            "The adapter is merged into the weights, so its own would not learn. Take it out again "
            "(model.unmerge_adapter()), or train the merged model: model.merge_and_unload()."
        )
    if not layers and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            "This PEFT model has no adapter layers any more: unload() or merge_and_unload() took them off, and what "
            "is left is frozen. Pass what that call returned, with a peft_config for a new adapter if you want one."
        )


def check_learns(model: nn.Module) -> None:
    """Refuse to train a model all of whose weights are frozen."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            "Every weight of the model is frozen, so nothing would learn. Load an adapter with "
            "PeftModel.from_pretrained(base, folder, is_trainable=True), pass a peft_config, or set requires_grad."
        )
