"""What a forward pass keeps for its backward, counted on a model without weights.

The model of a config is built on the meta device: shapes and dtypes, no memory. Its forward pass runs there with
strop's own bookkeeping of attention (queries, keys, values, output and log-sum-exp of every token, nothing quadratic),
and every tensor that autograd saves is counted once. So the count follows the architecture as it is, whatever its
layers are, and no formula per architecture is needed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

ATTENTION = "strop_planned"
LENGTHS = (64, 128, 192)
"""Tokens of the passes whose differences tell what a token keeps, and what a pair of tokens keeps."""


@dataclass(frozen=True)
class Shape:
    """What a config says about memory. Bytes are for the dtype the model was built in.

    Attributes:
        parameters: elements of all weights.
        linear: elements of the linear layers that are quantised in a 4-bit or 8-bit model (heads are not).
        per_rank: elements of a LoRA adapter of rank 1 on every linear layer.
        embedding: elements of the largest single weight, embedding or head.
        vocabulary, layers: sizes.
        cache_token: elements of keys and values that one generated token adds.
        saved_token: bytes that one token keeps from forward to backward, over all layers.
        saved_square: bytes that each pair of tokens of a row keeps, where attention has no flash form; else 0.
        input_token: bytes of the input of all layers, which is all that checkpointing keeps.
    """

    parameters: int
    linear: int
    per_rank: int
    embedding: int
    vocabulary: int
    layers: int
    cache_token: int
    saved_token: float
    saved_square: float
    input_token: float


class PlannedAttention(torch.autograd.Function):
    """Attention that computes nothing and keeps what flash attention keeps."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        batch, heads, tokens, _ = query.shape
        out = query.new_empty(batch, heads, tokens, value.shape[-1])
        lse = query.new_empty(batch, heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError("a planned pass has no backward")


def planned_attention(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """As transformers calls an attention function: (B, heads, T, D) in, (B, T, heads, D) out.

    Capped logits have no flash form: what the plain form keeps of every pair of tokens is kept then.
    """
    if kwargs.get("softcap") is not None:
        groups = query.shape[1] // key.shape[1]
        keys, values = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        logits = torch.tanh(query @ keys.transpose(2, 3) * 0.1 / kwargs["softcap"]) * kwargs["softcap"]
        weights = torch.softmax(logits, -1, dtype=torch.float32).to(query.dtype)
        return (weights @ values).transpose(1, 2).contiguous(), None
    out: Any = PlannedAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).contiguous(), None


class Saved:
    """Bytes of the distinct storages of the tensors that it is given, those of weights left out."""

    def __init__(self, model: nn.Module) -> None:
        self.storages = [tensor.untyped_storage() for tensor in [*model.parameters(), *model.buffers()]]
        self.known = {id(storage) for storage in self.storages}  # and alive, so that no other takes its place
        self.bytes = 0

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in self.known:
            self.known.add(id(storage))
            self.storages.append(storage)
            self.bytes += storage.nbytes()
        return tensor


def shape_of(config: Any, dtype: torch.dtype, *, lora_rank: int | None = None) -> Shape:
    """Count the model of a transformers config (a text decoder) in a dtype; with a rank, under a LoRA adapter."""
    from transformers import AttentionInterface, AutoModelForCausalLM

    config = copy.deepcopy(config)  # the attention function is written into it
    AttentionInterface.register(ATTENTION, planned_attention)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    text = config.get_text_config()
    model.set_attn_implementation(ATTENTION)
    model.train()
    stack = model.base_model
    weights = [p.numel() for p in model.parameters()]
    linears = [m for m in stack.modules() if isinstance(m, nn.Linear)]
    if lora_rank is not None:
        from peft import LoraConfig, inject_adapter_in_model

        model.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(r=lora_rank, target_modules="all-linear"), model)
    few, some, many = (saved_bytes(stack, tokens) for tokens in LENGTHS)
    step = LENGTHS[1] - LENGTHS[0]
    square = (many - 2 * some + few) / (2 * step**2)
    saved = (many - few) / (2 * step) - square * (LENGTHS[0] + LENGTHS[2])
    layers = int(text.num_hidden_layers)
    width = torch.empty((), dtype=dtype).element_size()
    return Shape(
        parameters=sum(weights),
        linear=sum(layer.weight.numel() for layer in linears),
        per_rank=sum(layer.in_features + layer.out_features for layer in linears),
        embedding=max(weights),
        vocabulary=int(text.vocab_size),
        layers=layers,
        cache_token=cache_elements(text, layers),
        saved_token=saved,
        saved_square=square,
        input_token=float(layers * text.hidden_size * width),
    )


def saved_bytes(stack: nn.Module, tokens: int) -> int:
    """Bytes that the layers keep of one row of so many tokens."""
    saved = Saved(stack)
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        stack(input_ids=ids, position_ids=ids, use_cache=False)
    return saved.bytes


def cache_elements(text: Any, layers: int) -> int:
    """Elements of keys and values of one token in all layers."""
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * layers * heads * size)
