"""The one interface of all rollout engines, and the choice of an engine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from strop.errors import ConfigError, DataError, SetupError, did_you_mean
from strop.records import Rollout
from strop.rollout.sampling import SamplingParams

logger = logging.getLogger(__name__)

ENGINES = ("auto", "native", "transformers", "vllm")


@dataclass(frozen=True, slots=True)
class Mixture:
    """Sample from a geometric mixture of the policy and a reference, token by token.

        log pi'(. | s) = (1 - weight) log pi(. | s) + weight log mu(. | s) + constant

    which is the softmax of the mixed logits; temperature, top-k and the rest act on the mixture.

    Args:
        reference: mu. May be the policy's own module, where `context` switches its adapter off.
        weight: in [0, 1]; 0 is the policy, 1 the reference (then the policy is not computed at all).
        context: entered around every forward pass of the reference, for example `model.disable_adapter`.

    Reference: Nash-MD, arXiv 2312.00886, section 5 (there beta; `mixture_coef` in TRL).
    """

    reference: nn.Module
    weight: float
    context: Callable[[], AbstractContextManager[object]] = nullcontext

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ConfigError(
                f"The mixture weight of the reference must be in [0, 1] (0 = policy, 1 = reference); got {self.weight}."
            )


@runtime_checkable
class Generator(Protocol):
    """A rollout engine: prompt ids in, completion ids and the log-probabilities they were sampled with out."""

    name: str  # "native", "transformers" or "vllm"
    reason: str  # why this engine was chosen, a sentence

    def generate(
        self, prompts: list[list[int]], n: int, sampling: SamplingParams, *, mixture: Mixture | None = None
    ) -> Rollout:
        """Sample `n` completions of every prompt.

        Args:
            prompts: token ids, one list per prompt, at least one id each; a prompt may contain earlier turns.
            n: completions per prompt, >= 1.
            sampling: how to sample.
            mixture: sample from a mixture of the policy and a reference instead of the policy.

        Returns:
            Completions [prompt][sample] with the log-probability of every id under the very distribution it was
            drawn from, and "stop" or "length".

        Raises:
            DataError: prompts that cannot be continued, all of them.
            RolloutError: the engine stalled, answered wrongly or died, or the logits are not finite.
        """
        ...

    def sync(self, model: nn.Module | None = None) -> None:
        """Make the engine use the current weights of the policy; free where it shares them."""
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...


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


def check_prompts(prompts: list[list[int]], n: int, vocab_size: int, context_tokens: int | None) -> None:
    """Refuse prompts that no engine can continue.

    Raises:
        ConfigError: `n` is not a positive integer.
        DataError: empty prompts, ids outside the vocabulary, or prompts that fill the whole context; all of them.
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ConfigError(f"The number of completions per prompt must be an integer >= 1; got {n!r}.")
    problems = []
    for index, prompt in enumerate(prompts):
        if not prompt:
            problems.append(f"prompt {index} has no tokens: give it at least one, such as the BOS token.")
        elif min(prompt) < 0 or max(prompt) >= vocab_size:
            bad = next(i for i in prompt if not 0 <= i < vocab_size)
            problems.append(f"prompt {index} has the id {bad}, and the vocabulary has {vocab_size} ids.")
        elif context_tokens is not None and len(prompt) >= context_tokens:
            problems.append(
                f"prompt {index} has {len(prompt)} tokens, and the model reads {context_tokens}: shorten it."
            )
    if problems:
        raise DataError.collect("These prompts cannot be continued:", problems)


def _announce(generator: Generator, reason: str) -> Generator:
    generator.reason = reason
    logger.info("rollout engine: %s, because %s", generator.name, reason)
    return generator
