"""What the benchmark of slow environments compares: environments that wait together, and ones that cannot."""

from __future__ import annotations

import threading

import pytest
from benchmarks.slow_environments import OneByOne, with_tools

from strop.agents.environments import Environments


@pytest.mark.parametrize(("kind", "met"), [(Environments, True), (OneByOne, False)])
def test_only_side_by_side_do_environments_meet(kind, met):
    barrier = threading.Barrier(3)

    class Meeting:
        def reset(self):
            barrier.wait(20.0 if met else 0.05)
            return "met"

        def step(self, text):
            return None, True

    environments = kind(Meeting)
    said = environments.ask([(slot, "reset", (), {}) for slot in environments.take([{}] * 3)])
    environments.close()
    assert [answer == "met" for answer in said] == [met] * 3


def test_each_completion_calls_the_slow_tool_once():
    assert with_tools(2, 0.02, 2, 1) > 0.02
