"""Vectors computed without torch, and the fixtures that their pairs and groups are made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ValueAndGrads = Callable[..., tuple[float, list[torch.Tensor]]]


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    return json.loads((Path(__file__).parents[1] / "vectors.json").read_text(encoding="utf-8"))


def _tokens(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor([token for row in rows for token in row], dtype=torch.float64)


@pytest.fixture(scope="session")
def pairs(vectors: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Fixture P as float64 tensors: summed log-probs and lengths of three pairs, and the flat tokens behind them."""
    source = vectors["fixture_P"]
    made: dict[str, torch.Tensor] = {}
    for name, key in {"chosen": "PC", "rejected": "PR", "ref_chosen": "RC", "ref_rejected": "RR"}.items():
        made[name] = torch.tensor([sum(row) for row in source[key]], dtype=torch.float64)
        made[f"{name}_tokens"] = _tokens(source[key])
    for name, key in {"chosen": "PC", "rejected": "PR"}.items():
        made[f"{name}_lengths"] = torch.tensor([len(row) for row in source[key]], dtype=torch.float64)
        made[f"{name}_segment"] = torch.tensor([i for i, row in enumerate(source[key]) for _ in row])
        made[f"{name}_square"] = _tokens(source[key.replace("P", "Q", 1)])
    return made


@pytest.fixture(scope="session")
def group(vectors: dict[str, Any]) -> dict[str, Any]:
    """Fixture G as flat float64 tokens: three completions of one prompt."""
    source = vectors["fixture_G"]
    made: dict[str, Any] = {
        name: _tokens(source[key]) for name, key in {"logps": "new", "old_logps": "old", "ref_logps": "ref"}.items()
    }
    made["segment"] = torch.tensor([i for i, row in enumerate(source["new"]) for _ in row])
    made["rewards"] = torch.tensor(source["rewards"], dtype=torch.float64)
    made["sampler_logps"] = torch.tensor([-1.2, -0.5, -0.5, -2.5, -0.2, -2.1], dtype=torch.float64)
    return made


@pytest.fixture(scope="session")
def value_and_grads() -> ValueAndGrads:
    """value_and_grads(f, *inputs) -> the value of the scalar f(*inputs), and its gradient to every input."""

    def run(f: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        value = f(*leaves)
        grads = torch.autograd.grad(value, leaves, allow_unused=True)
        return float(value.detach()), [
            torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)
        ]

    return run
