"""What to sample, and the exact distribution it is sampled from.

`SamplingParams` says how a completion is drawn. `warp_logps` turns the logits of a model into the log-probabilities
of the distribution that is really sampled from; the rollout engines draw from it and a trainer that wants the same
distribution calls the same function, so that with equal weights the importance ratio is 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from strop.device import running_sum, wide_dtype
from strop.errors import ConfigError

History = torch.Tensor | Sequence[Sequence[int]]
"""What stands before each row's next token: id lists (prompt and completion so far) or a (R, V) bool "already seen"."""

_FIRST_CANDIDATES = 256  # tokens looked at first for the nucleus; grown until they hold enough mass
_ONLY_CANDIDATES = 2048  # where the device is not asked whether they do


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How completions are drawn.

    The distribution is `softmax(keep(penalise(z) / temperature))`, where `keep` applies top-k, then top-p, then
    min-p, in the order of transformers' `generate`. Equal logits are ordered by token id, the lower first, so that
    the kept set is the same on every machine.

    Args:
        max_new_tokens: most tokens of one completion, >= 1.
        temperature: divides the logits, >= 0; 0 takes the most probable token (lowest id on a tie) and its
            log-probability is 0, because the distribution sampled from is a point.
        top_k: keep the k most probable tokens, >= 0; 0 switches it off.
        top_p: keep the smallest set of most probable tokens with at least this mass, in (0, 1]; 1 switches it off.
        min_p: keep tokens with at least this fraction of the highest probability, in [0, 1]; None switches it off.
        repetition_penalty: logits of tokens already in prompt or completion are divided by it where positive and
            multiplied where negative, > 0; 1 switches it off (arXiv 1909.05858, section 4.1).
        stop_token_ids: ids that end a completion (and belong to it). None: the model's and the tokenizer's own
            (`generation_config.eos_token_id` and `tokenizer.eos_token_id`); empty: none.
        stop_strings: texts that end a completion as soon as they appear in it; the ids are kept.
        seed: >= 0. A completion depends only on (weights, prompt, index of the prompt in the call, index of the
            sample, seed), not on what else is in the batch, up to the rounding of matrix products of other sizes.
            Use another seed for every step and every process. None takes fresh randomness from the operating system.
        first_prompt: index of the call's first prompt, >= 0, where the call is a part of a larger one.
        prompt_numbers: numbers >= 0, one per prompt, that stand for the indices, where they depend on what else is in
            the call; None: the indices.

    Raises:
        ConfigError: all values that are out of range, together.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop_token_ids: tuple[int, ...] | None = None
    stop_strings: tuple[str, ...] = ()
    seed: int | None = None
    first_prompt: int = 0
    prompt_numbers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop_token_ids, int):
            object.__setattr__(self, "stop_token_ids", (self.stop_token_ids,))
        elif self.stop_token_ids is not None:
            object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        strings = (self.stop_strings,) if isinstance(self.stop_strings, str) else tuple(self.stop_strings or ())
        object.__setattr__(self, "stop_strings", strings)
        problems = self._problems()
        if problems:
            raise ConfigError.collect("These sampling settings cannot be used:", problems)

    def _problems(self) -> list[str]:
        """A sentence for every value that is out of range."""
        top_p, penalty = self.top_p, self.repetition_penalty
        checks = [
            ("max_new_tokens", "an integer >= 1", _is_int(self.max_new_tokens, 1)),
            ("temperature", "a finite number >= 0 (0 = greedy)", _is_number(self.temperature)),
            ("top_k", "an integer >= 0 (0 = off)", _is_int(self.top_k, 0)),
            ("top_p", "in (0, 1] (1 = off)", _is_number(top_p, 1.0) and top_p > 0),
            ("min_p", "None or in [0, 1]", self.min_p is None or _is_number(self.min_p, 1.0)),
            ("repetition_penalty", "a finite number > 0 (1 = off)", _is_number(penalty) and penalty > 0),
            ("stop_token_ids", "token ids >= 0", all(_is_int(i, 0) for i in self.stop_token_ids or ())),
            ("stop_strings", "texts that are not empty", all(isinstance(s, str) and s for s in self.stop_strings)),
            ("seed", "None or an integer >= 0", self.seed is None or _is_int(self.seed, 0)),
        ]
        return [f"{name} must be {wanted}; got {getattr(self, name)!r}." for name, wanted, fits in checks if not fits]

    def number(self, index: int) -> int:
        """What a prompt's random numbers are drawn by, beside the seed."""
        return self.first_prompt + index if self.prompt_numbers is None else self.prompt_numbers[index]

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0

    @property
    def truncates(self) -> bool:
        """Whether top-k, top-p or min-p can remove tokens."""
        return self.top_k > 0 or self.top_p < 1 or bool(self.min_p)

    @property
    def plain(self) -> bool:
        """Whether the sampled distribution is the model's own softmax."""
        return self.temperature == 1 and not self.truncates and self.repetition_penalty == 1


def warp_logps(
    logits: torch.Tensor,
    params: SamplingParams,
    history: History | None = None,
    *,
    always_keep: torch.Tensor | None = None,
) -> torch.Tensor:
    """Log-probabilities of the distribution that `params` samples from.

    `log_softmax(warp_logits(logits))`; removed tokens have -inf. Differentiable with respect to `logits` (the kept
    set is a constant).

    Args:
        logits: (R, V), the model's, computed in float32 or wider.
        params: what was sampled with.
        history: needed where `repetition_penalty != 1`.
        always_keep: (R,) ids that stay in the kept set whatever top-k, top-p and min-p say. A trainer passes the
            sampled ids: they were in the sampler's kept set, and a ratio of 0/0 must not arise because the policy
            has moved since.

    Returns:
        (R, V) nats, float32 or wider.

    Raises:
        ConfigError: a repetition penalty without history.
    """
    return warp_logits(logits, params, history, always_keep=always_keep).log_softmax(-1)


def warp_logits(
    logits: torch.Tensor,
    params: SamplingParams,
    history: History | None = None,
    *,
    always_keep: torch.Tensor | None = None,
    unsure: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """The logits whose softmax is sampled from, (R, V); see `warp_logps`. May return `logits` itself, unchanged.

    A nucleus may need more candidates than are looked at first, which only a question to the device tells. With
    `unsure` nothing is asked, and where there is a nucleus the list gets (R,) bool: rows whose kept set is too small.
    """
    logits = penalised(logits, params, history)
    asks = unsure is None
    if params.greedy:
        return _mask(logits, keep_first(logits.detach(), 1, ask=asks), always_keep)
    if params.temperature != 1:
        logits = logits / params.temperature
    if 0 < params.top_k < logits.shape[-1]:
        logits = _mask(logits, keep_first(logits.detach(), params.top_k, ask=asks), always_keep)
    if params.top_p < 1:
        logits = _mask(logits, keep_top_p(logits.detach(), params.top_p, unsure=unsure), always_keep)
    if params.min_p:
        logits = _mask(logits, keep_min_p(logits.detach(), params.min_p), always_keep)
    return logits


def penalised(logits: torch.Tensor, params: SamplingParams, history: History | None) -> torch.Tensor:
    """The logits in float32 or wider, with the repetition penalty, (R, V)."""
    logits = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    if params.repetition_penalty == 1:
        return logits
    if history is None:
        raise ConfigError(
            f"repetition_penalty={params.repetition_penalty} needs the ids before each token, and none were given. "
            "Pass history=, or set repetition_penalty=1."
        )
    seen = history if isinstance(history, torch.Tensor) else seen_tokens(history, logits.shape[-1], logits.device)
    penalty = params.repetition_penalty
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def seen_tokens(histories: Sequence[Sequence[int]], vocab_size: int, device: torch.device | str) -> torch.Tensor:
    """Which tokens occur in each id list, (R, V) bool."""
    seen = torch.zeros(len(histories), vocab_size, dtype=torch.bool)
    for row, ids in enumerate(histories):
        seen[row, torch.as_tensor(list(ids), dtype=torch.long)] = True
    return seen.to(device)


def keep_first(
    logits: torch.Tensor, count: int | torch.Tensor, *, top: torch.Tensor | None = None, ask: bool = True
) -> torch.Tensor:
    """The `count` highest logits of every row, (R, V) bool; among equals the lower id is kept.

    Args:
        logits: (R, V).
        count: how many to keep, >= 1: one number, or (R,) a number per row.
        top: (R, K) the highest logits of every row, falling, where they are known and K is at least `count`.
        ask: whether the device may be asked if there are equals at all, which saves a sum over the vocabulary.
    """
    vocab = logits.shape[-1]
    if isinstance(count, int):
        counts = torch.full(logits.shape[:1], count, dtype=torch.long, device=logits.device)  # (R,)
        top = logits.topk(min(count, vocab), dim=-1).values if top is None else top
    else:
        counts = count
    if top is None:
        largest = int(counts.max()) if counts.numel() else 1
        top = logits.topk(min(largest, vocab), dim=-1).values  # (R, largest), falling
    last = (counts - 1).clamp(0, top.shape[-1] - 1)  # (R,); below 0 where logits are no numbers, refused elsewhere
    threshold = top.gather(-1, last[:, None])  # (R, 1)
    at_least = logits >= threshold  # (R, V)
    if ask and torch.equal(at_least.sum(-1), counts):
        return at_least
    above = logits > threshold  # (R, V)
    equal = logits == threshold  # (R, V)
    room = counts - above.sum(-1)  # (R,) how many of the equals fit
    return above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= room[:, None]))


def keep_top_p(logits: torch.Tensor, top_p: float, *, unsure: list[torch.Tensor] | None = None) -> torch.Tensor:
    """The smallest set of most probable tokens with mass >= `top_p`, (R, V) bool.

    A token is kept while the mass before it, in falling order, is below `top_p`; the first is always kept.
    Sorting a whole vocabulary is slow, so that a few hundred candidates are looked at first and more only where they
    do not hold enough mass; see `warp_logits` for `unsure`.

    Reference: nucleus sampling, arXiv 1904.09751, section 3.1.
    """
    vocab = logits.shape[-1]
    log_total = logits.logsumexp(-1, keepdim=True)  # (R, 1)
    size = min(vocab, _FIRST_CANDIDATES if unsure is None else _ONLY_CANDIDATES)
    while True:
        top = logits.topk(size, dim=-1).values  # (R, size), falling
        probs = (top - log_total).to(wide_dtype(top.device)).exp()  # (R, size)
        mass = running_sum(probs)  # (R, size)
        if size == vocab:
            break
        if unsure is not None:
            unsure.append(mass[:, -1] < top_p)
            break
        if bool((mass[:, -1] >= top_p).all()):
            break
        size = min(vocab, size * 8)
    return keep_first(logits, ((mass - probs) < top_p).sum(-1), top=top, ask=unsure is None)


def keep_min_p(logits: torch.Tensor, min_p: float) -> torch.Tensor:
    """Tokens with at least `min_p` times the highest probability: `z >= max(z) + log(min_p)`, (R, V) bool.

    Reference: arXiv 2407.01082, section 3.
    """
    return logits >= logits.amax(-1, keepdim=True) + math.log(min_p)


def _mask(logits: torch.Tensor, keep: torch.Tensor, always_keep: torch.Tensor | None) -> torch.Tensor:
    """-inf where a token is not kept, (R, V)."""
    if always_keep is not None:
        keep = keep.scatter(-1, always_keep[:, None], True)
    return logits.masked_fill(~keep, -math.inf)


def _is_int(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_number(value: object, high: float = math.inf) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value <= high
    )
