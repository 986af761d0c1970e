"""The choice of a rollout engine."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from strop.errors import ConfigError, SetupError, did_you_mean
from strop.rollout.generator import Generator

logger = logging.getLogger(__name__)

ENGINES = ("auto", "native", "transformers", "vllm")


def make_generator(
    engine: str = "auto",
    *,
    model: nn.Module,
    tokenizer: Any = None,
    max_slots: int | None = None,
    prefill_tokens: int | None = None,
    cuda_graphs: bool = True,
    autocast: torch.dtype | None = None,
    **vllm: Any,
) -> Generator:
    """A rollout engine for a policy; which one and why is logged and kept in `.reason`.

    Args:
        engine: "native" shares the policy's weights and is the fastest on one machine; "transformers" is
            `model.generate` and serves every architecture; "vllm" is a server or an engine in this process; "auto"
            takes native where a self-check on this very model passes, else transformers.
        model: the policy: a transformers causal language model, or one inside PEFT.
        tokenizer: for stop strings and default stop ids; completions are never decoded for anything else.
        max_slots: most completions decoded at a time; None chooses by device and memory.
        prefill_tokens: most prompt tokens computed in one forward pass; None chooses by device.
        cuda_graphs: capture decode steps on CUDA (native engine).
        autocast: dtype of `torch.autocast` around forward passes, for float32 weights trained under autocast.
        vllm: further settings of the vllm engine, see `vllm_engine.VllmGenerator`.

    Raises:
        ConfigError: an unknown engine, or settings that the engine does not have.
        SetupError: the engine cannot serve this model or is not installed.
    """
    if engine not in ENGINES:
        raise ConfigError(f"Unknown rollout engine {engine!r}: use one of {ENGINES}.{did_you_mean(engine, ENGINES)}")
    if vllm and engine != "vllm":
        raise ConfigError(f"{sorted(vllm)} are settings of the vllm engine, and the engine is {engine!r}.")
    if engine == "vllm":
        from strop.rollout.vllm_engine import VllmGenerator

        served = VllmGenerator(model, tokenizer, max_slots=max_slots, autocast=autocast, **vllm)
        return _announce(served, "it was asked for")
    from strop.rollout.native import NativeGenerator
    from strop.rollout.self_check import why_not_native
    from strop.rollout.transformers_engine import TransformersGenerator

    slow = TransformersGenerator(model, tokenizer, max_rows=max_slots, autocast=autocast)
    if engine == "transformers":
        return _announce(slow, "it was asked for")
    problem = why_not_native(model, autocast=autocast)
    if problem is None:
        settings: dict[str, Any] = dict(
            max_slots=max_slots, prefill_tokens=prefill_tokens, cuda_graphs=cuda_graphs, autocast=autocast
        )
        native = NativeGenerator(model, tokenizer, **settings)
        return _announce(native, "its logits agree with the model's own forward pass")
    if engine == "native":
        raise SetupError(
            f"The native rollout engine cannot serve this model: {problem}. "
            "Use engine='transformers', or 'auto' to choose by itself."
        )
    return _announce(slow, f"the native engine cannot serve this model: {problem}")


def _announce(generator: Generator, reason: str) -> Generator:
    generator.reason = reason
    logger.info("rollout engine: %s, because %s", generator.name, reason)
    return generator
