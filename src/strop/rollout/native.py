"""The native rollout engine: the policy's own module, one prefill per distinct prompt, slots that are never idle.

    prefill every distinct prompt once, what prompts begin with alike once, without padding
    while rows wait or write:
        rows enter free slots; their first token is drawn from their prompt's logits
        one forward pass over the active slots; one token drawn per row
        finished rows leave, the rest close up

What was left out: speculative decoding and beam search (other distributions), paged memory (slots are enough on one
machine), reading a beginning that prompts share from one place in decode steps (each prompt has a copy of its keys: an
eighth of a step at most is to be had).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from strop.errors import ConfigError
from strop.model.forest import Rule, pays
from strop.model.wrappers import unwrap
from strop.rollout import limits
from strop.rollout.beginnings import Beginnings, Kept, Part
from strop.rollout.cast_weights import can_be_cast, cast_weights
from strop.rollout.cuda_graph import GraphedSteps
from strop.rollout.decoder import Decoder
from strop.rollout.draw import sample as draw_sample
from strop.rollout.generator import Mixture
from strop.rollout.in_place import InPlace
from strop.rollout.packed_linear import packed_linears
from strop.rollout.rollout_mode import rollout_attention, transformers_model
from strop.rollout.sampling import SamplingParams, seen_tokens
from strop.rollout.scheduler import Row, Scheduler
from strop.rollout.stopping import StopRule

_PREFILL_TOKENS = {"cpu": 4096, "cuda": 32768}
_SHARE_FROM = 3  # completions per prompt from which reading a prompt once per group beats one attention call per row


class NativeGenerator(InPlace):
    """Samples from a model that is being trained, with the model's own weights in place.

    Args:
        model: a transformers causal language model, or one inside PEFT.
        tokenizer: for stop strings and default stop ids only.
        max_slots: most rows decoded at a time; None chooses by device and memory.
        prefill_tokens: most prompt tokens in one forward pass (a longer prompt goes alone); None chooses by device.
        share_prompts: read a prompt's keys from one place for all its completions, instead of copying them into
            every slot. None: on the CPU from three completions per prompt on.
        shares: which common beginnings of prompts are computed once; None: none.
        cuda_graphs: capture decode steps on CUDA, where prompts are copied into slots (`share_prompts` is not True).
        autocast: dtype of `torch.autocast` around forward passes, with weights cast once per call; None for none.
    """

    name = "native"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        max_slots: int | None = None,
        prefill_tokens: int | None = None,
        share_prompts: bool | None = None,
        shares: Rule | None = pays,
        cuda_graphs: bool = True,
        autocast: torch.dtype | None = None,
    ) -> None:
        for name, value in (("max_slots", max_slots), ("prefill_tokens", prefill_tokens)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1; got {value}.")
        super().__init__(model, tokenizer, autocast)
        self.max_slots = max_slots
        self.prefill_tokens = prefill_tokens
        self.share_prompts = share_prompts
        self.shares = shares
        self.kept: Kept | None = None  # while a conversation goes on
        self.cuda_graphs = cuda_graphs
        self.prefilled_tokens = 0  # prompt tokens computed by the last call
        self.decode_steps = 0  # forward passes over the slots in the last call
        self.graph_replays = 0  # of these, how many were replays of CUDA graphs
        self._can_be_cast: dict[int, bool] = {}  # by identity of the model, found on first use

    def sync(self, model: nn.Module | None = None) -> None:
        if model is not None and unwrap(model) is not self.model:
            self._can_be_cast.clear()
        super().sync(model)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Inside the block, where weights must not change, a call keeps the keys of its rows for later ones."""
        self.kept = Kept(limits.kept_tokens(self.base, self.autocast))
        try:
            yield
        finally:
            self.kept = None

    def _write(
        self,
        prompts: list[list[int]],
        rows: list[Row],
        sampling: SamplingParams,
        stop: StopRule,
        mixture: Mixture | None,
    ) -> int:
        models = [self.model] if mixture is None else [self.model, mixture.reference]
        with ExitStack() as stack:
            stack.enter_context(rollout_attention(models))
            if self.autocast is not None:
                stack.enter_context(cast_weights(self._castable(models, prompts[0]), self.autocast))
            stack.enter_context(packed_linears(models, steps=max(row.limit for row in rows)))
            run = _Run(self, prompts, rows, sampling, stop, mixture)
            run.finish()
        self.prefilled_tokens, self.decode_steps = run.prefilled_tokens, run.decode_steps
        self.graph_replays = sum(graphed.replays for graphed in run.graphed)
        return run.prefilled_tokens

    def _castable(self, models: list[nn.Module], ids: list[int]) -> list[nn.Module]:
        """Those of the models whose numbers stay the same where weights are cast once."""
        assert self.autocast is not None
        for model in models:
            if id(model) not in self._can_be_cast:
                self._can_be_cast[id(model)] = can_be_cast(model, ids, self.base.device, self.autocast)
        return [model for model in models if self._can_be_cast[id(model)]]


class _Run:
    """One call of `generate`."""

    def __init__(
        self,
        engine: NativeGenerator,
        prompts: list[list[int]],
        rows: list[Row],
        sampling: SamplingParams,
        stop: StopRule,
        mixture: Mixture | None,
    ) -> None:
        self.prompts, self.sampling, self.stop = prompts, sampling, stop
        self.device = engine.base.device
        share = engine.share_prompts
        if share is None:
            share = self.device.type == "cpu" and len(rows) >= _SHARE_FROM * len(prompts)
        capacity = max(row.limit + (0 if share else row.length) for row in rows)
        most = max(map(len, prompts)) + capacity
        slots = engine.max_slots or limits.default_slots(engine.base, self.device, most, engine.autocast)
        slots = min(slots, len(rows))
        self.scheduler = Scheduler(rows, slots, share)
        self.decoders = _decoders(engine.model, slots, capacity, mixture)
        self.prefill_budget = engine.prefill_tokens or _PREFILL_TOKENS.get(self.device.type, 4096)
        self.kept = engine.kept if mixture is None else None
        self.beginnings = Beginnings(prompts, engine.shares, self.kept)
        self.computed = set(self.beginnings.given)
        if self.kept is not None:
            self.decoders[0][0].cache.take(self.beginnings.given)
            self.beginnings.given.clear()
        self.first_logits: dict[int, torch.Tensor] = {}  # distinct prompt -> (V,) logits of the first token
        self.prefilled_tokens = self.decode_steps = 0
        self.seen: torch.Tensor | None = None  # (slots, V) bool: tokens that the repetition penalty applies to
        self.steps: list[Callable[..., torch.Tensor]] = [decoder.step for decoder, _ in self.decoders]
        self.graphed: list[GraphedSteps] = []
        if engine.cuda_graphs and self.device.type == "cuda" and not share:
            self.graphed = [GraphedSteps(decoder) for decoder, _ in self.decoders]
            self.steps = [graphed.step for graphed in self.graphed]

    def finish(self) -> None:
        """Write every row to its end."""
        scheduler = self.scheduler
        while scheduler.waiting or scheduler.active:
            self._admit()
            self._close_gaps()
            if scheduler.active:
                self._step()
                self._keep_finished()
                scheduler.retire()

    def _admit(self) -> None:
        """Let waiting rows into free slots; each draws its first token from the logits of its prompt."""
        scheduler = self.scheduler
        while scheduler.waiting and scheduler.free_slots:
            self._prefill_next()
            rows: list[Row] = []
            free = scheduler.free_slots
            while scheduler.waiting and len(rows) < len(free) and scheduler.waiting[0].prompt in self.first_logits:
                rows.append(scheduler.waiting.popleft())
            logits = torch.stack([self.first_logits[row.prompt] for row in rows])  # (rows, V)
            seen = None
            if self.sampling.repetition_penalty != 1:
                seen = self._seen_prompts(rows, logits.shape[-1])  # (rows, V)
            self._draw(rows, logits, seen)
            entering = [i for i, row in enumerate(rows) if row.finish is None]
            for slot, i in zip(free, entering, strict=False):
                scheduler.slots[slot] = rows[i]
                if seen is not None:
                    self._remember(slot, seen[i])
            if not scheduler.share_prompts:
                self._fork([rows[i] for i in entering], free)
            self._forget_prompts()

    def _prefill_next(self) -> None:
        """Compute the prompts of the rows that can enter now, as many as fit into the token budget."""
        room, tokens = len(self.scheduler.free_slots), 0
        chosen: list[Part] = []
        for position, row in enumerate(self.scheduler.waiting):
            if position >= room:
                break
            parts = self.beginnings.missing(row.prompt, self.computed)
            more = sum(len(part.ids) for part in parts)
            if chosen and tokens + more > self.prefill_budget:
                break
            tokens += more
            chosen += parts
            self.computed.update(part.key for part in parts)
        if not chosen:
            return
        self.prefilled_tokens += tokens
        logits = _mix(lambda decoder, _: decoder.prefill(chosen, self.device), self.decoders)  # (parts, V)
        for part, line in zip(chosen, logits, strict=True):
            if part.key >= 0:
                self.first_logits[part.key] = line

    def _step(self) -> None:
        """One token for every active row."""
        ids, plan = self.scheduler.plan(self.device)
        logits = _mix(lambda _, number: self.steps[number](ids, plan), self.decoders)  # (R, V)
        self.decode_steps += 1
        rows = self.scheduler.active
        seen = None if self.seen is None else self.seen[: len(rows)]
        self._draw(rows, logits, seen)

    def _keep_finished(self) -> None:
        """Keep the keys of rows that end, where a conversation goes on."""
        scheduler, kept = self.scheduler, self.kept
        for slot, row in enumerate(scheduler.slots):
            if kept is not None and row is not None and row.finish is not None:
                prompt = row.prompt if scheduler.share_prompts else None
                layers = self.decoders[0][0].cache.row(slot, scheduler.own(row), prompt)
                kept.add(self.prompts[row.prompt] + row.ids[:-1], layers)

    def _draw(self, rows: list[Row], logits: torch.Tensor, seen: torch.Tensor | None) -> None:
        """Draw one token per row and hand it over; `seen` learns it. The host waits for the device here, and once."""
        drawn = draw_sample(logits, self.sampling, seen, [row.uniform for row in rows])
        if seen is not None:
            seen.scatter_(1, drawn.ids[:, None], True)
        for row, token, logp in zip(rows, drawn.tokens.tolist(), drawn.logps.tolist(), strict=True):
            row.accept(token, logp, self.stop)

    def _close_gaps(self) -> None:
        for move in self.scheduler.compact():
            for decoder, _ in self.decoders:
                decoder.cache.move(move.source, move.target, move.length)
            if self.seen is not None:
                self.seen[move.target] = self.seen[move.source]

    def _fork(self, rows: list[Row], slots: list[int]) -> None:
        """Copy the prompts of entering rows into their slots."""
        where: dict[int, list[int]] = {}
        for row, slot in zip(rows, slots, strict=False):
            where.setdefault(row.prompt, []).append(slot)
        for decoder, _ in self.decoders:
            decoder.cache.fork(where, self.device)

    def _forget_prompts(self) -> None:
        """Free prompts, and beginnings of them, that nobody waits for and nobody reads; rows with a forked prompt read
        their own copy."""
        scheduler = self.scheduler
        for prompt in [p for p in self.first_logits if not scheduler.awaited(p)]:
            del self.first_logits[prompt]
        read = {row.prompt for row in scheduler.active} if scheduler.share_prompts else set()
        for decoder, _ in self.decoders:
            decoder.cache.keep_prompts(lambda key: key in read or scheduler.awaited(self.beginnings.last[key]))

    def _seen_prompts(self, rows: list[Row], vocab: int) -> torch.Tensor:
        """Tokens of each row's prompt, (rows, V) bool."""
        return seen_tokens([self.prompts[row.prompt] for row in rows], vocab, self.device)

    def _remember(self, slot: int, line: torch.Tensor) -> None:
        if self.seen is None:
            self.seen = line.new_zeros(len(self.scheduler.slots), line.shape[0])  # (slots, V)
        self.seen[slot] = line


def _decoders(model: nn.Module, slots: int, capacity: int, mixture: Mixture | None) -> list[tuple[Decoder, float]]:
    """The models that are sampled from and the weight of their logits; a model of weight 0 is left out."""
    if mixture is None:
        return [(Decoder(model, slots, capacity), 1.0)]
    if limits.vocab_size(transformers_model(mixture.reference)) != limits.vocab_size(transformers_model(model)):
        raise ConfigError(
            f"A mixture needs one vocabulary: the policy has {limits.vocab_size(transformers_model(model))} ids, "
            f"the reference {limits.vocab_size(transformers_model(mixture.reference))}."
        )
    pairs = [
        (Decoder(model, slots, capacity), 1.0 - mixture.weight),
        (Decoder(unwrap(mixture.reference), slots, capacity, mixture.context), mixture.weight),
    ]
    return [(decoder, weight) for decoder, weight in pairs if weight > 0]


def _mix(logits: Callable[[Decoder, int], torch.Tensor], decoders: list[tuple[Decoder, float]]) -> torch.Tensor:
    """Sum over models of weight * logits."""
    total: torch.Tensor | None = None
    for number, (decoder, weight) in enumerate(decoders):
        part = logits(decoder, number)
        if len(decoders) == 1:
            return part
        total = part * weight if total is None else total.add_(part, alpha=weight)
    assert total is not None
    return total
