"""The benchmark for a card: it runs on a CPU on a tiny model, what it counts is right, and a CPU's numbers stay out."""

from __future__ import annotations

import argparse
import json
import sys

import pytest
import torch
from benchmarks.gpu_cases import model_of, padded_update, rows_of, tokenizer_of

from benchmarks import gpu, page
from strop.model import build_batch, score_batch
from strop.records import Example

CPU = torch.device("cpu")


def options(**values) -> argparse.Namespace:
    given = {"device": "cpu", "shape": "tiny", "steps": 2, "minutes": 5.0, "optim": "sgd", "memory": 0.0}
    return argparse.Namespace(**{**given, "prompt_tokens": 8, "new_tokens": 3, **values})


EQUALITY, STEPS = "gradient against the CPU, float32", ("sft tiny, strop", "dpo tiny 16/8, strop")
UPDATES = tuple(f"grpo update tiny G=4 16/8, {library}" for library in ("strop", "padded rows"))


@pytest.mark.parametrize(
    "names", [(EQUALITY, *UPDATES), pytest.param((*STEPS, "rollout tiny, 64 rows"), marks=pytest.mark.slow)]
)
def test_cases_run_and_have_a_line_on_the_page(names: tuple[str, ...]) -> None:
    made = gpu.cases(options())
    found = {name: made[name]() for name in names}
    assert found.get(EQUALITY, {"largest_relative_error": 0})["largest_relative_error"] == 0
    assert found.get(STEPS[1], {"loss": 0.6931})["loss"] == pytest.approx(0.6931, abs=1e-3)
    text = "\n".join(page.gpu_section({"results": found | {"sft 4B, strop": {"failed": "OutOfMemoryError: 80 GB"}}}))
    assert all(f"| {name} |" in text for name in names) and "| OutOfMemoryError: 80 GB |" in text


def test_a_case_that_fails_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    monkeypatch.setattr(gpu, "cases", lambda options: {"a": broken, "b": lambda: {"x": 1.0}})
    assert gpu.measured(options()) == {"a": {"failed": "OutOfMemoryError: CUDA out of memory."}, "b": {"x": 1.0}}
    assert gpu.measured(options(minutes=0.0)) == {name: {"failed": "the time was up"} for name in "ab"}


def test_nothing_of_a_cpu_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "measured", lambda options: {})
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--store"])
    with pytest.raises(SystemExit, match="nothing is written"):
        gpu.main()
    assert not (gpu.RESULTS / "gpu.json").exists() or "CPU" not in json.loads((gpu.RESULTS / "gpu.json").read_text())


def test_rows_have_the_length_that_is_asked_for() -> None:
    tokenizer = tokenizer_of()
    row = rows_of("dpo", 1, 12, 5)[0]
    assert len(tokenizer(row["prompt"])["input_ids"]) == 12
    assert len(tokenizer(row["chosen"])["input_ids"]) == len(tokenizer(row["rejected"])["input_ids"]) == 4  # and EOS


def test_the_padded_update_is_the_same_gradient() -> None:
    """What strop is held against computes the same."""
    model, draw = model_of("tiny", CPU), torch.Generator().manual_seed(0)
    prompt, *completions = torch.randint(3, 900, (5, 6), generator=draw).tolist()
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5])
    padded_update(model, prompt, completions, advantages, rows_at_once=3)
    found = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    scores = score_batch(model, build_batch([Example(prompt, completions)]))
    assert scores.logps is not None
    (-(scores.logps.view(4, 6) * advantages[:, None]).sum() / 24).backward()
    for weight, gradient in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-6)


def test_needed_operations_of_a_step() -> None:
    """By hand, for a model whose sizes are round."""
    model = model_of("tiny", CPU)
    body = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96)
    rows, prompt, completion = 3, 10, 4
    seen = rows * (prompt**2 / 2 + completion * prompt + completion**2 / 2)
    expected = 6 * (body * rows * 14 + 1024 * 64 * rows * completion) + 12 * 2 * 64 * seen
    assert gpu.operations_of(model, "sft", rows, prompt, completion) == pytest.approx(expected)
