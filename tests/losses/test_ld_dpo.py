from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strop.errors import ConfigError
from strop.losses import ld_logps, segment_sum, shared_lengths


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=6).filter(lambda x: len(x) % 2 == 0), st.floats(0, 1))
def test_against_loops(lengths, alpha):
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    logps = -torch.arange(1.0, segment.numel() + 1, dtype=torch.float64)
    rows = logps.split(lengths)
    shared = shared_lengths(torch.tensor(lengths))
    expected = []
    for index, row in enumerate(rows):
        n = min(lengths[index - index % 2], lengths[index - index % 2 + 1])
        assert int(shared[index]) == n
        expected.append(row[:n].sum() + alpha * row[n:].sum())
    torch.testing.assert_close(ld_logps(logps, segment, len(lengths), shared, alpha=alpha), torch.stack(expected))
    plain = segment_sum(logps, segment, len(lengths))
    torch.testing.assert_close(ld_logps(logps, segment, len(lengths), shared, alpha=1.0), plain)
    same = torch.full((len(lengths),), max(lengths))
    torch.testing.assert_close(ld_logps(logps, segment, len(lengths), same, alpha=alpha), plain)


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ConfigError, match="ld_alpha"):
        ld_logps(torch.zeros(1), torch.tensor([0]), 1, torch.tensor([1]), alpha=alpha)
