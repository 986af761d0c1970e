"""Shared by the model tests: one model per architecture, and the oracle, plain transformers one row at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from strop.records import Example
from strop.testing.tiny import tiny_model

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_of() -> Callable[..., nn.Module]:
    """`model_of(arch, dtype=...)`: a tiny model, made once; tests must leave it as they found it."""
    return functools.cache(tiny_model)


def _rows(model: nn.Module, examples: Sequence[Example]) -> list[tuple[Example, int, torch.Tensor]]:
    """(example, completion, logits (P + C, V)) of every completion, each run on its own, without strop."""
    found = []
    for example in examples:
        for index, ids in enumerate(example.completions):
            logits = model(input_ids=torch.tensor([example.prompt_ids + ids]), use_cache=False).logits[0]
            found.append((example, index, logits))
    return found


@pytest.fixture(scope="session")
def row_logits() -> Callable[..., torch.Tensor]:
    """`row_logits(model, examples)`: (N, V) logits that predict the scored tokens, and (N,) their targets."""

    def run(model: nn.Module, examples: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        logits, targets = [], []
        for example, index, row in _rows(model, examples):
            start = len(example.prompt_ids)
            for t, flag in enumerate(example.mask(index)):
                if flag and start + t > 0:
                    logits.append(row[start + t - 1])
                    targets.append(example.completions[index][t])
        return torch.stack(logits), torch.tensor(targets)

    return run


@pytest.fixture(scope="session")
def row_logps(row_logits: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`row_logps(model, examples, temperature=1.0)`: (N,) log-probabilities, each completion run on its own."""

    def run(model: nn.Module, examples: Sequence[Example], temperature: float = 1.0) -> torch.Tensor:
        logits, targets = row_logits(model, examples)
        return (logits / temperature).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)

    return run


@pytest.fixture(scope="session")
def grads_of() -> Callable[..., torch.Tensor]:
    """`grads_of(model, values)`: all gradients of a fixed weighted sum of the values, as one vector."""

    def run(model: nn.Module, values: torch.Tensor) -> torch.Tensor:
        weights = torch.linspace(-1.0, 1.3, values.numel(), dtype=values.dtype)
        parameters = [p for p in model.parameters() if p.requires_grad]
        grads = torch.autograd.grad((values.reshape(-1) * weights).sum(), parameters, allow_unused=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(grads, parameters, strict=True)]
        )

    return run
