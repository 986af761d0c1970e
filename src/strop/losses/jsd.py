"""Generalised Jensen-Shannon divergence between teacher and student, from logits or, in bounded memory, from hidden
states."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from strop.losses.names import check_range
from strop.losses.numerics import widen

LOG_FLOOR = -1e4
"""Log-probs are not taken below this many nats, so that a token of probability 0 contributes 0 and not 0 * inf."""


def _check(beta: float, temperature: float) -> None:
    check_range(beta, "beta", 0.0, 1.0, closed_high=True)
    check_range(temperature, "temperature", torch.finfo(torch.float32).tiny, math.inf)


def _log_probs(logits: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(widen(logits) / temperature, dim=-1).clamp(min=LOG_FLOOR)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def _log_mixture(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    return torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))


def jsd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    scale_by_t2: bool = False,
) -> Tensor:
    """Divergence of each token's two distributions, p_T of the teacher and p_S of the student.

    beta KL(p_T || M) + (1 - beta) KL(p_S || M), M = beta p_T + (1 - beta) p_S; at the ends beta = 0 is
    KL(p_T || p_S) and beta = 1 is KL(p_S || p_T). The ends are no limits: the formula goes to 0 there.

    Args:
        student_logits: (N, V).
        teacher_logits: (N, V); no gradient flows into them.
        beta: in [0, 1].
        temperature: T > 0, divides both logits.
        scale_by_t2: multiply by T^2, which keeps the size of gradients as T grows.

    Returns:
        (N,) nats, >= 0; a step's loss is the mean over its tokens.

    Raises:
        ConfigError: beta or temperature out of range.

    Differs from the paper: neither it nor TRL multiplies by T^2, and TRL's `temperature` never reaches the divergence.

    Source: arXiv 2306.13649, Eq. 1.
    """
    _check(beta, temperature)
    student = _log_probs(student_logits, temperature)
    teacher = _log_probs(teacher_logits.detach(), temperature)
    loss = _divergence(student, teacher, beta)
    return loss * temperature**2 if scale_by_t2 else loss


def _divergence(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """The divergence from log-probs, (N, V) -> (N,)."""
    if beta == 0.0:
        return _kl(teacher, student)
    if beta == 1.0:
        return _kl(student, teacher)
    mixture = _log_mixture(student, teacher, beta)
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _divergence_grad(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """d divergence / d (student logits / T), (N, V), from log-probs.

    beta = 0: p_S - p_T. Else (1 - beta) p_S (log(p_S / M) - KL(p_S || M)), where M is p_T and the factor 1 at beta = 1.
    """
    probs = student.exp()
    if beta == 0.0:
        return probs - teacher.exp()
    log_ratio = student - (teacher if beta == 1.0 else _log_mixture(student, teacher, beta))
    factor = 1.0 if beta == 1.0 else 1 - beta
    return factor * probs * (log_ratio - (probs * log_ratio).sum(dim=-1, keepdim=True))


class _FusedJSD(torch.autograd.Function):
    """Keeps only its inputs; backward computes the logits again. Weight gradients add up in float32 or wider."""

    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: Tensor,
        student_weight: Tensor,
        student_bias: Tensor | None,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        teacher_bias: Tensor | None,
        options: _Options,
    ) -> Tensor:
        ctx.save_for_backward(student_hidden, student_weight, student_bias)
        ctx.teacher = (teacher_hidden, teacher_weight, teacher_bias)
        ctx.options = options
        chunks = _chunks((student_hidden, student_weight, student_bias), ctx.teacher, options)
        parts = [_divergence(student, teacher, options.beta) for _, student, teacher in chunks]
        return torch.cat(parts) if parts else widen(student_hidden.new_zeros(0))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        hidden, weight, bias = ctx.saved_tensors
        options: _Options = ctx.options
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        wide = widen(hidden.new_empty(0)).dtype
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if need_bias else None
        head = weight.to(options.dtype)
        for rows, student, teacher in _chunks((hidden, weight, bias), ctx.teacher, options):
            scale = grad_outputs[0][rows] / options.temperature  # (c,)
            grad = _divergence_grad(student, teacher, options.beta) * scale[:, None]  # (c, V)
            del student, teacher
            if grad_hidden is not None:
                grad_hidden[rows] = (grad.to(options.dtype) @ head).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight.addmm_(grad.t(), hidden[rows].to(wide))
            if grad_bias is not None:
                grad_bias += grad.sum(dim=0)
        grads = [grad_hidden, grad_weight, grad_bias]
        inputs = [hidden, weight, bias]
        student_grads = [None if g is None else g.to(x.dtype) for g, x in zip(grads, inputs, strict=True)]
        return (*student_grads, None, None, None, None)


class _Options(NamedTuple):
    beta: float
    temperature: float
    chunk: int
    dtype: torch.dtype  # of the matrix products


_Head = tuple[Tensor, Tensor, Tensor | None]  # hidden (N, H), weight (V, H), bias (V,)


def _chunks(student: _Head, teacher: _Head, options: _Options) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows and both models' log-probs (c, V), one chunk of tokens after the other."""
    models = []
    for hidden, weight, bias in (student, teacher):
        models.append((hidden, weight.to(options.dtype), None if bias is None else bias.to(options.dtype)))
    for start in range(0, student[0].shape[0], options.chunk):
        rows = slice(start, start + options.chunk)
        log_probs = [
            _log_probs(torch.nn.functional.linear(hidden[rows].to(options.dtype), weight, bias), options.temperature)
            for hidden, weight, bias in models
        ]
        yield rows, log_probs[0], log_probs[1]


def fused_jsd(
    student_hidden: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    scale_by_t2: bool = False,
    chunk: int = 256,
) -> Tensor:
    """`jsd_loss` of the logits hidden @ weight.T + bias of both models, without ever holding them for all tokens.

    Logits exist for `chunk` tokens at a time, in forward and in backward, which computes them again. Values and
    gradients equal those of `jsd_loss`.

    Args:
        student_hidden: (N, H) final hidden states, after the last norm.
        student_weight: (V, H) of the output head.
        student_bias: (V,), or None.
        teacher_hidden, teacher_weight, teacher_bias: the teacher's, (N, H_T), (V, H_T), (V,) or None; no gradient.
        beta, temperature, scale_by_t2: see `jsd_loss`.
        chunk: tokens at a time, >= 1.

    Returns:
        (N,) nats, float32 or wider, with gradients to the student's hidden states, weight and bias.

    Raises:
        ConfigError: beta, temperature or chunk out of range.
    """
    _check(beta, temperature)
    check_range(chunk, "chunk", 1, math.inf)
    device = student_hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else student_hidden.dtype
    loss = _FusedJSD.apply(
        student_hidden,
        student_weight,
        student_bias,
        teacher_hidden.detach(),
        teacher_weight.detach(),
        None if teacher_bias is None else teacher_bias.detach(),
        _Options(beta, temperature, chunk, dtype),
    )
    return loss * temperature**2 if scale_by_t2 else loss
