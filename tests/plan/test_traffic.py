"""What a step sends: the formulas, on a model that is counted by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from strop.plan.activations import Shape
from strop.plan.memory import Load
from strop.plan.traffic import traffic

SHAPE = Shape(1000, 800, 10, 100, 50, 2, 4, 1.0, 0.0, 1.0)
LOAD = Load(rows=8, prompt=3, completion=5, micro_batches=2, generations=4)


@pytest.mark.parametrize(
    ("engine", "bytes_"),
    [("ddp", 8 * 1000 * 3 // 4), ("zero2", 6 * 1000 * 3 // 4), ("fsdp", 2 * (4 + 4) * 1000 * 3 // 4)],
)
def test_gradients(engine: str, bytes_: int) -> None:
    assert traffic("dpo", SHAPE, replace(LOAD, engine=engine, devices=4)) == {"gradients, each device": bytes_}  # type: ignore[arg-type]
    assert traffic("dpo", SHAPE, LOAD) == {}


def test_rollouts() -> None:
    prompts, completions = 2 * 2 * 4 * 3, 8 * 2 * 4 * 5  # two prompts and eight completions of each micro-batch
    sent = traffic("grpo", SHAPE, replace(LOAD, engine="ddp", devices=4))
    assert sent["weights, each sampler"] == 4000
    assert sent["ids, all samplers"] == 4 * (prompts + completions)
    assert sent["log-probs, all samplers"] == 8 * completions
    adapter = traffic("grpo", SHAPE, replace(LOAD, training="lora", lora_rank=4))
    assert adapter["weights, each sampler"] == 4 * 4 * 10
