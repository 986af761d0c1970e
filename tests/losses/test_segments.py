from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.losses import segments as s

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
LENGTHS = st.lists(st.integers(0, 4), min_size=1, max_size=6)


def tokens(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor, list[list[float]]]:
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    values = torch.sin(torch.arange(segment.numel(), dtype=torch.float64) + 1)
    return values, segment, [part.tolist() for part in values.split(lengths)]


@PROPERTY
@given(LENGTHS)
def test_against_loops(lengths):
    values, segment, rows = tokens(lengths)
    count = len(lengths)
    expected_sum = torch.tensor([sum(row) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(s.segment_sum(values, segment, count), expected_sum)
    expected_mean = torch.tensor([sum(row) / max(len(row), 1) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(s.segment_mean(values, segment, count), expected_mean)
    assert s.segment_lengths(segment, count).tolist() == lengths
    assert s.segment_positions(segment, count).tolist() == [i for row in rows for i in range(len(row))]
    assert s.segment_last(segment, count).tolist() == [i == len(row) - 1 for row in rows for i in range(len(row))]
    expected = [sum(row[i:]) for row in rows for i in range(len(row))]
    torch.testing.assert_close(s.reverse_cumsum(values, segment), torch.tensor(expected, dtype=torch.float64))


@PROPERTY
@given(LENGTHS)
def test_rows_and_back(lengths):
    values, segment, rows = tokens(lengths)
    padded = s.to_rows(values, segment, len(lengths), fill=-7.0)
    assert padded.shape == (len(lengths), max(lengths))
    for row, expected in zip(padded.tolist(), rows, strict=True):
        assert row == expected + [-7.0] * (max(lengths) - len(expected))
    assert torch.equal(s.from_rows(padded, segment), values)


@PROPERTY
@given(st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), min_size=1, max_size=5))
def test_mask_and_back(mask_rows):
    mask = torch.tensor(mask_rows)
    values = torch.arange(1.0, mask.numel() + 1).reshape(mask.shape)
    keep, segment = s.flatten(mask)
    assert segment.tolist() == [i for i, row in enumerate(mask_rows) for bit in row if bit]
    assert torch.equal(s.unflatten(values[keep], keep), values * mask)


def test_unflatten_has_a_gradient():
    flat = torch.ones(3, requires_grad=True)
    keep = torch.tensor([[True, False], [True, True]])
    (s.unflatten(flat, keep) * torch.tensor([[2.0, 3.0], [5.0, 7.0]])).sum().backward()
    assert flat.grad.tolist() == [2.0, 5.0, 7.0]


def test_vectors_are_averaged_too():
    hidden = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 5.0]])
    assert s.segment_mean(hidden, torch.tensor([0, 0, 2]), 3).tolist() == [[2.0, 4.0], [0.0, 0.0], [5.0, 5.0]]
