"""PyTorch's two variable-length flash operators for CUDA, emulated as they are documented, or with one fault.

Stretches are told apart by cumulative lengths; a causal call aligns the last query with the last key; scores, softmax
and sums are in float32 (of float64 tensors in float64), results in the dtype of the tensors; log-sum-exps are
(heads, tokens) in float32 or wider; the backward takes output and log-sum-exp as given and recomputes exp(s - lse).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch


@dataclasses.dataclass(frozen=True)
class FlashOperators:
    """`forward` and `backward` stand for `_flash_attention_forward` and its `_backward`.

    Attributes: what may be wrong.
        scale, backward_scale: factors of the scale in both, or in the backward alone.
        ahead: tokens that a causal query sees beyond itself (-1: it does not see itself).
        causal: every call is (True) or none is (False), whatever was asked for.
        lse: "base 2", "unscaled", "(tokens, heads)", "padded" or "heads in turn".
        whole: cumulative lengths are not looked at.
        paired: query heads take keys in turn, and not in blocks.
        first_head: keys and values get the gradient of one query head of their block.
        row_term: rowsum(do * o) is taken off in the backward.
    """

    scale: float = 1.0
    backward_scale: float = 1.0
    ahead: int = 0
    causal: bool | None = None
    lse: str = "(heads, tokens)"
    whole: bool = False
    paired: bool = False
    first_head: bool = False
    row_term: bool = True

    def forward(
        self, query: Any, key: Any, value: Any, cum_q: Any, cum_k: Any, max_q: int, max_k: int, dropout: float,
        causal: bool, debug: bool, *, scale: float,
    ) -> Any:  # fmt: skip
        assert max_q == int(cum_q.diff().max()) and max_k == int(cum_k.diff().max()) and not dropout and not debug
        assert cum_q[-1] == len(query) and cum_k[-1] == len(key) == len(value)
        assert cum_q.dtype == cum_k.dtype == torch.int32 and query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        out, wide = torch.empty_like(query), wide_of(query.dtype)
        lse = query.new_empty(query.shape[1], len(query), dtype=wide)
        for qs, ks in self.stretches(cum_q, cum_k):
            s = self.logits(query[qs], key[ks], causal, scale)
            values = self.for_queries(value[ks].to(wide), query.shape[1])
            out[qs] = torch.einsum("hqk,khd->qhd", s.softmax(-1), values).to(out.dtype)
            lse[:, qs] = s.logsumexp(-1) / (scale if self.lse == "unscaled" else 1.0)
        return out, self.laid_out(lse, cum_q, max_q), torch.zeros(2), torch.zeros(0), torch.zeros(0)

    def backward(
        self, grad: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, cum_q: Any, cum_k: Any, max_q: int,
        max_k: int, dropout: float, causal: bool, seed: Any, unused: Any, *, scale: float,
    ) -> Any:  # fmt: skip
        assert lse.is_contiguous() and lse.shape == (query.shape[1], len(query)) and out.shape == query.shape
        assert out.dtype == grad.dtype == query.dtype and lse.dtype == wide_of(query.dtype)
        wide, heads = wide_of(query.dtype), query.shape[1]
        lse = lse * math.log(2) if self.lse == "base 2" else lse * (scale if self.lse == "unscaled" else 1.0)
        found = [torch.zeros(x.shape, dtype=wide) for x in (query, key, value)]
        scale = scale * self.backward_scale
        for qs, ks in self.stretches(cum_q, cum_k):
            p = (self.logits(query[qs], key[ks], causal, scale) - lse[:, qs, None]).exp()  # of the given log-sum-exp
            keys, values = (self.for_queries(x[ks].to(wide), heads) for x in (key, value))
            do = grad[qs].to(wide)
            row = (do * out[qs]).sum(-1).t()[..., None] * float(self.row_term)  # (Hq, Lq, 1)
            ds = p * (torch.einsum("qhd,khd->hqk", do, values) - row) * scale * self.scale
            found[0][qs] = torch.einsum("hqk,khd->qhd", ds, keys)
            found[1][ks] = self.of_keys(torch.einsum("hqk,qhd->khd", ds, query[qs].to(wide)), key.shape[1])
            found[2][ks] = self.of_keys(torch.einsum("hqk,qhd->khd", p, do), key.shape[1])
        return tuple(x.to(query.dtype) for x in found)

    def stretches(self, cum_q: torch.Tensor, cum_k: torch.Tensor) -> Iterator[tuple[slice, slice]]:
        ends_q, ends_k = cum_q.tolist(), cum_k.tolist()
        if self.whole:
            ends_q, ends_k = [0, ends_q[-1]], [0, ends_k[-1]]
        for q0, q1, k0, k1 in zip(ends_q, ends_q[1:], ends_k, ends_k[1:], strict=False):
            yield slice(q0, q1), slice(k0, k1)

    def logits(self, query: torch.Tensor, key: torch.Tensor, causal: bool, scale: float) -> torch.Tensor:
        """(Hq, Lq, Lk), -inf where a query does not see a key."""
        wide = wide_of(query.dtype)
        keys = self.for_queries(key.to(wide), query.shape[1])
        found = torch.einsum("qhd,khd->hqk", query.to(wide), keys) * scale * self.scale
        if causal if self.causal is None else self.causal:
            seen = torch.ones(found.shape[1:]).tril(found.shape[2] - found.shape[1] + self.ahead).bool()
            found = found.masked_fill(~seen, -torch.inf)
        return found

    def for_queries(self, rows: torch.Tensor, heads: int) -> torch.Tensor:
        """(L, Hk, D) -> (L, Hq, D): the keys or values of every query head."""
        shared = heads // rows.shape[1]
        return rows.repeat(1, shared, 1) if self.paired else rows.repeat_interleave(shared, 1)

    def of_keys(self, gradient: torch.Tensor, heads: int) -> torch.Tensor:
        """(L, Hq, D) -> (L, Hk, D): what the query heads of a block give to their keys."""
        length, queries, size = gradient.shape
        if self.paired:
            return gradient.view(length, queries // heads, heads, size).sum(1)
        blocks = gradient.view(length, heads, queries // heads, size)
        return blocks[:, :, 0] if self.first_head else blocks.sum(2)

    def laid_out(self, lse: torch.Tensor, cum_q: torch.Tensor, longest: int) -> torch.Tensor:
        if self.lse == "base 2":
            return lse / math.log(2)
        if self.lse == "(tokens, heads)":
            return lse.t().contiguous()
        if self.lse == "heads in turn":  # the right shape, and the other order within
            return lse.t().contiguous().view(lse.shape)
        if self.lse == "padded":
            padded = lse.new_zeros(len(cum_q) - 1, lse.shape[0], longest)
            for number, (start, end) in enumerate(zip(cum_q.tolist(), cum_q.tolist()[1:], strict=False)):
                padded[number, :, : end - start] = lse[:, start:end]
            return padded
        return lse


def wide_of(dtype: torch.dtype) -> torch.dtype:
    """What sums of a dtype are computed in."""
    return torch.promote_types(dtype, torch.float32)


RIGHT = FlashOperators()
FAULTS: dict[str, FlashOperators] = {
    "half the scale": FlashOperators(scale=0.5),
    "twice the scale": FlashOperators(scale=2.0),
    "half the scale in the backward": FlashOperators(backward_scale=0.5),
    "a query sees the token after it": FlashOperators(ahead=1),
    "a query does not see itself": FlashOperators(ahead=-1),
    "prompts are masked too": FlashOperators(causal=True),
    "nothing is masked": FlashOperators(causal=False),
    "log-sum-exps of base 2": FlashOperators(lse="base 2"),
    "log-sum-exps without the scale": FlashOperators(lse="unscaled"),
    "log-sum-exps as (tokens, heads)": FlashOperators(lse="(tokens, heads)"),
    "log-sum-exps padded": FlashOperators(lse="padded"),
    "log-sum-exps of other heads": FlashOperators(lse="heads in turn"),
    "lengths not looked at": FlashOperators(whole=True),
    "heads paired in turn": FlashOperators(paired=True),
    "the gradient of one head of a block": FlashOperators(first_head=True),
    "no row term in the backward": FlashOperators(row_term=False),
}
"""What a changed operator could do, each of them alone."""
