"""The divergence between student and teacher from hidden states and output layers, in bounded memory."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from strop.losses import fused_jsd, jsd_loss
from strop.model import LMHead


def divergence(
    student_hidden: torch.Tensor,
    student: LMHead,
    teacher_hidden: torch.Tensor,
    teacher: LMHead,
    *,
    chunk: int,
    **options: Any,
) -> torch.Tensor:
    """JSD of every token, (N,), from hidden states (N, H) and output layers of student and teacher.

    Plain linear layers take the fused form, their logit scale moved into the hidden state. Others (adapters on the
    head, quantised weights, soft-capped logits) are called chunk by chunk, and again in the backward pass.
    """
    if student.is_plain and teacher.is_plain and student.softcap is None and teacher.softcap is None:
        layers: Any = (student.module, teacher.module)
        if all(layer.bias is None or head.scale == 1.0 for layer, head in zip(layers, (student, teacher), strict=True)):
            return fused_jsd(
                student_hidden * student.scale, layers[0].weight, layers[0].bias,
                teacher_hidden * teacher.scale, layers[1].weight, layers[1].bias,
                chunk=chunk, **options,
            )  # fmt: skip

    def part(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = logits(teacher, other)
        return jsd_loss(logits(student, own), target, **options)

    pieces = [
        checkpoint(part, student_hidden[i : i + chunk], teacher_hidden[i : i + chunk], use_reentrant=False)
        for i in range(0, len(student_hidden), chunk)
    ]
    return torch.cat(pieces) if pieces else student_hidden.sum(1)


def logits(head: LMHead, hidden: torch.Tensor) -> torch.Tensor:
    """The model's logits (n, V) of hidden states (n, H)."""
    raw = head.module(hidden) * head.scale
    return raw if head.softcap is None else head.softcap * torch.tanh(raw / head.softcap)
