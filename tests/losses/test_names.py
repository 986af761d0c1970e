from __future__ import annotations

import subprocess
import sys

import pytest

from strop.errors import ConfigError
from strop.losses import names


def test_names_need_no_torch():
    code = "import sys, strop.losses.names; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, env={"PYTHONPATH": ":".join(sys.path)}).returncode
        == 0
    )


@pytest.mark.parametrize(
    ("options", "loss_types"),
    [
        (names.DPO_OPTIONS, names.DPO_LOSS_TYPES),
        (names.CPO_OPTIONS, names.CPO_LOSS_TYPES),
        (names.POLICY_OPTIONS, names.POLICY_LOSS_TYPES),
    ],
)
def test_options_belong_to_known_losses(options, loss_types):
    for option, supported in options.items():
        assert supported, option
        assert set(supported) <= set(loss_types), option


def test_every_policy_loss_has_an_aggregation():
    assert set(names.POLICY_AGGREGATION) == set(names.POLICY_LOSS_TYPES)
    assert set(names.POLICY_AGGREGATION.values()) <= set(names.AGGREGATIONS)


def test_unknown_name_says_the_nearest():
    with pytest.raises(ConfigError, match=r"loss_type is 'sigmod'.*Did you mean 'sigmoid'\?"):
        names.check_name("sigmod", names.DPO_LOSS_TYPES, "loss_type")


def test_option_without_a_meaning_says_whose_it_is():
    with pytest.raises(ConfigError, match=r"label_smoothing has no meaning for loss_type 'hinge'.*'robust'"):
        names.check_option(names.DPO_OPTIONS, "label_smoothing", "hinge")


@pytest.mark.parametrize(("value", "closed"), [(-0.1, True), (1.1, True), (1.0, False), (float("nan"), True)])
def test_out_of_range(value, closed):
    with pytest.raises(ConfigError, match="must lie in"):
        names.check_range(value, "beta", 0.0, 1.0, closed_high=closed)
    names.check_range(1.0, "beta", 0.0, 1.0, closed_high=True)
