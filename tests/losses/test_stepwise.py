from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import ConfigError
from strop.losses import last_steps, solution_scores, step_probabilities, stepwise_loss

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
STEPS = st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.integers(0, 1)), min_size=1, max_size=6)


@PROPERTY
@given(STEPS)
def test_hard_labels_are_the_two_class_cross_entropy(steps):
    logits = torch.tensor([[bad, good] for bad, good, _ in steps], dtype=torch.float64)
    labels = torch.tensor([c for *_, c in steps])
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    for kind in (labels, labels.bool(), labels.double()):
        torch.testing.assert_close(stepwise_loss(logits, kind), expected)
    torch.testing.assert_close(stepwise_loss(logits.flip(1), 1 - labels), expected)
    torch.testing.assert_close(step_probabilities(logits), logits.softmax(1)[:, 1])


@PROPERTY
@given(STEPS, st.floats(0, 1))
def test_soft_labels_mix_the_hard_ones(steps, c):
    logits = torch.tensor([[bad, good] for bad, good, _ in steps], dtype=torch.float64)
    ones = torch.ones(len(steps))
    mixed = c * stepwise_loss(logits, ones) + (1 - c) * stepwise_loss(logits, 0 * ones)
    torch.testing.assert_close(stepwise_loss(logits, c * ones.double()), mixed)


def test_equal_logits():
    assert stepwise_loss(torch.zeros(2, 2), torch.tensor([0, 1])).tolist() == pytest.approx([math.log(2)] * 2)


def test_last_steps_and_solution_scores():
    segment = torch.tensor([0, 0, 2, 2, 2])
    probabilities = torch.tensor([0.5, 0.8, 0.9, 0.1, 0.5])
    assert last_steps(segment, 3).tolist() == [False, True, False, False, True]
    assert solution_scores(probabilities, segment, 3).tolist() == pytest.approx([0.5, 1.0, 0.1])
    assert solution_scores(probabilities, segment, 3, mode="product").tolist() == pytest.approx([0.4, 1.0, 0.045])
    assert solution_scores(probabilities[:0], segment[:0], 2).tolist() == [1.0, 1.0]
    with pytest.raises(ConfigError, match="mode is 'mean'"):
        solution_scores(probabilities, segment, 3, mode="mean")
