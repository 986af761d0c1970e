"""Sampler and trainer share one distribution: with the same weights their log-probs agree, under every setting."""

from __future__ import annotations

import pytest
import torch

from strop.testing.cases import make_trainer, rows_for


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 12},
        {"top_p": 0.8, "temperature": 1.3},
        {"min_p": 0.05},
        {"repetition_penalty": 1.4},
        {"top_k": 40, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2, "temperature": 0.8},
    ],
    ids=str,
)
@pytest.mark.parametrize("verb", ["grpo", "rloo"])
def test_equal_weights_give_ratio_one(verb, sampling, tmp_path):
    trainer = make_trainer(verb, tmp_path, rows=rows_for(verb, 2), num_generations=3, beta=0.1, **sampling)
    prompts = [trainer.train_dataset[i] for i in range(2)]
    groups = trainer.rollout(prompts, 3, training=True)
    for group in groups:
        group.advantages = torch.ones(3)
    trees = [tree for group in groups for tree in trainer.trees(group)]
    batch = trainer.build(trees)
    scores = trainer.score(trainer.model, batch, log=False)
    expected = torch.tensor([value for group in groups for values in group.sampler_logps for value in values])
    assert torch.allclose(scores.logps.detach(), expected.double(), atol=1e-6)
    scores.logps.sum().backward()
    assert all(p.grad.isfinite().all() for p in trainer.model.parameters() if p.grad is not None)
    reference = trainer.reference_scores(batch)
    assert torch.allclose(reference.logps, scores.logps.detach(), atol=1e-12)
