"""Rows that begin alike are computed once, at any depth, and have the log-probabilities and gradients of rows alone."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from strop.model import build_batch, layout_of, score_batch
from strop.model.embedding_noise import sequence_lengths
from strop.model.forest import always, forest, pays
from strop.model.layout import token_copies
from strop.records import Batch, Example, Want


def woods(seed: int, longest: int = 6) -> list[Example]:
    """Trees whose prompts and completions fork, end within one another, are empty and come twice."""
    draw = random.Random(seed)
    ids = lambda least: [draw.randrange(2) for _ in range(draw.randint(least, longest))]  # noqa: E731
    examples = []
    for _ in range(draw.randint(4, 6)):
        completions = [ids(1) for _ in range(draw.randint(1, 3))]
        masks = [[int(draw.random() < 0.8) for _ in c] for c in completions]
        examples.append(Example(ids(0), completions, loss_mask=draw.choice([None, masks])))
    return [*examples, examples[0]]


def in_padded_rows(batch: Batch) -> list[list[int]]:
    return [ids[: int(n)].tolist() for ids, n in zip(batch.input_ids, batch.attention_mask.sum(1), strict=True)]


@pytest.mark.parametrize("arch", ["llama", "mistral", "gemma2", "gpt2", "qwen3_moe", "gpt_oss"])
def test_float64_equals_plain_rows(arch: str, model_of: Any, row_logps: Any, grads_of: Any) -> None:
    model, deep = model_of(arch), 0
    assert layout_of(model).name == "tree"
    for seed in range(3):
        examples = woods(seed)
        expected = row_logps(model, examples)
        batch = build_batch(examples, shares=always)
        deep += batch.segments.deep
        logps = score_batch(model, batch).logps
        assert torch.allclose(logps, expected, rtol=0, atol=1e-10), seed
        found, right = grads_of(model, logps), grads_of(model, expected)
        assert float((found - right).norm() / right.norm()) < 1e-10, seed
    assert deep == 3


@pytest.mark.parametrize("seed", range(30))
def test_every_beginning_is_there_once_and_every_row_whole(seed: int) -> None:
    examples = woods(seed)
    padded, batch = build_batch(examples, "padded"), build_batch(examples, shares=always)
    rows = in_padded_rows(padded)
    ids, positions = batch.input_ids[0], batch.position_ids[0]
    assert len(ids) == len({tuple(row[: i + 1]) for row in rows for i in range(len(row))})
    for row, spans in zip(rows, batch.segments.rows, strict=True):
        at = torch.cat([torch.arange(span.start, span.end) for span in spans])
        assert ids[at].tolist() == row and positions[at].tolist() == list(range(len(row)))
    assert batch.given_tokens == padded.given_tokens == sum(map(len, rows)) == int(token_copies(batch).sum())


@pytest.mark.parametrize("rule", [None, pays])
def test_what_does_not_pay_is_laid_out_as_trees_of_their_own(rule: Any) -> None:
    examples = [
        Example([1, 2, 3], [[4, 5, 6], [7, 8, 9]]),
        Example([1, 2, 4], [[5, 6]]),
        Example([1, 2], [[8, 9], [6]]),
    ]
    batch = build_batch(examples, shares=rule)
    assert batch.input_ids.tolist() == [[1, 2, 3, 1, 2, 4, 5, 1, 2, 8, 4, 5, 7, 8]]
    assert batch.segments.parents == [-1, -1, -1, 0, 0]
    assert batch.alike is None


def test_a_beginning_is_shared_where_it_pays() -> None:
    assert pays(saved=33, below=512) and not pays(saved=32, below=512)
    head, turn = list(range(40)), list(range(50, 90))
    rows = [[*head, *turn, 1], [*head, *turn, 2], [*head, 3]]
    roots, lies_on = forest(rows, [], pays)
    assert lies_on == [0, 1, 2]
    (root,) = roots
    assert (root.start, root.stop, [(c.start, c.stop) for c in root.children]) == (0, 40, [(40, 80), (40, 41)])
    cut = [[*head, *turn[:16], 1], [*head, *turn[:16], 2], [*head, 3]]
    assert [(c.start, c.stop) for c in forest(cut, [], pays)[0][0].children] == [(40, 57), (40, 57), (40, 41)]
    assert [len(node.children) for node in forest(cut, [[0, 1]], pays)[0][0].children] == [2, 0]


def test_a_scored_token_of_several_rows_is_computed_once_and_weighs_as_all(model_of: Any) -> None:
    rows = [Example([], [[*range(20), last, 1]]) for last in (30, 31, 32)]
    batch = build_batch(rows)
    assert len(batch.distinct) == 19 + 3 * 2 and len(batch.targets) == 3 * 21
    model = model_of("llama")
    logps = score_batch(model, batch).logps.view(3, 21)
    assert torch.equal(logps[0, :19], logps[1, :19])
    weight = model.lm_head.weight if model.lm_head.weight.requires_grad else next(model.parameters())
    (whole,) = torch.autograd.grad(logps.sum(), weight, retain_graph=True)
    parts = [torch.autograd.grad(row.sum(), weight, retain_graph=True)[0] for row in logps]
    alone = [torch.autograd.grad(score_batch(model, build_batch([row])).logps.sum(), weight)[0] for row in rows]
    torch.testing.assert_close(whole, sum(alone), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(parts, alone, rtol=1e-10, atol=1e-12)


def test_every_kind_of_score_is_that_of_rows_alone(model_of: Any) -> None:
    kinds = Want.LOGPS | Want.ENTROPY | Want.TOP1 | Want.MEAN_LOGIT | Want.LOG_SQUARE | Want.HIDDEN
    examples = [replace(example, score_prompt=True) for example in woods(7)]
    model = model_of("llama")
    shared = score_batch(model, build_batch(examples, want=kinds, shares=always), kinds)
    padded = score_batch(model, build_batch(examples, "padded", want=kinds), kinds)
    for name in ("logps", "entropy", "top1", "mean_logit", "log_square", "hidden", "prompt_logps"):
        torch.testing.assert_close(getattr(shared, name), getattr(padded, name), rtol=0, atol=1e-10)


def test_the_routers_loss_counts_every_row(model_of: Any) -> None:
    model, examples = model_of("qwen3_moe"), woods(3)
    shared, padded = (
        score_batch(model, build_batch(examples, layout, shares=always), aux_loss=True).aux_loss
        for layout in ("tree", "padded")
    )
    torch.testing.assert_close(shared, padded)


def test_noise_is_of_the_longest_row_that_shares_a_token() -> None:
    batch = build_batch([Example([], [[1, 2, 3, 4]]), Example([], [[1, 2, 5, 6, 7, 8]])], shares=always)
    assert batch.input_ids.tolist() == [[1, 2, 3, 5, 6, 7]]
    assert sequence_lengths(batch).tolist() == [[5, 5, 3, 5, 5, 5]]
