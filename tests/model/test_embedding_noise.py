"""NEFTune's noise follows each sequence's own length, whatever lies beside it in the flat row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from strop.model import build_batch, score_batch
from strop.model.embedding_noise import sequence_lengths
from strop.records import Example
from strop.testing.cases import make_trainer
from strop.testing.tiny import tiny_model

ALPHA = 5.0
HIDDEN = 32
ROWS = [Example([1, 2, 3], [[4, 5], [6, 7, 8, 9]]), Example([1], [[2, 3, 4, 5, 6, 7, 8]])]


def largest_noise(model: Any, run: Callable[[], Any]) -> dict[int, float]:
    """Sequence length -> largest noise, of the batch of ROWS laid out."""
    embeddings, seen = model.get_input_embeddings(), []

    def look(module: Any, inputs: Any, output: torch.Tensor) -> None:
        seen.append(output.detach() - torch.nn.functional.embedding(inputs[0], module.weight))

    register = embeddings.register_forward_hook
    handles = []

    def behind(hook: Any) -> Any:
        handle = register(hook)
        handles.append(register(look))
        return handle

    embeddings.register_forward_hook = behind
    run()
    del embeddings.register_forward_hook
    for handle in handles:
        handle.remove()
    return seen[0] if seen else torch.zeros(1)


@pytest.mark.parametrize("layout", ["tree", "packed", "padded"])
def test_the_bound_is_that_of_each_sequence(layout: str) -> None:
    torch.manual_seed(0)
    model = tiny_model("llama").train()
    batch = build_batch(ROWS, layout, shares=None)
    noise = largest_noise(model, lambda: score_batch(model, batch, noise_alpha=ALPHA)).abs().amax(-1)  # (rows, T)
    bound = ALPHA / (sequence_lengths(batch) * HIDDEN).sqrt()
    known = torch.ones_like(noise) if batch.attention_mask is None else batch.attention_mask
    share = (noise / bound)[known.bool()]
    assert share.max() <= 1 and share.min() > 0.7  # of 32 draws each, one comes near to the bound
    lengths = sequence_lengths(batch)[known.bool()]
    expected = {"tree": {6, 7, 4}, "packed": {4, 6, 7}, "padded": {4, 6, 7}}[layout]
    assert set(lengths.tolist()) == expected


def test_no_noise_in_evaluation() -> None:
    model, batch = tiny_model("llama").eval(), build_batch(ROWS, "tree")
    assert torch.equal(score_batch(model, batch, noise_alpha=ALPHA).logps, score_batch(model, batch).logps)


def test_a_run_adds_it_in_training_only_and_once(tmp_path: Path) -> None:
    trainer = make_trainer("sft", tmp_path, neftune_noise_alpha=ALPHA, max_steps=1, per_device_train_batch_size=4)
    plain = make_trainer("sft", tmp_path / "plain", max_steps=1, per_device_train_batch_size=4)
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] == plain.evaluate(plain.train_dataset)["eval_loss"]
    noise = largest_noise(trainer.policy, trainer.train)
    assert 0 < noise.abs().max() <= ALPHA / (3 * trainer.policy.config.hidden_size) ** 0.5
