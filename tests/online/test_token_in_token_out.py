"""Token in, token out: the sampled ids are the ids trained on, and nothing is encoded between sampling and loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from strop.testing.cases import make_trainer, rows_for

OPTIONS: dict[str, dict[str, Any]] = {
    "ppo": {},
    "grpo": {"num_generations": 3},
    "rloo": {"num_generations": 3},
    "online-dpo": {},
    "nash-md": {},
    "xpo-online": {},
    "gkd": {"lmbda": 1.0},
}


@pytest.mark.parametrize("verb", sorted(OPTIONS))
def test_sampled_ids_are_trained_on(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(verb, tmp_path, rows=rows_for(verb, 4), max_completion_length=12, **OPTIONS[verb])
    tokenizer, sampled = trainer.processing_class, []
    generate = trainer.generator.generate

    def watched(*args: Any, **kwargs: Any) -> Any:
        rollout = generate(*args, **kwargs)
        sampled.extend(ids for group in rollout.completions for ids in group)
        return rollout

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a text became ids between sampling and loss")

    prompts = [trainer.train_dataset[i] for i in range(4)]
    monkeypatch.setattr(trainer.generator, "generate", watched)
    with monkeypatch.context() as patch:
        for name in ("__call__", "encode", "apply_chat_template"):
            patch.setattr(PreTrainedTokenizerFast, name, refuse)
        trees = trainer.prepare_step(prompts)
        batch = trainer.build(trees)
        trainer.training_step(trainer.model, trainer.make_work(trees))
    changed = [ids for ids in sampled if tokenizer(tokenizer.decode(ids), add_special_tokens=False)["input_ids"] != ids]
    assert changed, "every completion survives decoding and encoding, so this would notice nothing"
    assert trees and all(ids in sampled for tree in trees for ids in tree.completions)
    assert batch.targets.tolist() == [token for tree in trees for ids in tree.completions for token in ids]
