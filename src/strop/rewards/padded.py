"""Right-padded batches by token budget, and the final hidden states of a transformers model on them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch


def batches_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices in batches of at most `max_tokens` tokens each, padding included; sequences of like length together.

    A sequence longer than `max_tokens` is a batch of its own.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def right_padded(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and 0/1 attention mask, (S, T) each. The padding id is 0: the mask hides it, whatever it means."""
    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.long)  # (S, T)
    mask = torch.zeros_like(ids)  # (S, T)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.as_tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids.to(device), mask.to(device)


def final_hidden(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Hidden states after the last layer and norm, (S, T, H), without running any head."""
    backbone = getattr(model, model.base_model_prefix)
    return backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """No gradients and no dropout inside; the training flag is put back afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device
