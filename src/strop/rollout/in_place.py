"""What the two engines have in common that sample from a model of this process: rows, the model's modes, the result."""

from __future__ import annotations

import abc
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from strop.model.wrappers import unwrap
from strop.records import Rollout
from strop.rollout import limits
from strop.rollout.draw import fresh_seed, row_uniforms
from strop.rollout.generator import Mixture, check_prompts
from strop.rollout.rollout_mode import sampling_mode, transformers_model
from strop.rollout.sampling import SamplingParams
from strop.rollout.scheduler import Row, as_rollout_lists
from strop.rollout.stopping import StopRule, default_stop_ids

logger = logging.getLogger(__name__)


class InPlace(abc.ABC):
    """Samples from a model that is being trained, with the model's own weights in place; a subclass writes the rows."""

    def __init__(self, model: nn.Module, tokenizer: Any, autocast: torch.dtype | None) -> None:
        self.model = unwrap(model)  # adapters in place, what only distributes or compiles peeled off
        self.base = transformers_model(model)
        self.tokenizer = tokenizer
        self.autocast = autocast
        self.reason = "it was made directly"

    def sync(self, model: nn.Module | None = None) -> None:
        """Nothing to copy: the engine samples from the module it was given. Another module takes its place."""
        if model is not None:
            self.model, self.base = unwrap(model), transformers_model(model)

    def close(self) -> None:  # noqa: B027
        """Nothing is held between calls."""

    def generate(
        self, prompts: list[list[int]], n: int, sampling: SamplingParams, *, mixture: Mixture | None = None
    ) -> Rollout:
        context_tokens = limits.position_limit(self.base)
        check_prompts(prompts, n, limits.vocab_size(self.base), context_tokens)
        if not prompts:
            return Rollout([], [], [], [])
        ids = sampling.stop_token_ids
        stop = StopRule(
            default_stop_ids(self.base, self.tokenizer) if ids is None else ids, sampling.stop_strings, self.tokenizer
        )
        distinct, rows = _completion_rows(prompts, n, sampling, context_tokens)
        with self._borrowed(mixture):
            prefilled = self._write(distinct, rows, sampling, stop, mixture)
        found = as_rollout_lists(rows, len(prompts), n)
        return Rollout(prompts=[list(p) for p in prompts], **found, prefilled=prefilled)

    @contextmanager
    def _borrowed(self, mixture: Mixture | None) -> Iterator[None]:
        """The models in the mode and the precision that they are sampled from in."""
        with ExitStack() as stack:
            stack.enter_context(sampling_mode([self.model] if mixture is None else [self.model, mixture.reference]))
            if self.autocast is not None:
                stack.enter_context(torch.autocast(self.base.device.type, self.autocast))
            yield

    @abc.abstractmethod
    def _write(
        self,
        prompts: list[list[int]],
        rows: list[Row],
        sampling: SamplingParams,
        stop: StopRule,
        mixture: Mixture | None,
    ) -> int | None:
        """Write rows of distinct prompts to their ends; returns how many prompt tokens were computed, if known."""


def _completion_rows(
    prompts: list[list[int]], n: int, sampling: SamplingParams, context_tokens: int | None
) -> tuple[list[list[int]], list[Row]]:
    """The distinct prompts, and a row for every completion, those of equal prompts next to each other."""
    seed = fresh_seed() if sampling.seed is None else sampling.seed
    numbers: dict[tuple[int, ...], int] = {}
    rows, shortened = [], 0
    for index, prompt in enumerate(prompts):
        number = numbers.setdefault(tuple(prompt), len(numbers))
        limit = sampling.max_new_tokens
        if context_tokens is not None and len(prompt) + limit > context_tokens:
            limit, shortened = context_tokens - len(prompt), shortened + 1
        for sample in range(n):
            uniforms = row_uniforms(seed, sampling.number(index), sample, limit)
            rows.append(Row(number, index, sample, len(prompt), limit, uniforms))
    if shortened:
        logger.warning(
            "%d of %d prompts leave less than max_new_tokens=%d of the model's %d positions; "
            "their completions end earlier, with finish reason 'length'",
            shortened,
            len(prompts),
            sampling.max_new_tokens,
            context_tokens,
        )
    rows.sort(key=lambda row: row.prompt)  # stable: samples of one prompt stay in order
    return [list(prompt) for prompt in numbers], rows
