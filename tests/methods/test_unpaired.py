"""The advice on weights when one class of labelled rows outnumbers the other."""

from __future__ import annotations

import re

import pytest

from strop.testing.cases import make_trainer, rows_for


def kto(folder, good, bad, **weights):
    rows = [{**row, "label": index < good} for index, row in enumerate(rows_for("kto", good + bad))]
    return make_trainer("kto", folder, rows=rows, **weights)


def test_imbalance_is_named_with_weights_that_fit(tmp_path, capsys):
    kto(tmp_path, 9, 3)
    said = capsys.readouterr().out
    assert "9 desirable and 3 undesirable rows" in said and "3.00; 1 to 1.5 is advised" in said
    low, high = map(float, re.search(r"between (\S+) and (\S+)\.\s", said).groups())
    assert (low, high) == pytest.approx((0.33, 0.5))
    kto(tmp_path, 9, 3, desirable_weight=0.4)
    assert "advised" not in capsys.readouterr().out


@pytest.mark.parametrize(("good", "bad"), [(4, 4), (6, 4), (5, 0)])
def test_balance_and_a_class_alone_say_nothing(good, bad, tmp_path, capsys):
    kto(tmp_path, good, bad)
    assert "advised" not in capsys.readouterr().out
