from __future__ import annotations

import math

import pytest
import torch

from strop.rollout import attention
from strop.rollout.attention import add_sink, attend, causal, merge


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def plain(query, key, value, scale, bias=0.0, softcap=None):
    scores = query @ key.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + bias
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attend_is_softmax_attention(flash: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_flash_on_cpu_works", lambda: flash)
    query, key, value = tensors((2, 3, 4, 8), (2, 3, 7, 8), (2, 3, 7, 8), dtype=dtype)
    bias = torch.zeros(2, 1, 1, 7, dtype=dtype)
    bias[1, ..., 5:] = -math.inf
    out, lse = attend(query, key, value, scale=0.3, bias=bias)
    expected, expected_lse = plain(query, key, value, 0.3, bias)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse.to(dtype), expected_lse)


def test_this_torch_has_the_flash_operator() -> None:
    attention._flash_on_cpu_works.cache_clear()
    assert attention._flash_on_cpu_works()


def test_softcap_bends_the_scores() -> None:
    query, key, value = tensors((1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 4))
    out, lse = attend(query, key, value, scale=2.0, softcap=1.5)
    expected, expected_lse = plain(query, key, value, 2.0, softcap=1.5)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)


def test_a_query_without_keys_gives_nothing_and_merges_away() -> None:
    query, key, value = tensors((1, 1, 2, 4), (1, 1, 3, 4), (1, 1, 3, 4))
    bias = torch.zeros(1, 1, 2, 3, dtype=torch.float64)
    bias[:, :, 1] = -math.inf
    out, lse = attend(query, key, value, scale=1.0, bias=bias, exact_empty=True)
    assert out[0, 0, 1].tolist() == [0.0] * 4 and lse[0, 0, 1] == -math.inf
    other, other_lse = attend(query, key, value, scale=1.0)
    merged, merged_lse = merge(other, other_lse, out, lse)
    torch.testing.assert_close(merged[0, 0, 1], other[0, 0, 1])
    torch.testing.assert_close(merged_lse[0, 0, 1], other_lse[0, 0, 1])


def test_merging_two_parts_is_attention_over_both() -> None:
    query, key, value = tensors((2, 2, 3, 8), (2, 2, 9, 8), (2, 2, 9, 8))
    whole, whole_lse = attend(query, key, value, scale=0.5)
    first = attend(query, key[:, :, :4], value[:, :, :4], scale=0.5)
    second = attend(query, key[:, :, 4:], value[:, :, 4:], scale=0.5)
    merged, lse = merge(*first, *second)
    torch.testing.assert_close(merged, whole)
    torch.testing.assert_close(lse, whole_lse)


def test_a_sink_takes_its_share_of_the_softmax() -> None:
    query, key, value = tensors((1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 4))
    sink = torch.tensor([0.7, -1.0], dtype=torch.float64)
    out, lse = attend(query, key, value, scale=1.0)
    scores = query @ key.transpose(-1, -2)
    joined = torch.cat([scores, sink[None, :, None, None].expand(1, 2, 3, 1)], -1).softmax(-1)[..., :-1]
    torch.testing.assert_close(add_sink(out, lse, sink[None, :, None]), joined @ value)


@pytest.mark.parametrize("chunk", [3, 512])
@pytest.mark.parametrize(("window", "softcap", "sink"), [(None, None, 0), (4, None, 0), (None, 2.0, 0), (4, None, 1)])
def test_causal_attention(window, softcap, sink, chunk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_CHUNK", chunk)
    query, key, value = tensors((1, 4, 10, 8), (1, 2, 10, 8), (1, 2, 10, 8))
    sinks = torch.tensor([0.1, -0.5, 1.0, 2.0], dtype=torch.float64) if sink else None
    out = causal(query, key, value, scale=0.4, window=window, softcap=softcap, sink=sinks)
    q, k = torch.arange(10)[:, None], torch.arange(10)[None]
    hidden = (k > q) if window is None else (k > q) | (k <= q - window)
    bias = torch.zeros(10, 10, dtype=torch.float64).masked_fill(hidden, -math.inf)
    wide_key, wide_value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    expected, lse = plain(query, wide_key, wide_value, 0.4, bias, softcap)
    if sinks is not None:
        expected = add_sink(expected, lse, sinks[None, :, None])
    torch.testing.assert_close(out, expected)
