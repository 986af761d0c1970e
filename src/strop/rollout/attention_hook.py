"""The attention function that transformers calls during a rollout, and the cache behind it.

transformers 5 lets a model's attention be replaced by name (`AttentionInterface`) and passes unknown keyword
arguments of the model's forward through to that function. The function below finds a `Prefill` or a `Decode` in the
argument `rollout` and lets it answer, so that no cache object of transformers, no padding and no attention mask is
needed. Sliding windows, logit soft-capping, attention sinks and grouped heads arrive as arguments of the call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

from strop.errors import SetupError
from strop.rollout.attention import add_sink, attend, causal, merge
from strop.rollout.kv_cache import KVCache, LayerCache, PromptGroup, StepPlan

ATTENTION_NAME = "strop_rollout"


@dataclass(slots=True)
class Shape:
    """What a layer says about its attention."""

    scale: float
    window: int | None  # keys a query sees, itself included; None = all before it
    softcap: float | None
    sink: torch.Tensor | None  # (H,)


@dataclass(slots=True)
class Prefill:
    """Parts of prompts laid end to end in one row, each attending to itself and to what stands above it; the keys of
    all of that are stored. Of these classes `attention` answers one layer's call: output (B, T, H, Dv) for query
    (B, H, T, D) and new keys and values (B, Hk, T, D)."""

    cache: KVCache
    segments: list[tuple[int, int | None, int, int]]  # (key of the part, of the part above it, start, stop)

    def attention(
        self, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, shape: Shape
    ) -> torch.Tensor:
        layer = self.cache.layer(module)
        outputs = []
        for part, above, start, stop in self.segments:
            k, v = layer.store_prompt(part, key[:, :, start:stop], value[:, :, start:stop], above)  # (1, Hk, P, D)
            out = causal(
                query[:, :, start:stop],
                k,
                v,
                scale=shape.scale,
                window=shape.window,
                softcap=shape.softcap,
                sink=shape.sink,
            )
            outputs.append(out)
        return torch.cat(outputs, 2).transpose(1, 2).contiguous()  # (1, T, H, Dv)


@dataclass(slots=True)
class Decode:
    """One new token per row, (R, 1), each attending to its prompt and its own earlier tokens."""

    cache: KVCache
    plan: StepPlan

    def attention(
        self, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, shape: Shape
    ) -> torch.Tensor:
        layer, plan = self.cache.layer(module), self.plan
        rows, heads = query.shape[:2]
        packed = query.view(rows, key.shape[1], heads // key.shape[1], -1)  # (R, Hk, g, D)
        layer.append(plan, key, value)
        out, lse = self._own(layer, packed, shape)
        if plan.groups:
            out, lse = merge(out, lse, *self._prompts(layer, packed, shape))
        out = out.reshape(rows, heads, -1)  # (R, H, Dv)
        if shape.sink is not None:
            out = add_sink(out, lse.reshape(rows, heads), shape.sink[None])
        return out[:, None]

    def _own(self, layer: LayerCache, query: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention to the rows' own slots: (R, Hk, g, Dv), (R, Hk, g)."""
        rows = self.plan.num_rows
        first, stop = self.plan.own_range(shape.window)
        return attend(
            query,
            layer.keys[:rows, :, first:stop],
            layer.values[:rows, :, first:stop],
            scale=shape.scale,
            bias=self.plan.own_bias(shape.window, query.dtype),
            softcap=shape.softcap,
        )

    def _prompts(self, layer: LayerCache, query: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention to the shared prompts, all rows of a prompt at once: (R, Hk, g, Dv), (R, Hk, g)."""
        plan = self.plan
        if plan.order is not None:
            query = query[plan.order]
        rows, kv_heads, groups, _ = query.shape
        flat = query.transpose(0, 1).reshape(1, kv_heads, rows * groups, -1)  # (1, Hk, R g, D)
        outs, lses = [], []
        for group in plan.groups:
            part = flat[:, :, group.start * groups : group.stop * groups]  # (1, Hk, n g, D)
            out, lse = self._prompt(layer, group, part, groups, shape)
            outs.append(out)
            lses.append(lse)
        out = torch.cat(outs, 2).view(kv_heads, rows, groups, -1).transpose(0, 1)  # (R, Hk, g, Dv)
        lse = torch.cat(lses, 2).view(kv_heads, rows, groups).transpose(0, 1)  # (R, Hk, g)
        if plan.inverse is not None:
            out, lse = out[plan.inverse], lse[plan.inverse]
        return out, lse

    def _prompt(
        self, layer: LayerCache, group: PromptGroup, query: torch.Tensor, groups: int, shape: Shape
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of (1, Hk, n g, D) queries to one prompt."""
        key, value = layer.prompts[group.prompt]
        some, every = group.first_visible(shape.window)
        if some >= group.length:  # the window has left the prompt behind
            out = query.new_zeros(*query.shape[:3], value.shape[3])
            wide = torch.float64 if query.dtype == torch.float64 else torch.float32
            return out, torch.full(query.shape[:3], -torch.inf, dtype=wide, device=query.device)
        bias = None
        if some != every:
            assert shape.window is not None
            bias = self.plan.prompt_bias(group, shape.window, groups, query.dtype)
        return attend(
            query,
            key[:, :, some:],
            value[:, :, some:],
            scale=shape.scale,
            bias=bias,
            softcap=shape.softcap,
            exact_empty=every >= group.length,
        )


def rollout_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    rollout: Prefill | Decode | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls for every attention layer while a rollout is running; see the module's text."""
    if rollout is None:
        raise SetupError(
            f"The attention '{ATTENTION_NAME}' works inside a rollout only, and this forward pass is not one. "
            "Restore the model's own with model.set_attn_implementation('sdpa')."
        )
    if query.dtype != value.dtype:  # under autocast rotary positions leave queries and keys in float32
        query, key = query.to(value.dtype), key.to(value.dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    return rollout.attention(module, query, key, value, Shape(scale, sliding_window, softcap, s_aux)), None


register: Callable[..., None] = AttentionInterface.register
register(ATTENTION_NAME, rollout_attention)
