from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from strop.errors import RolloutError
from strop.rollout.draw import draw, fresh_seed, row_uniforms, sample, take_first
from strop.rollout.sampling import SamplingParams, warp_logps


def test_the_token_is_the_first_whose_cumulative_probability_exceeds_the_uniform() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 300, generator=generator, dtype=torch.float64) * 2  # 300 is not a multiple of the block
    uniforms = torch.rand(40, generator=generator, dtype=torch.float64)
    ids, logps = draw(logits, uniforms)
    cumulative = logits.softmax(-1).cumsum(-1)
    assert torch.equal(ids, (cumulative <= uniforms[:, None]).sum(-1))
    torch.testing.assert_close(logps, logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("vocab", [1, 5, 128, 129, 1000])
@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-53])
def test_edges_of_the_unit_interval_give_tokens_of_positive_probability(vocab: int, u: float) -> None:
    logits = torch.full((2, vocab), -math.inf)
    logits[0, vocab // 2] = 1.0
    logits[1, [0, vocab - 1]] = torch.tensor([0.5, 0.5])
    ids, logps = draw(logits, torch.full((2,), u, dtype=torch.float64))
    assert ids[0] == vocab // 2
    assert ids[1] in (0, vocab - 1)
    assert logps.isfinite().all()


def test_rounding_at_the_end_of_a_block_does_not_reach_excluded_tokens() -> None:
    """The float32 sum of a block may exceed the float64 sum that is searched; what follows in the block is excluded."""
    logits = torch.randn(200, 128, generator=torch.Generator().manual_seed(0))
    logits[:, 100:] = -math.inf
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    assert (weights.sum(-1).double() > weights.double().sum(-1)).any()
    ids, logps = draw(logits, torch.full((200,), 1 - 2**-53, dtype=torch.float64))
    assert int(ids.max()) < 100 and logps.isfinite().all()


def test_rounding_at_the_start_of_a_block_does_not_reach_excluded_tokens() -> None:
    """`cumulative - sum` of a block may exceed the target in it by a rounding; the block's first token is excluded."""
    found = 0
    for w in np.random.Generator(np.random.Philox(0)).random(200):
        total = w + 1.0
        before, u = total - 1.0, float(w / total)
        if not w <= u * total < before:
            continue
        found += 1
        logits = torch.full((1, 256), -math.inf, dtype=torch.float64)
        logits[0, 5], logits[0, 200] = math.log(w), 0.0
        if math.exp(math.log(w)) != w:
            continue
        ids, _ = draw(logits, torch.tensor([u], dtype=torch.float64))
        assert ids.tolist() == [200]
    assert found > 3


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.6}, {"top_k": 4}, {"top_p": 0.7}, {"min_p": 0.3}, {"temperature": 1.5, "top_k": 7}],
)
def test_sampled_frequencies_match_the_distribution(settings: dict) -> None:
    params = SamplingParams(max_new_tokens=1, **settings)
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(3)).expand(20_000, -1)
    _, ids, logps = sample(logits, params, None, row_uniforms(5, 0, 0, 20_000))  # type: ignore[arg-type]
    expected = warp_logps(logits[:1], params)[0]
    torch.testing.assert_close(logps.float(), expected[ids], atol=1e-6, rtol=0)
    kept = expected.isfinite()
    counts = torch.bincount(ids, minlength=12)
    assert counts[~kept].sum() == 0
    wanted = expected[kept].exp() * 20_000
    chi_square = float(((counts[kept] - wanted) ** 2 / wanted).sum())
    # 99.9 % quantile of chi-square with 11 degrees of freedom is 31.3; fewer kept tokens have a smaller one.
    assert chi_square < 31.3


def test_uniforms_belong_to_the_row() -> None:
    a = row_uniforms(7, 1, 2, 50)
    assert np.array_equal(a, row_uniforms(7, 1, 2, 50))
    assert np.array_equal(a[:10], row_uniforms(7, 1, 2, 10))
    for other in ((8, 1, 2), (7, 2, 2), (7, 1, 3), (7, 2, 1)):
        assert not np.array_equal(a, row_uniforms(*other, 50))
    assert a.min() >= 0 and a.max() < 1


def test_fresh_seeds_differ() -> None:
    assert fresh_seed() != fresh_seed()


def test_greedy_takes_the_lowest_id_and_reports_a_point_mass() -> None:
    ids, logps = take_first(torch.tensor([[1.0, 4.0, 4.0], [2.0, 0.0, 1.0]]))
    assert ids.tolist() == [1, 0]
    assert logps.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_logits_that_are_not_finite_are_an_error(bad: float, settings: dict) -> None:
    logits = torch.zeros(3, 8)
    logits[1, 4] = bad
    with pytest.raises(RolloutError, match=r"row 1 .*1 of 3 rows"):
        sample(logits, SamplingParams(max_new_tokens=1, **settings), None, [0.1, 0.2, 0.3])


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.7}, {"top_k": 5, "min_p": 0.01}, {"temperature": 0}])
def test_a_row_draws_what_it_draws_alone(settings: dict) -> None:
    params = SamplingParams(max_new_tokens=1, **settings)
    logits = torch.randn(9, 700, generator=torch.Generator().manual_seed(8))
    uniforms = row_uniforms(5, 0, 0, 9).tolist()
    together = sample(logits, params, None, uniforms)
    alone = [sample(logits[i : i + 1], params, None, uniforms[i : i + 1]) for i in range(9)]
    assert together.tokens.tolist() == [int(one.tokens) for one in alone]
    assert together.logps.tolist() == [float(one.logps) for one in alone]
