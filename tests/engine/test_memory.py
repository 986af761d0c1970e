"""No step of training, evaluation or sampling holds logits of all its tokens: forward, backward, all sixteen cases."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.live_tensors import LiveTensors

from strop.testing.cases import CASES, ONLINE, TASKS, make_trainer, words
from strop.testing.memory_checks import weight_shapes
from strop.testing.tiny import tiny_model

VOCABULARY = 3072
BUDGET = 1 << 18  # 21 rows of logits in float32; the least that a user may set is four times as much
BLOCKS = 3 << 17  # what a block of rows takes beside the buffer of logits while it is normalised
ROWS, WORDS = 4, 20
COMPLETION = 32
SLOTS = 8
"""Completions that are sampled at a time: a row of logits each."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dpo, an adapter on the head": ("dpo", {"lora": ["q_proj", "lm_head"]}),
    "sft, capped logits": ("sft", {"arch": "gemma2"}),
    "grpo, top-k": ("grpo", {"top_k": 50}),
    "grpo, entropy bonus, reference, two uses": (
        "grpo",
        {"entropy_coef": 0.01, "beta": 0.1, "num_iterations": 2, "generation_batch_size": 16},
    ),
    "gkd, an adapter on the head": ("gkd", {"lora": ["q_proj", "lm_head"]}),
}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {**{verb: (verb, {}) for verb in CASES}, **VARIANTS}


def long_row(verb: str, rng: random.Random) -> dict[str, Any]:
    text = lambda: words(rng, WORDS, WORDS)  # noqa: E731
    if verb in ("reward", "dpo", "orpo", "cpo", "xpo"):
        return {"prompt": text(), "chosen": text(), "rejected": text()}
    if verb in ("kto", "bco"):
        return {"prompt": text(), "completion": text(), "label": rng.random() < 0.5}
    if verb == "prm":
        return {"prompt": text(), "completions": [text(), text()], "labels": [True, False]}
    if verb in ("sft", "gkd"):
        return {"prompt": text(), "completion": text()}
    return {"prompt": words(rng, 4, 6), "target": "ant"}


def make(run: str, folder: Path) -> Any:
    verb, options = RUNS[run]
    rng = random.Random(0)
    rows = [long_row(verb, rng) for _ in range(ROWS)]
    rows = [{**row, "label": index % 2 == 0} if "label" in row else row for index, row in enumerate(rows)]
    settings: dict[str, Any] = {
        "per_device_train_batch_size": ROWS,
        "per_device_eval_batch_size": ROWS,
        "max_length": 300,
        "logging_steps": 1,
        **options,
    }
    extra: dict[str, Any] = {}
    arch = settings.pop("arch", "llama")
    sizes = {"dtype": torch.float32, "vocab_size": VOCABULARY, "max_position_embeddings": 512}
    if verb in ONLINE:
        settings |= {"max_completion_length": COMPLETION, "max_slots": SLOTS}
        if verb in ("grpo", "rloo"):
            settings |= {"num_generations": 2, "num_generations_eval": 2 if verb == "rloo" else 1}
    if verb == "gkd":
        settings["chunk_tokens"] = 4
        extra["teacher_model"] = tiny_model(arch, seed=1, **sizes)
    if targets := settings.pop("lora", None):
        from peft import LoraConfig

        extra["peft_config"] = LoraConfig(r=2, target_modules=targets)
    model = tiny_model(arch, task=TASKS.get(verb, "causal"), **sizes)
    trainer = make_trainer(verb, folder, rows=rows, model=model, trainer=extra, **settings)
    trainer.args.head_memory_mb = BUDGET / 2**20
    trainer.state.logging_steps = 1
    return trainer


@pytest.mark.parametrize("run", RUNS)
def test_logits_stay_within_their_budget(run: str, tmp_path: Path) -> None:
    trainer = make(run, tmp_path)
    rows = [trainer.train_dataset[i] for i in range(ROWS)]
    weights = weight_shapes(trainer.model, *([trainer.teacher] if hasattr(trainer, "teacher") else []))
    with LiveTensors(VOCABULARY, weights) as training:
        work = trainer.make_work(trainer.prepare_step(rows))
        trainer.training_step(trainer.model, work)
    tokens = int(work.counts["tokens"])
    gradient = max(float(p.grad.abs().max()) for p in trainer.model.parameters() if p.grad is not None)
    with LiveTensors(VOCABULARY, weights) as evaluation:
        trainer.evaluate(rows)
    headed = RUNS[run][0] in TASKS
    assert headed or tokens * VOCABULARY * 4 > 2 * (BUDGET + BLOCKS)
    assert gradient > 0 and (training.largest is None) is headed and training.peak_bytes > 0
    for live in (training, evaluation):
        assert live.peak_logit_bytes <= BUDGET + BLOCKS, live.largest
        assert headed or live.largest.elements < tokens * VOCABULARY / 4
    assert evaluation.peak_bytes <= training.peak_bytes


def test_a_chunk_loop_that_autograd_retains_is_seen() -> None:
    """The recorder at work: chunks bound the largest tensor, and without recomputation nothing else."""
    hidden, weight = torch.randn(256, 32), torch.randn(32, VOCABULARY, requires_grad=True)

    def loss() -> torch.Tensor:
        return sum((chunk @ weight).log_softmax(-1)[:, 0].sum() for chunk in hidden.split(16))  # type: ignore[return-value]

    with LiveTensors(VOCABULARY, weight_shapes(torch.nn.Linear(32, VOCABULARY))) as live:
        loss().backward()
    assert live.largest is not None and live.largest.shape == (16, VOCABULARY)
    assert live.peak_logit_bytes >= 256 * VOCABULARY * 4
    with LiveTensors(VOCABULARY) as without, torch.no_grad():
        loss()
    assert without.peak_logit_bytes <= 3 * BUDGET


def test_what_was_there_before_and_what_is_freed_do_not_count() -> None:
    before = torch.zeros(1000)
    with LiveTensors(7) as live:
        view = before[:500]
        made = before + 1
        del made
        again = view * 2
        live_bytes = live._bytes
    assert live.peak_bytes == 4000 and live_bytes == 2000 and again.numel() == 500 and live.largest is None
