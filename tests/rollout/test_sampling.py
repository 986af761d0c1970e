from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from strop.errors import ConfigError
from strop.rollout.sampling import SamplingParams, keep_first, keep_top_p, seen_tokens, warp_logits, warp_logps


def random_logits(rows: int, vocab: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 1.5},
        {"max_new_tokens": True},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"stop_token_ids": (3, -1)},
        {"stop_strings": ("a", "")},
        {"seed": -1},
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_it(wrong: dict) -> None:
    name = next(iter(wrong))
    with pytest.raises(ConfigError, match=name):
        SamplingParams(**({"max_new_tokens": 4} | wrong))


def test_all_wrong_values_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        SamplingParams(max_new_tokens=0, temperature=-1, top_p=2)
    assert all(name in str(caught.value) for name in ("max_new_tokens", "temperature", "top_p"))


def test_lists_and_single_values_become_tuples() -> None:
    params = SamplingParams(max_new_tokens=1, stop_token_ids=[2, 3], stop_strings="END")  # type: ignore[arg-type]
    assert params.stop_token_ids == (2, 3)
    assert params.stop_strings == ("END",)
    assert SamplingParams(max_new_tokens=1, stop_token_ids=7).stop_token_ids == (7,)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"temperature": 1.7, "top_k": 30, "top_p": 0.9, "min_p": 0.05},
        {"repetition_penalty": 1.4, "temperature": 0.8, "top_p": 0.8},
    ],
)
def test_the_distribution_is_that_of_transformers(settings: dict) -> None:
    logits = random_logits(6, 400)
    ids = torch.randint(0, 400, (6, 9), generator=torch.Generator().manual_seed(1))
    params = SamplingParams(max_new_tokens=1, **settings)
    theirs = LogitsProcessorList()
    if params.repetition_penalty != 1:
        theirs.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.temperature != 1:
        theirs.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        theirs.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        theirs.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        theirs.append(MinPLogitsWarper(params.min_p))
    expected = theirs(ids, logits.clone()).log_softmax(-1)
    actual = warp_logps(logits, params, ids.tolist())
    assert torch.equal(actual.isinf(), expected.isinf())
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


def test_a_wide_nucleus_needs_more_than_the_first_candidates() -> None:
    logits = random_logits(3, 5000) * 0.01  # nearly uniform: 0.9 of the mass takes thousands of tokens
    keep = keep_top_p(logits, 0.9)
    probs = logits.softmax(-1)
    for row in range(3):
        order = probs[row].argsort(descending=True, stable=True)
        needed = int((probs[row][order].cumsum(0) < 0.9).sum()) + 1
        assert torch.equal(keep[row].nonzero()[:, 0], order[:needed].sort().values)


def test_equal_logits_are_kept_by_id() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
    assert keep_first(logits, 2).tolist() == [[False, True, True, False, False], [True, True, False, False, False]]
    per_row = keep_first(logits, torch.tensor([3, 4]))
    assert per_row.sum(-1).tolist() == [3, 4]
    assert keep_top_p(logits[1:], 0.5).tolist() == [[True, True, True, False, False]]  # 0.2, 0.4, 0.6


def test_greedy_is_a_point_mass_at_the_lowest_id_of_the_best() -> None:
    logps = warp_logps(torch.tensor([[0.0, 5.0, 5.0]]), SamplingParams(max_new_tokens=1, temperature=0))
    assert logps.tolist() == [[-math.inf, 0.0, -math.inf]]


def test_a_token_that_was_sampled_can_be_kept_by_force() -> None:
    logits = torch.tensor([[4.0, 3.0, 0.0]])
    params = SamplingParams(max_new_tokens=1, top_k=1)
    assert warp_logps(logits, params)[0, 2] == -math.inf
    kept = warp_logps(logits, params, always_keep=torch.tensor([2]))
    assert kept[0].exp().sum() == pytest.approx(1)
    assert kept[0, 2] == pytest.approx(-math.log(1 + math.exp(4.0)))


def test_gradients_flow_to_kept_logits_only() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]], requires_grad=True)
    warp_logps(logits, SamplingParams(max_new_tokens=1, top_k=2, temperature=0.5))[0, 0].backward()
    assert logits.grad is not None
    p = math.exp(2 * 2.0) / (math.exp(2 * 2.0) + math.exp(2 * 1.0))
    torch.testing.assert_close(logits.grad, torch.tensor([[2 * (1 - p), -2 * (1 - p), 0.0, 0.0]]))


def test_half_precision_logits_are_widened() -> None:
    assert warp_logits(torch.zeros(1, 3, dtype=torch.bfloat16), SamplingParams(max_new_tokens=1)).dtype == torch.float32


def test_a_repetition_penalty_needs_the_history() -> None:
    with pytest.raises(ConfigError, match="history"):
        warp_logps(torch.zeros(1, 3), SamplingParams(max_new_tokens=1, repetition_penalty=1.2))


def test_history_may_be_a_mask_of_seen_tokens() -> None:
    logits = random_logits(2, 10)
    params = SamplingParams(max_new_tokens=1, repetition_penalty=1.3)
    seen = seen_tokens([[1, 2, 2], [9]], 10, "cpu")
    assert seen.nonzero().tolist() == [[0, 1], [0, 2], [1, 9]]
    assert torch.equal(warp_logps(logits, params, seen), warp_logps(logits, params, [[1, 2, 2], [9]]))
