"""Log-probabilities of scored tokens from their hidden states, in bounded memory.

Only scored positions reach the output matrix. Their float logits live in one buffer of at most `head_bytes`:

* all of them fit: softmax residuals are kept for backward, 6 N V H floating-point operations in all;
* they do not: rows are worked on chunk by chunk, and backward computes the chunk again, 8 N V H.

With one residual R = softmax - onehot per token, backward is dX = -g (R W) and dW = -R^T (g X); sums over chunks are
kept in float32, because rounding every chunk's share to bfloat16 biases training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from strop.model.lm_head import LMHead
from strop.model.softmax import TokenStatistics, softmax_residual_
from strop.records import Want

HEAD_KINDS = Want.LOGPS | Want.ENTROPY | Want.TOP1 | Want.MEAN_LOGIT | Want.LOG_SQUARE


def default_head_bytes(device: torch.device) -> int:
    """Bytes that logits may take by default: 512 MB on a CPU, 3 GB on an accelerator."""
    return (512 << 20) if device.type == "cpu" else (3 << 30)


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

        def fused(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
            layer = head.module
            return _FusedHead.apply(rows, layer.weight, layer.bias, targets, options)

        columns = call_through(head.module, fused, hidden)
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

    def plan(self, count: int, vocab: int, compute: torch.dtype, learns: bool) -> tuple[int, bool]:
        """(rows per chunk, whether the residuals of all rows are kept for backward) within the budget."""
        wide = torch.promote_types(compute, torch.float32).itemsize
        flying = vocab * (wide if compute.itemsize == wide else wide + compute.itemsize)  # bytes per row in flight
        if not self.straight:
            flying = vocab * wide * 6  # the terms of `logit_gradient`
        kept = count * vocab * compute.itemsize if learns else 0
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


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether the processor has units for products of bfloat16 (AMX, AVX-512 BF16); PyTorch before 2.9 does not say."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("amx_bf16") or known.get("avx512_bf16"))


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b with a float32 (or float64) result, whatever the inputs are."""
    if a.dtype in (torch.float32, torch.float64):
        return a @ b
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


class _FusedHead(torch.autograd.Function):
    """(hidden, weight, bias, targets) -> (logps, entropy, top1, log_square, mean_logit)."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, options: _Options):  # type: ignore[override]
        work = _HeadWork(hidden, weight, bias, targets, _compute_dtype(hidden, weight), options)
        count, vocab = hidden.shape[0], weight.shape[0]
        learns = options.learns and any(ctx.needs_input_grad[:3])
        rows, keep = options.plan(count, vocab, work.compute, learns)
        with torch.autocast(hidden.device.type, enabled=False):
            stats = TokenStatistics.empty(count, work.statistics, hidden.new_empty(0, dtype=work.wide))
            kept = hidden.new_empty(count, vocab, dtype=work.compute) if keep else None  # (N, V)
            for start in range(0, count, rows):
                chunk = slice(start, start + rows)
                work.residual(chunk, stats.slice(chunk), out=None if kept is None else kept[chunk])
            mean_logit = work.mean_logit() if work.mean_is_linear else stats.mean_logit
        outputs = (stats.logps, stats.entropy, stats.top1, stats.log_square, mean_logit)
        _mark_fixed(ctx, outputs, options)
        if learns:
            ctx.save_for_backward(hidden, weight, bias, targets, kept, stats.lse, stats.entropy)
            ctx.options, ctx.compute, ctx.rows = options, work.compute, rows
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_logps, grad_entropy, *_):  # type: ignore[override]
        hidden, weight, bias, targets, kept, lse, entropy = ctx.saved_tensors
        options = ctx.options
        with torch.autocast(hidden.device.type, enabled=False):
            work = _HeadWork(hidden, weight, bias, targets, ctx.compute, options)
            grads = _HeadGrads(work, ctx.needs_input_grad)
            for start in range(0, hidden.shape[0], ctx.rows):
                chunk = slice(start, start + ctx.rows)
                residual = work.residual(chunk) if kept is None else kept[chunk]  # (n, V)
                if options.straight:
                    grads.add(chunk, residual, grad_logps[chunk] * (-options.head.scale / options.temperature))
                else:
                    some = (None if x is None else x[chunk] for x in (targets, grad_logps, grad_entropy, lse, entropy))
                    grads.add(chunk, logit_gradient(residual.to(work.wide), *some, options), None)
        return *grads.results(), None, None


def _mark_fixed(ctx, outputs: tuple[torch.Tensor | None, ...], options: _Options) -> None:
    """Only log-probabilities, and the entropy on request, carry a gradient."""
    fixed = outputs[2:] if options.grad_entropy else outputs[1:]
    ctx.mark_non_differentiable(*(x for x in fixed if x is not None))


def logit_gradient(
    residual: torch.Tensor,
    targets: torch.Tensor,
    grad_logps: torch.Tensor,
    grad_entropy: torch.Tensor | None,
    lse: torch.Tensor,
    entropy: torch.Tensor | None,
    options: _Options,
) -> torch.Tensor:
    """d loss / d raw logits, (n, V), where it is more than a multiple of the residual.

    With q = softmax(z / T): d log q_y / dz = (onehot - q) / T, d H / dz_v = -q_v (log q_v + H) / T, and a cap
    multiplies by d z / d raw, which is a function of z = T (log q + lse).
    """
    grad = residual * (grad_logps.unsqueeze(1) / -options.temperature)  # (n, V)
    if options.straight:
        return grad.mul_(options.head.scale)
    one = residual.new_ones(residual.shape[0], 1)
    q = residual.scatter_add(1, targets.unsqueeze(1), one).clamp_(min=torch.finfo(residual.dtype).tiny)
    log_q = q.log()  # (n, V)
    if options.grad_entropy and grad_entropy is not None and entropy is not None:
        bonus = (log_q + entropy.unsqueeze(1)).mul_(q)
        grad.sub_(bonus.mul_(grad_entropy.unsqueeze(1) / options.temperature))
    logits = log_q.add_(lse.unsqueeze(1)).mul_(options.temperature)
    return grad.mul_(options.head.slope(logits))


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
    ) -> None:
        self.hidden, self.bias, self.targets = hidden, bias, targets
        self.compute, self.wide = compute, torch.promote_types(compute, torch.float32)
        self.options = options
        weight = weight.to(compute)
        # Logits must not be rounded to half precision, and a CPU's products of it are: widen the matrix once, not per
        # chunk. The gradient of the states is rounded anyway, as a linear layer's is: it may come from units for that.
        on_cpu = weight.device.type == "cpu"
        self.weight = weight.to(self.wide) if on_cpu else weight  # (V, H)
        self.narrow = weight if on_cpu and compute == torch.bfloat16 and multiplies_bfloat16() else None  # (V, H)
        # The mean of linear logits needs one row, the mean row of the matrix; a cap needs them all.
        self.mean_is_linear = bool(options.want & Want.MEAN_LOGIT) and options.head.softcap is None
        self.statistics = options.want & ~Want.MEAN_LOGIT if self.mean_is_linear else options.want

    def rows(self, chunk: slice) -> torch.Tensor:
        return self.hidden[chunk].to(self.compute).to(self.weight.dtype)  # (n, H)

    def residual(
        self, chunk: slice, into: TokenStatistics | None = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """softmax - onehot of a chunk, (n, V) in the compute dtype; written to `out` if given."""
        rows = self.rows(chunk)
        if out is not None and out.dtype == self.wide:
            raw = torch.mm(rows, self.weight.t(), out=out)  # (n, V)
        else:
            raw = _product(rows, self.weight.t())  # (n, V)
        if self.bias is not None:
            raw.add_(self.bias.to(self.wide))
        logits = self.options.head.transform_(raw)
        if into is None:
            into = TokenStatistics.empty(rows.shape[0], Want(0), raw)
        residual = softmax_residual_(logits, self.targets[chunk], into, temperature=self.options.temperature)
        if out is None:
            return residual.to(self.compute)
        return out if out.dtype == self.wide else out.copy_(residual)

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
                product = _product(matrix.to(work.weight.dtype), work.weight)  # (n, H)
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
                share = _product(matrix.t(), rows)  # (V, H)
                self.weight = share if self.weight is None else self.weight.add_(share)
        if self.needs_bias:
            wide = matrix.to(work.wide)
            share = wide.sum(0) if column is None else wide.t().mv(column.squeeze(1))
            self.bias = share if self.bias is None else self.bias.add_(share)

    def results(self) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        weight, bias = self.weight, self.bias
        if self.needs_weight and weight is None:  # no token was scored
            weight = torch.zeros_like(self.work.weight)
        if self.needs_bias and bias is None:
            bias = torch.zeros_like(self.work.bias)  # type: ignore[arg-type]
        return self.hidden, weight, bias


def _through_module(hidden: torch.Tensor, targets: torch.Tensor, options: _Options) -> list[torch.Tensor | None]:
    """The same where the output layer must be called (LoRA, quantised): autograd sees one chunk at a time."""
    head = options.head
    vocab = getattr(head.module, "out_features", None)
    if vocab is None:
        with torch.no_grad():
            vocab = head.module(hidden[:1]).shape[-1]
    wide = torch.promote_types(hidden.dtype, torch.float32).itemsize
    # In flight per row: what the layer gives, its float copy, and the terms of the gradient.
    size = vocab * (hidden.dtype.itemsize + wide * (2 if options.straight else 6))
    rows = max(1, min(hidden.shape[0], options.budget // size))
    whole = rows >= hidden.shape[0]

    def chunk_scores(rows_hidden: torch.Tensor, rows_targets: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
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


class LogitScores(torch.autograd.Function):
    """(raw logits (n, V), targets) -> (logps, entropy, top1, log_square, mean_logit), keeping one (n, V) residual."""

    @staticmethod
    def forward(ctx, raw, targets, options: _Options):  # type: ignore[override]
        wide = torch.promote_types(raw.dtype, torch.float32)
        logits = options.head.transform_(raw.to(wide, copy=True))
        stats = TokenStatistics.empty(raw.shape[0], options.want, logits)
        residual = softmax_residual_(logits, targets, stats, temperature=options.temperature)
        outputs = (stats.logps, stats.entropy, stats.top1, stats.log_square, stats.mean_logit)
        _mark_fixed(ctx, outputs, options)
        ctx.save_for_backward(residual, targets, stats.lse, stats.entropy)
        ctx.options, ctx.dtype = options, raw.dtype
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_logps, grad_entropy, *_):  # type: ignore[override]
        residual, targets, lse, entropy = ctx.saved_tensors
        grad = logit_gradient(residual, targets, grad_logps, grad_entropy, lse, entropy, ctx.options)
        return grad.to(ctx.dtype), None, None
