"""The profile of a step: every operator counts once, in the part that it is for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from benchmarks.profile import part_of, shares


@pytest.mark.parametrize(
    ("operator", "part"),
    [
        ("aten::mm", "matrix products"),
        ("aten::addmm", "matrix products"),
        ("aten::addcmul_", "arithmetic on activations"),
        ("aten::mul", "arithmetic on activations"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::_log_softmax_backward_data", "softmax and log-probs"),
        ("aten::copy_", "copies"),
        ("aten::as_strided", "other operators"),
    ],
)
def test_an_operator_has_a_part(operator, part):
    assert part_of(operator) == part


def test_parts_and_the_rest_are_the_whole_step():
    operators = [("aten::mm", 3e6), ("aten::mul", 1e6), ("aten::bmm", 1e6), ("MmBackward0", 9e6)]
    found = shares([SimpleNamespace(key=key, self_cpu_time_total=time) for key, time in operators], step=6.0)
    assert found == {"matrix products": 4.0, "arithmetic on activations": 1.0, "outside": 1.0}
