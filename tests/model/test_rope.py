"""Rotary positions that depend on the length of the row: a row's numbers are those of the row alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.support.random_trees import random_examples

from strop.errors import ConfigError
from strop.model import layout_of, score
from strop.records import Example
from strop.testing.tiny import tiny_model

ROPE: dict[str, dict[str, Any]] = {
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 16,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "factor": 4.0,
    },
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
}


@pytest.fixture(params=ROPE)
def model(request: Any) -> Any:
    longest = 16 if request.param == "dynamic" else 64
    return tiny_model("llama", rope_parameters=ROPE[request.param], max_position_embeddings=longest)


def alone(model: Any, examples: list[Example], row_logps: Any) -> torch.Tensor:
    """Every completion under a model that has seen no other row."""
    rows = [Example(e.prompt_ids, [ids]) for e in examples for ids in e.completions]
    return torch.cat([row_logps(copy.deepcopy(model), [row]) for row in rows])


def test_short_and_long_neighbours_change_nothing(model: Any, row_logps: Any) -> None:
    examples = [
        *random_examples(0, trees=2, prompt=(3, 5), completions=(2, 2), length=(2, 4)),
        *random_examples(1, trees=2, prompt=(10, 12), completions=(2, 2), length=(4, 9)),
        Example(list(range(3, 13)), [list(range(7))]),  # the last token alone takes it over the limit
        Example(list(range(3, 13)), [list(range(6))]),
    ]
    right = alone(model, examples, row_logps)
    for _ in range(2):  # `dynamic` remembers the longest row that it saw
        assert torch.allclose(score(model, examples).logps, right, atol=1e-9)
    apart = torch.cat([score(model, [e]).logps for e in reversed(examples)][::-1])
    assert torch.allclose(apart, right, atol=1e-9)


def test_short_rows_share_prompts_and_long_ones_refuse_to(model: Any) -> None:
    choice = layout_of(model)
    assert choice.name == "tree" and choice.up_to == 16 and "above 16 tokens" in choice.reason
    score(model, [Example(list(range(10)), [[1, 2], [3]])], layout="tree")
    with pytest.raises(ConfigError, match=r"layout='tree'.*a row has 18 tokens"):
        score(model, [Example(list(range(10)), [[1] * 8, [3]])], layout="tree")
