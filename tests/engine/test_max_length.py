"""Every method at every `max_length`: a step that learns, or a word about why it does not. Never a silent zero."""

from __future__ import annotations

import copy
import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from strop.errors import StropError
from strop.testing.cases import CASES, TASKS, make_trainer, rows_for
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

ROWS = 4
LONGEST = {"ppo": 12, "grpo": 12, "rloo": 12, "online-dpo": 12, "nash-md": 12, "gkd": 24, "xpo-online": 12}
"""Above this nothing of the case's rows is cut; the others' are cut up to 40."""


@lru_cache(maxsize=2)
def model_of(task: str) -> Any:
    return tiny_model("llama", task=task, vocab_size=len(toy_tokenizer()))


def one_step(verb: str, max_length: int, mode: str, folder: Path, **extra: Any) -> str:
    """What one optimizer step at this limit came to: "learned", "said" (an alarm), or "refused" (an error)."""
    model = copy.deepcopy(model_of(TASKS.get(verb, "causal")))
    settings: dict[str, Any] = {"max_length": max_length, "truncation_mode": mode, "max_steps": 1}
    if verb in LONGEST:
        settings["max_completion_length"] = min(6, max_length)
    try:
        trainer = make_trainer(verb, folder, rows=rows_for(verb, ROWS), model=model, trainer=extra, **settings)
    except StropError as error:
        assert "max_length" in str(error) and ("left out" in str(error) or "must be" in str(error)), str(error)
        return "refused"
    report = trainer.reports["train"]
    assert report.trees + sum(found.count for found in report.left_out.values()) >= ROWS
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged and all(math.isfinite(entry["loss"]) and math.isfinite(entry["grad_norm"]) for entry in logged)
    if logged[0]["grad_norm"] > 0:
        return "learned"
    alarms = folder / "alarms.jsonl"
    kinds = {json.loads(line)["alarm"] for line in alarms.read_text().splitlines()} if alarms.exists() else set()
    assert kinds, f"{verb}: the gradient at max_length={max_length} is zero, and nothing is said"
    return "said"


def sweep(verb: str, lengths: list[int], modes: tuple[str, ...], folder: Path) -> None:
    for mode in modes:
        came_to = [one_step(verb, length, mode, folder / f"{mode}-{length}") for length in lengths]
        assert "learned" in came_to[-2:], dict(zip(lengths, came_to, strict=True))


@pytest.mark.parametrize("verb", CASES)
def test_some_lengths(verb: str, tmp_path: Path) -> None:
    sweep(verb, [1, 3, 6, LONGEST.get(verb, 40)], ("keep_start",), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("verb", CASES)
def test_every_length(verb: str, tmp_path: Path) -> None:
    sweep(verb, list(range(1, LONGEST.get(verb, 40) + 1)), ("keep_start", "keep_end"), tmp_path)


def test_what_the_sweep_counts_as_said(tmp_path: Path) -> None:
    """Rewards that never differ teach nothing, and the run says so: the sweep would take silence for a failure."""

    def flat(completions: list[str], **columns: Any) -> list[float]:
        return [1.0] * len(completions)

    assert one_step("grpo", 12, "keep_start", tmp_path, reward_funcs=flat) == "said"
