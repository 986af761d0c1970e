"""Checks of the reduction law: how rows are laid out, padded and cut must not matter."""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from strop.model import build_batch
from strop.records import Example, Scores
from strop.testing.cases import examples_of, largest_difference, step_gradients
from strop.testing.subject import Subject

TOLERANCE = 1e-9


def layouts_agree(subject: Subject) -> None:
    """Shared prompts and beginnings, packed rows and padded rows give the same gradient."""
    gradients = {}
    for layout in ("padded", "packed", "tree"):
        trainer = subject.trainer(layout=layout, per_device_train_batch_size=len(subject.rows))
        gradients[layout] = step_gradients(trainer, [*map(begun_alike, examples_of(trainer))])
    for layout in ("packed", "tree"):
        gap = largest_difference(gradients["padded"], gradients[layout])
        assert gap < TOLERANCE, f"the gradient with layout={layout!r} differs from layout='padded' by {gap:.3g}"


def begun_alike(example: Example) -> Example:
    """The same row below a beginning that pays to be shared; its tokens are scored where there is no prompt."""
    head = [1 + i % 2 for i in range(24)]
    if example.prompt_ids:
        return replace(example, prompt_ids=head + example.prompt_ids)
    masks = [[1] * len(head) + example.mask(index) for index in range(len(example.completions))]
    return replace(example, completions=[head + ids for ids in example.completions], loss_mask=masks)


def padding_changes_nothing(subject: Subject) -> None:
    """A row scored beside a much longer one has the scores that it has alone."""
    trainer = subject.trainer()
    trees = trainer.prepare_step(examples_of(trainer))
    ids = [i for tree in trees for ids in tree.completions for i in ids]
    longest = max((len(ids) for tree in trees for ids in tree.completions), default=1)
    tree = trees[0]
    long = Example(tree.prompt_ids, [(ids * longest)[: longest + 20] for _ in tree.completions], extras=tree.extras)
    if tree.loss_mask is not None:
        long.loss_mask = [[1] * len(answer) for answer in long.completions]
    alone, beside = (scores_of_first(trainer, trees) for trees in ([tree], [tree, long]))
    for name, value in alone.items():
        gap = float((value.double() - beside[name].double()).abs().max()) if value.numel() else 0.0
        assert gap < TOLERANCE, f"{name} of a row differ by {gap:.3g} when it is padded to {longest + 20} more tokens"


def scores_of_first(trainer: object, trees: list[Example]) -> dict[str, torch.Tensor]:
    """Every score of the first tree, with rows padded to the longest."""
    batch = build_batch(trees, "padded", want=trainer.build_want())  # type: ignore[attr-defined]
    with torch.no_grad():
        scores: Scores = trainer.score(trainer.model, batch, True)  # type: ignore[attr-defined]
    per_token = batch.tree_of[batch.segment] == 0
    found = {}
    for name in ("logps", "entropy", "values", "step_logits", "hidden", "scores"):
        value = getattr(scores, name)
        if value is not None:
            found[name] = value[batch.tree_of == 0] if name == "scores" else value[per_token]
    return found


def accumulated_is_whole(subject: Subject) -> None:
    """A step cut into micro-batches of one row, in another order, has the gradient of the whole step at once."""
    rows = len(subject.rows)
    whole = step_gradients(subject.trainer(per_device_train_batch_size=rows))
    cut = subject.trainer(per_device_train_batch_size=1, gradient_accumulation_steps=rows)
    shuffled = examples_of(cut)
    random.Random(1).shuffle(shuffled)
    gap = largest_difference(whole, step_gradients(cut, shuffled))
    assert gap < TOLERANCE, f"the gradient of {rows} micro-batches differs from that of the whole step by {gap:.3g}"
