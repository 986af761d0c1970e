"""Tiny random models of many architectures: what tests run on.

Two layers, hidden 32, a vocabulary of 64. Weights are drawn wide (standard deviation 0.3), so that log-probabilities
differ by nats, not by rounding, and every norm and bias is off its neutral value. The default is float64, where
layouts and code paths must agree to 1e-10. transformers computes norms, routers and eager softmax in float32 whatever
the model's dtype; `tiny_model` keeps those in float64 too, or no such equality could be tested.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from strop.model.heads import head_class, with_head

VOCAB = 64

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_GEMMA = {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8, "tie_word_embeddings": True}
_MIXTURE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "head_dim": 8,
    "decoder_sparse_step": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 8},
    "gemma2": _GEMMA | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": _GEMMA | {"layer_types": ["sliding_attention", "full_attention"]},
    "qwen3_moe": _MIXTURE,
    "cohere": {"logit_scale": 0.25, "tie_word_embeddings": True},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.2},
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mamba": {"state_size": 4, "conv_kernel": 3, "expand": 2},
}
_AUTO = {
    "causal": (AutoModelForCausalLM, {}),
    "score": (AutoModelForSequenceClassification, {"num_labels": 1}),
    "step": (AutoModelForTokenClassification, {"num_labels": 2}),
}


def tiny_model(
    arch: str, *, dtype: torch.dtype = torch.float64, seed: int = 0, task: str = "causal", **config: Any
) -> PreTrainedModel:
    """A random model of an architecture, in evaluation mode.

    Args:
        arch: a key of `CONFIGS` ("gemma3" is short for "gemma3_text").
        dtype: of the weights; in float64 the whole computation is in float64.
        seed: the same seed gives the same weights; the global random state is left as it was.
        task: "causal", "score" (one label) or "step" (two labels per token).
        config: further or other config fields.
    """
    arch = {"gemma3": "gemma3_text"}.get(arch, arch)
    auto, labels = _AUTO[task]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # The grouped matrix product of the default experts does not exist in float64.
        experts = {"experts_implementation": "eager"} if dtype == torch.float64 else {}
        made = AutoConfig.for_model(arch, **(_COMMON | CONFIGS[arch] | labels | config))
        if head_class(made, task) is None:
            model = with_head(AutoModelForCausalLM.from_config(made, **experts), task)
        else:
            model = auto.from_config(made, **experts)
        _draw(model)
    model.to(dtype)
    if dtype == torch.float64:
        exact_float64(model)
    return model.eval()


def _draw(model: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            if name.endswith("A_log") or name.endswith("dt_proj.bias"):  # a Mamba decay drawn wide explodes
                continue
            if parameter.dim() >= 2:
                parameter.copy_(0.3 * noise)
            else:
                parameter.add_(0.1 * noise)


class _KeepFloat64(TorchFunctionMode):
    """Ignores requests to compute float64 tensors in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if func is torch.Tensor.float or (func is torch.Tensor.to and torch.float32 in args[1:]):
                return args[0]
            if kwargs.get("dtype") == torch.float32:
                kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def exact_float64(model: nn.Module) -> nn.Module:
    """Let every part of a float64 model compute in float64, also those that transformers computes in float32.

    Wraps the parts inside the layers, not the layers, so that gradient checkpointing runs them wrapped again.
    """
    for module in model.modules():
        name = type(module).__name__
        if name.endswith(("RMSNorm", "Norm", "Attention", "Router", "MoeBlock", "Experts", "MLP", "Mixer")):
            module.forward = functools.partial(_exact_forward, module)  # copies and pickles with it
    return model


def _exact_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with _KeepFloat64():
        return type(module).forward(module, *args, **kwargs)
