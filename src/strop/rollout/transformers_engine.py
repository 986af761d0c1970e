"""`model.generate` behind the interface of a rollout engine: slower, and right for every architecture.

Rows are left-padded and decoded together until the last one ends; where a model sees its padding, or its rotary
positions depend on the longest row, only prompts of equal length are. What holds is tried on first use. The token of
every row is drawn by the same code as in the native engine: a logits processor warps the logits, draws, and leaves
`generate` one token to choose. So seeds, stop rules and `sampler_logps` mean the same in both engines.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from strop.collectives import gather_numbers
from strop.errors import ConfigError, SetupError
from strop.model.rope import forget_lengths
from strop.rollout import limits
from strop.rollout.draw import sample
from strop.rollout.generator import Mixture
from strop.rollout.in_place import InPlace
from strop.rollout.rollout_mode import sampling_mode
from strop.rollout.sampling import SamplingParams, seen_tokens
from strop.rollout.scheduler import Row
from strop.rollout.self_check import right_generation
from strop.rollout.stopping import StopRule


class TransformersGenerator(InPlace):
    """Samples with `model.generate`, any architecture.

    A mixture computes the reference over the whole sequence at every step, because caches differ between
    architectures: right, and slow.

    Args:
        model: a transformers causal language model, or one inside PEFT.
        tokenizer: for stop strings and default stop ids only.
        max_rows: most completions decoded together; None = 64.
        autocast: dtype of `torch.autocast` around `generate`; None for none.
    """

    name = "transformers"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        max_rows: int | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        if max_rows is not None and max_rows < 1:
            raise ConfigError(f"max_rows must be at least 1; got {max_rows}.")
        super().__init__(model, tokenizer, autocast)
        self.max_rows = max_rows or 64
        # Processes that share the weights of one model go on until the last of them is done.
        self._in_lockstep = limits.is_sharded(model) and dist.is_available() and dist.is_initialized()

    def _write(
        self,
        prompts: list[list[int]],
        rows: list[Row],
        sampling: SamplingParams,
        stop: StopRule,
        mixture: Mixture | None,
    ) -> None:
        for chunk in _chunks(rows, self.max_rows, limits.position_limit(self.base), equal_lengths=self.way[1]):
            self._somebody_writes(own=True)
            self._write_together([prompts[row.prompt] for row in chunk], chunk, sampling, stop, mixture)

    @contextmanager
    def _borrowed(self, mixture: Mixture | None) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(super()._borrowed(mixture))
            stack.callback(setattr, self.base, "generation_config", self.base.generation_config)
            # The model's own defaults (penalties, forbidden words, top-k 50) would change the distribution unseen.
            self.base.generation_config = GenerationConfig()
            yield

    def help_others(self) -> None:
        """Run a model in shards for as long as other processes sample from it.

        They do not sample equally often: one has no prompt of a short window, or longer conversations.
        """
        if not self._in_lockstep:
            return
        with self._borrowed(None):
            self.way  # noqa: B018 tried by all processes together
            while self._somebody_writes(own=False):
                self._write_together([[0]], [Row(0, 0, 0, 1, 1, np.zeros(1))], SamplingParams(1), StopRule([]), None)

    def _somebody_writes(self, *, own: bool) -> bool:
        """Whether any of the processes that share a model is about to sample from it; all ask together."""
        if not self._in_lockstep:
            return own
        everyone = gather_numbers({"writes": float(own)}, dist.get_world_size())
        return any(said["writes"] for said in everyone)

    @cached_property
    def way(self) -> tuple[bool, bool]:
        """Whether `generate` may use a cache, and whether only rows of equal length are decoded together."""
        with sampling_mode([self.model]):
            way = right_generation(self.model, self.base)
        if way[1] and self._in_lockstep:
            raise SetupError(
                f"{type(self.base).__name__} gives other numbers for rows that are padded on the left, and its "
                "weights are spread over processes, which must take the same number of steps. Sample without "
                "sharding (DDP, one process), or with engine='vllm'."
            )
        return way

    def _write_together(
        self,
        prompts: list[list[int]],
        rows: list[Row],
        sampling: SamplingParams,
        stop: StopRule,
        mixture: Mixture | None,
    ) -> None:
        device, longest = self.base.device, max(map(len, prompts))
        pad = [longest - len(prompt) for prompt in prompts]
        ids = torch.tensor([[0] * p + prompt for p, prompt in zip(pad, prompts, strict=True)], device=device)
        mask = torch.tensor(
            [[0] * p + [1] * len(prompt) for p, prompt in zip(pad, prompts, strict=True)], device=device
        )
        writer = _Writer(prompts, rows, sampling, stop, mixture, mask)
        forget_lengths(self.base)
        self.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            generation_config=GenerationConfig(
                max_new_tokens=max(row.limit for row in rows),
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
                use_cache=self.way[0],
            ),
            logits_processor=LogitsProcessorList([writer]),
            stopping_criteria=StoppingCriteriaList([_AllRowsDone(rows)]),
            synced_gpus=self._in_lockstep,
        )


def _chunks(rows: list[Row], most: int, context_tokens: int | None, *, equal_lengths: bool = False) -> list[list[Row]]:
    """Rows that are decoded together, of similar length to save padding, or of the same.

    A finished row goes on until the chunk's last one ends, so with a position table the longest prompt and the
    largest limit of a chunk must fit together.
    """
    chunks: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.length):
        last = chunks[-1] if chunks else []
        limit = max((other.limit for other in last), default=0)
        fits = context_tokens is None or row.length + max(limit, row.limit) <= context_tokens
        fits = fits and not (equal_lengths and last and last[-1].length != row.length)
        if last and len(last) < most and fits:
            last.append(row)
        else:
            chunks.append([row])
    return chunks


@dataclass
class _AllRowsDone(StoppingCriteria):
    """Rows that are finished, (R,) bool; `generate` ends when all are."""

    rows: list[Row]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        return torch.tensor([row.finish is not None for row in self.rows], device=input_ids.device)


@dataclass
class _Writer(LogitsProcessor):
    """Draws every row's token itself and leaves `generate` no choice."""

    prompts: list[list[int]]
    rows: list[Row]
    sampling: SamplingParams
    stop: StopRule
    mixture: Mixture | None
    mask: torch.Tensor

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        logits = scores if self.mixture is None else self._mix(input_ids, scores, self.mixture)
        seen = None
        if self.sampling.repetition_penalty != 1:
            histories = [prompt + row.ids for prompt, row in zip(self.prompts, self.rows, strict=True)]
            seen = seen_tokens(histories, logits.shape[-1], logits.device)
        step = input_ids.shape[1] - self.mask.shape[1]
        uniforms = [row.uniforms[step] if step < row.limit else 0.0 for row in self.rows]
        drawn = sample(logits, self.sampling, seen, uniforms)
        for row, token, logp in zip(self.rows, drawn.tokens.tolist(), drawn.logps.tolist(), strict=True):
            if row.finish is None:
                row.accept(token, logp, self.stop)
        return torch.full_like(scores, -torch.inf).scatter_(-1, drawn.ids[:, None], 0.0)

    def _mix(self, input_ids: torch.Tensor, scores: torch.Tensor, mixture: Mixture) -> torch.Tensor:
        """(1 - weight) * policy + weight * reference, (R, V)."""
        new = input_ids.shape[1] - self.mask.shape[1]
        mask = torch.cat([self.mask, self.mask.new_ones(len(self.rows), new)], 1)  # (R, T)
        with mixture.context():
            reference = mixture.reference(
                input_ids=input_ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                use_cache=False,
                logits_to_keep=1,
            ).logits[:, -1]
        return scores * (1 - mixture.weight) + reference.to(scores) * mixture.weight
