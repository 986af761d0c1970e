from __future__ import annotations

import torch

from strop.losses import mean_of
from strop.records import Extreme, Mean
from strop.trainers.metrics import MetricLog


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
