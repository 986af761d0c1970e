from __future__ import annotations

import numpy as np

from strop.records import Mean
from strop.rewards.table import RewardCounts, RewardTable

NAN = float("nan")


def make():
    return RewardTable(
        values=np.array([[1.0, NAN, 3.0, NAN], [0.5, 2.0, NAN, NAN]]),
        names=["first", "second"],
        weights=np.array([2.0, 10.0]),
        counts={
            "first": RewardCounts(rows=4, abstained=1, errors=1),
            "second": RewardCounts(rows=4, abstained=2),
        },
        metrics={"pushed": Mean(3.0, 2.0)},
    )


def test_total_is_the_weighted_sum_over_those_that_did_not_abstain():
    np.testing.assert_array_equal(make().total(), [7.0, 20.0, 6.0, NAN])


def test_a_weight_of_zero_still_counts_as_present():
    table = make()
    table.weights = np.array([0.0, 0.0])
    np.testing.assert_array_equal(table.total(), [0.0, 0.0, 0.0, NAN])


def test_metrics_are_sums_and_counts():
    logged = make().log_metrics()
    assert logged == {
        "pushed": Mean(3.0, 2.0),
        "rewards/first/mean": Mean(4.0, 2.0),
        "rewards/first/abstained_fraction": Mean(1.0, 4.0),
        "rewards/first/errors_fraction": Mean(1.0, 4.0),
        "rewards/second/mean": Mean(2.5, 2.0),
        "rewards/second/abstained_fraction": Mean(2.0, 4.0),
    }


def test_an_empty_batch_has_an_empty_total():
    table = RewardTable(np.zeros((1, 0)), ["f"], np.ones(1), {"f": RewardCounts()})
    assert table.total().shape == (0,)
    assert table.log_metrics()["rewards/f/mean"] == Mean(0.0, 0.0)
