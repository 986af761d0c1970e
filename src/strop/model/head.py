"""Log-probabilities of scored tokens from their hidden states, in bounded memory.

Only scored positions reach the output matrix. Their float logits live in one buffer of at most `head_bytes`:

* all of them fit: softmax residuals are kept for backward, 6 N V H floating-point operations in all;
* they do not: rows are worked on chunk by chunk, and backward computes the chunk again, 8 N V H.

With one residual R = softmax - onehot per token, backward is dX = -g (R W) and dW = -R^T (g X); sums over chunks are
kept in float32, because rounding every chunk's share to bfloat16 biases training.

On a card, where passes over the logits take longer than their products, kernels make two passes of all that lies
between the products (`head_kernels.py`); elsewhere, and where they are not right, PyTorch's operators go over them
(`softmax.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from strop.model import softmax
from strop.model.head_memory import default_head_bytes
from strop.model.head_trial import kernels_for
from strop.model.lm_head import LMHead, Reading
from strop.model.products import multiplies_bfloat16, stays_narrow, wide_product
from strop.model.softmax import TokenStatistics
from strop.records import Want

HEAD_KINDS = Want.LOGPS | Want.ENTROPY | Want.TOP1 | Want.MEAN_LOGIT | Want.LOG_SQUARE


def score_tokens(
    head: LMHead,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    want: Want = Want.LOGPS,
    *,
    temperature: float = 1.0,
    head_bytes: int | None = None,
    grad_entropy: bool = False,
) -> dict[str, torch.Tensor]:
    """Per-token quantities of the distributions p = softmax(logits / temperature).

    Args:
        head: the output layer.
        hidden: (N, H) the states that the scored tokens are predicted from.
        targets: (N,) the scored token ids.
        want: which of LOGPS, ENTROPY, TOP1, MEAN_LOGIT, LOG_SQUARE.
        temperature: > 0, the one that was sampled with.
        head_bytes: bytes that logits may take, forward and backward each; None for `default_head_bytes`.
        grad_entropy: whether the entropy carries a gradient (for an entropy bonus).

    Returns:
        "logps" (N,) nats, with gradient; where asked for "entropy" (N,) nats, "top1" (N,) bool, "mean_logit" (N,)
        of the logits before temperature, "log_square" (N,) log sum_v p(v)^2, without gradient. float32, or float64
        for a float64 model.
    """
    budget = default_head_bytes(hidden.device) if head_bytes is None else max(int(head_bytes), 1)
    options = _Options(head, want, float(temperature), budget, grad_entropy)
    if head.is_plain:
        layer = head.module
        columns = call_through(
            layer, lambda rows: _FusedHead.apply(rows, layer.weight, layer.bias, targets, options), hidden
        )
    else:
        columns = _through_module(hidden, targets, options)
    return _named(columns)


def score_logits(
    logits: torch.Tensor,
    targets: torch.Tensor,
    want: Want = Want.LOGPS,
    *,
    temperature: float = 1.0,
    grad_entropy: bool = False,
) -> dict[str, torch.Tensor]:
    """As `score_tokens`, for logits (N, V) that the model computed itself; nothing bounds their memory."""
    plain = LMHead(nn.Identity())
    return _named(LogitScores.apply(logits, targets, _Options(plain, want, float(temperature), 0, grad_entropy)))


def _named(columns: Sequence[torch.Tensor | None]) -> dict[str, torch.Tensor]:
    names = ("logps", "entropy", "top1", "log_square", "mean_logit")
    return {name: column for name, column in zip(names, columns, strict=True) if column is not None}


def call_through(module: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
    """Run `function` in place of `module.forward`, so that the hooks of wrappers (FSDP, ZeRO) see the module called."""
    module.forward = function  # type: ignore[method-assign]
    try:
        return module(*args)
    finally:
        del module.forward


class _Options:
    """What a head computes, and with how much memory."""

    def __init__(self, head: LMHead, want: Want, temperature: float, budget: int, grad_entropy: bool) -> None:
        self.head = head
        self.want = want | Want.ENTROPY if grad_entropy else want
        self.temperature = temperature
        self.budget = budget
        self.grad_entropy = grad_entropy
        self.learns = torch.is_grad_enabled()  # inside an autograd function it is always off

    @property
    def straight(self) -> bool:
        """Whether the gradient of the raw logits is a multiple of the residual."""
        return self.head.softcap is None and not self.grad_entropy

    def plan(self, count: int, vocab: int, compute: torch.dtype, learns: bool, lean: bool = False) -> tuple[int, bool]:
        """(rows per chunk, whether what backward needs of all rows is kept) within the budget; `lean` with kernels."""
        wide = torch.promote_types(compute, torch.float32).itemsize
        flying = vocab * (wide if compute.itemsize == wide else wide + compute.itemsize)  # bytes per row in flight
        if not self.straight and not lean:
            flying = vocab * wide * 6  # the terms of `softmax.gradient`
        kept = count * vocab * (compute.itemsize if self.straight or not lean else wide) if learns else 0
        if kept and self.straight and compute.itemsize == wide and kept <= self.budget:
            return count, True
        rows_beside_kept = (self.budget - kept) // flying
        keep = bool(kept) and rows_beside_kept >= min(count, 64)
        rows = rows_beside_kept if keep else self.budget // flying
        return max(1, min(count, rows)), keep


def _compute_dtype(hidden: torch.Tensor, weight: torch.Tensor) -> torch.dtype:
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


class _FusedHead(torch.autograd.Function):
    """(hidden, weight, bias, targets) -> (logps, entropy, top1, log_square, mean_logit)."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, options: _Options):  # type: ignore[override]
        compute = _compute_dtype(hidden, weight)
        count, vocab = hidden.shape[0], weight.shape[0]
        learns = options.learns and any(ctx.needs_input_grad[:3])
        with torch.autocast(hidden.device.type, enabled=False):
            work = _HeadWork(hidden, weight, bias, targets, compute, options)
            rows, keep = options.plan(count, vocab, compute, learns, work.passes is not softmax)
            stats = TokenStatistics.empty(count, work.statistics, hidden.new_empty(0, dtype=work.wide))
            dtype = compute if options.straight or work.passes is softmax else work.wide  # residuals, or logits
            kept = hidden.new_empty(count, vocab, dtype=dtype) if keep else None  # (N, V)
            for start in range(0, count, rows):
                chunk = slice(start, start + rows)
                work.score(chunk, stats.slice(chunk), None if kept is None else kept[chunk])
            mean_logit = work.mean_logit() if work.mean_is_linear else stats.mean_logit
        outputs = (stats.logps, stats.entropy, stats.top1, stats.log_square, mean_logit)
        _mark_fixed(ctx, outputs, options)
        if learns:
            ctx.save_for_backward(hidden, weight, bias, targets, kept, stats.entropy, work.anchors)
            ctx.options, ctx.compute, ctx.rows = options, compute, rows
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_logps, grad_entropy, *_):  # type: ignore[override]
        hidden, weight, bias, targets, kept, entropy, anchors = ctx.saved_tensors
        options = ctx.options
        grad_entropy = grad_entropy if options.grad_entropy else None
        with torch.autocast(hidden.device.type, enabled=False):
            work = _HeadWork(hidden, weight, bias, targets, ctx.compute, options, anchors)
            grads = _HeadGrads(work, ctx.needs_input_grad)
            for start in range(0, max(hidden.shape[0], 1), ctx.rows):  # of no rows the gradient is 0
                chunk = slice(start, start + ctx.rows)
                some = (None if x is None else x[chunk] for x in (kept, grad_logps, grad_entropy, entropy))
                grads.add(chunk, *work.gradient(chunk, *some))
        return grads.hidden, grads.weight, grads.bias, None, None


def _mark_fixed(ctx, outputs: tuple[torch.Tensor | None, ...], options: _Options) -> None:
    """Only log-probabilities, and the entropy on request, carry a gradient."""
    fixed = outputs[2:] if options.grad_entropy else outputs[1:]
    ctx.mark_non_differentiable(*(x for x in fixed if x is not None))


class _HeadWork:
    """The head's inputs in the dtype they are multiplied in, and what is computed from a chunk of rows."""

    def __init__(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        compute: torch.dtype,
        options: _Options,
        anchors: torch.Tensor | None = None,
    ) -> None:
        self.hidden, self.bias, self.targets = hidden, bias, targets
        self.compute, self.wide = compute, torch.promote_types(compute, torch.float32)
        self.options = options
        weight = weight.to(compute)
        # Logits must not be rounded to half precision: where products of it are, widen the matrix once, not per chunk.
        # The gradient of the states is rounded anyway, as a linear layer's is: it may come from units for that.
        stays = stays_narrow(weight.device, compute)
        self.weight = weight if stays else weight.to(self.wide)  # (V, H)
        on_cpu = weight.device.type == "cpu" and not stays
        self.narrow = weight if on_cpu and compute == torch.bfloat16 and multiplies_bfloat16() else None  # (V, H)
        # The mean of linear logits needs one row, the mean row of the matrix; a cap needs them all.
        self.mean_is_linear = bool(options.want & Want.MEAN_LOGIT) and options.head.softcap is None
        self.statistics = options.want & ~Want.MEAN_LOGIT if self.mean_is_linear else options.want
        self.passes = kernels_for(weight.device, self.wide) or softmax
        self.reading = Reading.of(options.head, options.temperature, bias)
        # (N, 3) what the first pass leaves for the second
        self.anchors = hidden.new_empty(len(hidden), 3, dtype=self.wide) if anchors is None else anchors

    def rows(self, chunk: slice) -> torch.Tensor:
        return self.hidden[chunk].to(self.compute).to(self.weight.dtype)  # (n, H)

    def raw(self, chunk: slice, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Raw logits of a chunk, (n, V), without the bias; in `kept` where that is wide enough to hold them."""
        out = kept if kept is not None and kept.dtype == self.wide else None
        return wide_product(self.rows(chunk), self.weight.t(), out)

    def score(self, chunk: slice, into: TokenStatistics, kept: torch.Tensor | None) -> None:
        """Statistics of a chunk of rows; in `kept`, if given, what its gradient is computed from."""
        raw, targets, anchors = self.raw(chunk, kept), self.targets[chunk], self.anchors[chunk]
        self.passes.statistics(raw, targets, into, anchors, self.reading)
        if kept is not None and (self.options.straight or self.passes is softmax):
            self.passes.gradient(raw, targets, anchors, kept, self.reading)

    def gradient(
        self,
        chunk: slice,
        kept: torch.Tensor | None,
        grad_logps: torch.Tensor,
        grad_entropy: torch.Tensor | None,
        entropy: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(matrix (n, V), factor (n,) or None): the gradient of a chunk's raw logits is factor[:, None] * matrix."""
        scales = self.reading.scales(grad_logps, grad_entropy, entropy)
        straight, held, targets = self.options.straight, kept, self.targets[chunk]
        if straight and kept is not None:
            return kept, scales["factor"]
        if held is None:
            held = self.raw(chunk)
            if self.passes is softmax:  # whose first pass puts the residual in the place of the logits
                softmax.softmax_residual_(held, targets, TokenStatistics.empty(len(held), Want(0), held), self.reading)
        elif self.passes is softmax:
            held = held.to(self.wide)
        dtype = self.weight.dtype  # of the products to come
        place = held if held is not kept and dtype == held.dtype else torch.empty_like(held, dtype=dtype)
        self.passes.gradient(held, targets, self.anchors[chunk], place, self.reading, **({} if straight else scales))
        return place, scales["factor"] if straight else None

    def mean_logit(self) -> torch.Tensor:
        """Mean over the vocabulary of linear logits: one row of the matrix instead of all, (N,)."""
        mean = self.hidden.to(self.wide) @ self.weight.mean(0, dtype=self.wide)
        if self.bias is not None:
            mean = mean + self.bias.to(self.wide).mean()
        return mean * self.options.head.scale


class _HeadGrads:
    """Gradients of hidden states, weight and bias, summed over chunks in float32."""

    def __init__(self, work: _HeadWork, needed: tuple[bool, ...]) -> None:
        self.work = work
        self.hidden = torch.empty_like(work.hidden) if needed[0] else None  # (N, H)
        self.needs_weight, self.needs_bias = needed[1], needed[2]
        self.weight: torch.Tensor | None = None  # (V, H)
        self.bias: torch.Tensor | None = None  # (V,)

    def add(self, chunk: slice, matrix: torch.Tensor, factor: torch.Tensor | None) -> None:
        """Add the share of rows `chunk` whose raw-logit gradient is factor[:, None] * matrix."""
        work = self.work
        column = None if factor is None else factor.to(work.wide).unsqueeze(1)
        if self.hidden is not None:
            if work.narrow is None:
                product = wide_product(matrix.to(work.weight.dtype), work.weight)  # (n, H)
            else:
                product = (matrix.to(work.compute) @ work.narrow).to(work.wide)
            self.hidden[chunk] = product if column is None else product.mul_(column)
        matrix = matrix.to(work.weight.dtype)
        if self.needs_weight:
            rows = work.rows(chunk)
            rows = rows if column is None else (rows * column).to(rows.dtype)
            if self.weight is not None and matrix.dtype == work.wide:
                self.weight.addmm_(matrix.t(), rows)
            else:
                share = wide_product(matrix.t(), rows)  # (V, H)
                self.weight = share if self.weight is None else self.weight.add_(share)
        if self.needs_bias:
            ones = torch.ones(1, len(matrix), dtype=matrix.dtype, device=matrix.device)
            factors = ones if column is None else column.t().to(matrix.dtype)
            share = wide_product(factors, matrix).squeeze(0)  # (V,)
            self.bias = share if self.bias is None else self.bias.add_(share)


def _through_module(hidden: torch.Tensor, targets: torch.Tensor, options: _Options) -> list[torch.Tensor | None]:
    """The same where the output layer must be called (LoRA, quantised): autograd sees one chunk at a time."""
    head = options.head
    vocab = getattr(head.module, "out_features", None)
    if vocab is None:
        with torch.no_grad():
            vocab = head.module(hidden[:1]).shape[-1]
    wide = torch.promote_types(hidden.dtype, torch.float32)
    # In flight per row: what the layer gives, and its gradient; without kernels a float copy and the gradient's terms.
    beside = wide.itemsize if kernels_for(hidden.device, wide) else wide.itemsize * (2 if options.straight else 6)
    size = vocab * (hidden.dtype.itemsize + beside)
    rows = max(1, min(hidden.shape[0], options.budget // size))
    whole = rows >= hidden.shape[0]

    def chunk_scores(rows_hidden: torch.Tensor, rows_targets: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        with casts_of_its_own(rows_hidden.device.type):
            raw = head.module(rows_hidden)  # (n, V)
        return LogitScores.apply(raw, rows_targets, options)

    parts = []
    for start in range(0, max(hidden.shape[0], 1), rows):
        inputs = hidden[start : start + rows], targets[start : start + rows]
        if whole or not torch.is_grad_enabled():
            parts.append(chunk_scores(*inputs))
        else:
            parts.append(checkpoint(chunk_scores, *inputs, use_reentrant=False))
    return [None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)]  # type: ignore[arg-type]


def casts_of_its_own(device: str) -> Any:
    """Autocast as it is, but with weights rounded anew for each chunk: gradients of a copy that chunks share would be
    added up in half precision, those of the weights themselves are in float32."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False)


class LogitScores(torch.autograd.Function):
    """(raw logits (n, V), targets) -> (logps, entropy, top1, log_square, mean_logit), keeping one (n, V) tensor: a
    residual, or with kernels the logits themselves, which the model has made anyway."""

    @staticmethod
    def forward(ctx, raw, targets, options: _Options):  # type: ignore[override]
        wide = torch.promote_types(raw.dtype, torch.float32)
        passes, reading = kernels_for(raw.device, raw.dtype) or softmax, Reading.of(options.head, options.temperature)
        stats = TokenStatistics.empty(raw.shape[0], options.want, raw.new_empty(0, dtype=wide))
        anchors = raw.new_empty(len(raw), 3, dtype=wide)
        kept = raw.to(wide, copy=True) if passes is softmax else raw if raw.stride(-1) == 1 else raw.contiguous()
        passes.statistics(kept, targets, stats, anchors, reading)
        outputs = (stats.logps, stats.entropy, stats.top1, stats.log_square, stats.mean_logit)
        _mark_fixed(ctx, outputs, options)
        ctx.save_for_backward(kept, targets, stats.entropy, anchors)
        ctx.passes, ctx.reading, ctx.bonus, ctx.dtype = passes, reading, options.grad_entropy, raw.dtype
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_logps, grad_entropy, *_):  # type: ignore[override]
        kept, targets, entropy, anchors = ctx.saved_tensors
        scales = ctx.reading.scales(grad_logps, grad_entropy if ctx.bonus else None, entropy)
        grad = torch.empty_like(kept, dtype=ctx.dtype)
        return ctx.passes.gradient(kept, targets, anchors, grad, ctx.reading, **scales), None, None
