from __future__ import annotations

import torch

from strop.engine import metrics
from strop.engine.metrics import MetricLog
from strop.losses import mean_of
from strop.losses.metrics import greatest_of, least_of
from strop.records import Extreme, Mean, PushedMean


def test_sums_are_divided_once():
    log = MetricLog()
    log.add({"a": Mean(torch.tensor(6.0), 3), "top": Extreme(1.0), "low": Extreme(1.0, largest=False)})
    log.add({"a": Mean(2.0, 1), "top": Extreme(5.0), "low": Extreme(-2.0, largest=False)})
    assert log.drain() == {"a": 2.0, "top": 5.0, "low": -2.0}
    assert log.drain() == {}


def test_a_metric_without_items_is_left_out():
    log = MetricLog()
    log.add({"none": mean_of(torch.tensor([]))})
    assert log.drain() == {}


def test_sums_survive_a_checkpoint():
    log, other = MetricLog(), MetricLog()
    log.add({"a": Mean(6.0, 3)})
    other.load(log.state())
    other.add({"a": Mean(0.0, 1)})
    assert other.drain() == {"a": 1.5}


def test_rows_of_short_steps_do_not_count_more():
    log = MetricLog()
    for total, count in ((8.0, 4.0), (5.0, 1.0), (0.0, 0.0)):
        log.add({"a": Mean(total, count)})
    assert log.drain() == {"a": 13 / 5}


def test_all_ranks_are_counted(monkeypatch):
    log = MetricLog()
    log.add({"a": Mean(2.0, 1.0), "b": Extreme(1.0)})
    theirs = {"0sum:a": 7.0, "1sum:a": 2.0, "0max:b": 5.0, "1max:b": 1.0, "0sum:c": 1.0, "1sum:c": 4.0}
    monkeypatch.setattr(metrics, "gather_numbers", lambda ours, world: [ours, theirs])
    assert log.drain(world_size=2) == {"a": 3.0, "b": 5.0, "c": 0.25}


def test_what_a_reward_function_names_never_takes_the_place_of_the_runs_own():
    log = MetricLog()
    log.add({"loss": Mean(4.0, 2.0), "mine": PushedMean(3.0, 1.0)})
    pushed = ("loss", "step", "eval_loss", "train_loss")
    log.add({name: PushedMean(99.0, 1.0) for name in pushed})
    assert log.drain() == {"loss": 2.0, "mine": 3.0, **{f"log_metric/{name}": 99.0 for name in pushed}}


def test_extremes_of_nothing_are_left_out():
    log, nobody = MetricLog(), torch.tensor([False, False])
    values = torch.tensor([3.0, 5.0])
    log.add({"most": greatest_of(values, nobody), "least": least_of(values, nobody)})
    assert log.drain() == {}
    log.add({"most": greatest_of(values, nobody), "least": least_of(values, nobody)})
    log.add({"most": greatest_of(values, values < 4), "least": least_of(values, values > 4)})
    assert log.drain() == {"most": 3.0, "least": 5.0}


def test_extremes_of_numbers_and_tensors():
    log = MetricLog()
    for value in (2.0, torch.tensor(7.0), 1.5, torch.tensor(-1.0, dtype=torch.float64)):
        log.add({"most": Extreme(value), "least": Extreme(value, largest=False)})
    assert log.drain() == {"most": 7.0, "least": -1.0}
