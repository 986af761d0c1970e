"""A step is the same step with the instructions of an older processor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support.processors import RUNS, models, steps, steps_with


@pytest.mark.parametrize("instructions", ["sse", pytest.param("avx2", marks=pytest.mark.slow)])
def test_a_step_is_the_same_on_an_older_processor(instructions: str, tmp_path: Path) -> None:
    start = {verb: model.state_dict() for verb, model in models().items()}
    here, there = steps(start), steps_with(instructions, start, tmp_path)
    assert here.keys() == there.keys() == RUNS.keys()
    for verb, run in here.items():
        assert run.gradients and len(run.gradients) == len(there[verb].gradients)
        for step, other in zip(run.gradients, there[verb].gradients, strict=True):
            assert step.keys() == other.keys()
            for name in step:
                torch.testing.assert_close(step[name], other[name], rtol=1e-7, atol=1e-10, msg=f"{verb}: {name}")
        for mine, theirs in zip(run.metrics, there[verb].metrics, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-7, abs=1e-9), verb
