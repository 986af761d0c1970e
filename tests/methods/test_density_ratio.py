"""BCO's weights of undesirable rows: by how likely their prompt is among the desirable ones."""

from __future__ import annotations

import pytest
import torch

from strop.errors import DataError
from strop.testing.cases import make_trainer


def rows_of(prompt, label, count):
    return [{"prompt": prompt, "completion": " word", "label": label} for _ in range(count)]


ROWS = [*rows_of("aaaa", True, 6), *rows_of("bbbb", True, 1), *rows_of("aaaa", False, 1), *rows_of("bbbb", False, 6)]


def counts_of(input_ids, attention_mask):
    """A vector for each prompt: how often each id occurs in it, padding left out."""
    sizes = torch.zeros(len(input_ids), 400).scatter_add(1, input_ids, attention_mask.float())
    return sizes[:, :300]


def bco(folder, rows=ROWS, **options):
    return make_trainer("bco", folder, rows=rows, trainer={"embedding_func": counts_of}, **options)


def weight_of(trainer, prompt):
    wanted = next(e for e in trainer.train_dataset if trainer.processing_class.decode(e.prompt_ids) == prompt)
    return float(trainer.density([wanted])[0])


def test_prompts_of_desirable_rows_weigh_more(tmp_path):
    trainer = bco(tmp_path, prompt_sample_size=64)
    common, rare = weight_of(trainer, "aaaa"), weight_of(trainer, "bbbb")
    assert 3 < common < 10 and rare == 0.5  # odds of about 6, and of about 1/6, which the least ratio lifts
    narrow = bco(tmp_path, prompt_sample_size=64, min_density_ratio=0.9, max_density_ratio=1.1)
    assert (weight_of(narrow, "aaaa"), weight_of(narrow, "bbbb")) == pytest.approx((1.1, 0.9))


def test_only_undesirable_rows_are_weighted(tmp_path):
    """At the start every reward is 0, so a row costs ln 2 times its weight."""
    trainer = bco(tmp_path, prompt_sample_size=64, delta_mode="cumulative_pooled")
    weights = [1.0 if row["label"] else weight_of(trainer, row["prompt"]) for row in ROWS]
    metrics = trainer.evaluate(ROWS)
    assert metrics["eval_loss"] == pytest.approx(sum(weights) / len(weights) * 0.6931471806, abs=1e-6)


def test_one_class_alone_gives_no_ratio(tmp_path):
    with pytest.raises(DataError, match="all rows have the same label"):
        bco(tmp_path, rows=rows_of("aaaa", True, 3))


def test_a_prompt_without_tokens_is_embedded_beside_others(tmp_path):
    """Whichever comes first; alone it is a row of no ids, which are whole numbers too."""
    ratio = bco(tmp_path).density
    for prompts in ([(), (5, 6)], [(5, 6), ()], [()]):
        assert ratio.embed(prompts).sum(1).tolist() == [float(len(prompt)) for prompt in prompts]
