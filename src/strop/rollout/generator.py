"""The one interface of all rollout engines."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from strop.errors import ConfigError, DataError
from strop.records import Rollout
from strop.rollout.sampling import SamplingParams


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


def keeping(engine: Generator) -> AbstractContextManager[object]:
    """While a conversation goes on, with the same weights: an engine that can keeps keys from one turn to the next."""
    return engine.keeping() if hasattr(engine, "keeping") else nullcontext()


def help_others(engine: Generator) -> None:
    """Once this process has what it sampled: an engine whose model lies in shards runs it for those that still do."""
    if hasattr(engine, "help_others"):
        engine.help_others()


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
