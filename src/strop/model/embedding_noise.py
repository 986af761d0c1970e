"""NEFTune: uniform noise on the embeddings of a training pass, scaled by the length of each sequence of its own.

    x_t <- x_t + u,   u ~ Uniform(-alpha / sqrt(L d), alpha / sqrt(L d))

L is the number of tokens of the sequence that token t is in, d the embedding size. In a flat row many sequences lie
side by side, so the row's own length says nothing. A prompt that several completions share takes the longest of them.
Source: arXiv 2310.05914, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from strop.records import Batch


def sequence_lengths(batch: Batch) -> torch.Tensor:
    """Tokens of the sequence that every input token belongs to, like `input_ids`; at least 1."""
    if batch.attention_mask is not None:
        return batch.attention_mask.sum(1, keepdim=True).clamp(min=1).expand_as(batch.input_ids)
    lengths = torch.ones_like(batch.input_ids)  # (1, T)
    for row in batch.segments.rows:
        whole = sum(span.length for span in row)
        for span in row:
            lengths[0, span.slice].clamp_(min=whole)
    return lengths


@contextmanager
def noisy_embeddings(model: Any, batch: Batch, alpha: float) -> Iterator[None]:
    """Within it, the model's embeddings of this batch get noise, if the model is in training mode and alpha > 0."""
    if not alpha or not model.training:
        yield
        return

    def add_noise(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        lengths = sequence_lengths(batch).to(output.device, output.dtype)[..., None]  # (rows, T, 1)
        scale = alpha / (lengths * output.shape[-1]).sqrt()
        return output + torch.empty_like(output).uniform_(-1, 1) * scale

    handle = model.get_input_embeddings().register_forward_hook(add_noise)
    try:
        yield
    finally:
        handle.remove()
