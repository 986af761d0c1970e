"""Checks of the loss itself: its formula, its value where that is known, what it may not see, and that it falls."""

from __future__ import annotations

import copy
import dataclasses

import torch

from strop.records import Example, Want
from strop.testing.cases import examples_of, gradients_of, largest_difference
from strop.testing.oracles import FORMULAS, TOKENS
from strop.testing.scene import scene_of
from strop.testing.subject import NotApplicable, Subject

TOLERANCE = 1e-9


def loss_equals_the_formula(subject: Subject) -> None:
    """Loss and gradient of a step equal the formula, computed row by row from plain forward passes."""
    known = FORMULAS.get(subject.like) if subject.registered else None
    oracle = subject.oracle or (known.loss if known else None)
    if oracle is None:
        raise NotApplicable("no formula is known for it; pass oracle=, a function (scene) -> loss")
    trainer = subject.trainer(**(known.settings if known else {}))
    scene = scene_of(trainer, uses=known.uses if known else 1)
    expected = oracle(scene)
    named = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    wanted = torch.autograd.grad(expected, list(named.values()), allow_unused=True)
    trainer.model.zero_grad()
    value = trainer.training_step(trainer.model, trainer.make_work(scene.trees))
    gap = abs(float(value) - float(expected))
    assert gap < 1e-6 * max(1.0, abs(float(expected))), (
        f"the loss is {float(value):.9g}, the formula gives {float(expected):.9g}"
    )
    for (name, parameter), gradient in zip(named.items(), wanted, strict=True):
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        due = torch.zeros_like(parameter) if gradient is None else gradient
        off = float((found - due).abs().max())
        assert off < TOLERANCE, f"the gradient of {name} is off by {off:.3g} from that of the formula"


def constants_at_step_zero(subject: Subject) -> None:
    """Metrics of the first step whose value follows from the start alone (DPO's loss is ln 2, every KL is 0)."""
    if not subject.registered or subject.like not in FORMULAS:
        raise NotApplicable("no constants are known for its loss")
    start = FORMULAS[subject.like].start
    extra = {"teacher_model": copy.deepcopy(subject.trainer().policy)} if start.models == "student" else {}
    trainer = subject.trainer(extra=extra, **start.settings)
    if start.models == "even":
        head = trainer.policy.get_output_embeddings() if hasattr(trainer.policy, "lm_head") else trainer.policy.score
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.zero_()
    trainer.state.logging_steps = 1
    trainer.training_step(trainer.model, trainer.make_work(trainer.prepare_step(examples_of(trainer))))
    found = trainer._metrics["train"].drain()
    for name, value in start.metrics.items():
        assert name in found, f"{name} is not logged"
        assert abs(found[name] - value) < 1e-6, f"{name} is {found[name]:.9g} at step 0 instead of {value:.9g}"


def masked_tokens_have_no_gradient(subject: Subject) -> None:
    """A token with loss_mask 0, and nothing after it, may be any token: the gradient is the same, and finite."""
    trainer = subject.trainer()
    want = trainer.want(False)
    if want & Want.SCORE:
        raise NotApplicable("it scores whole completions, whose every token counts")
    trees = trainer.prepare_step(examples_of(trainer))
    if want & Want.STEP:
        trees = [tree for tree in trees if sum(tree.mask(0)) > 1]
    first, second = (
        gradients_of(trainer, [without_last(tree, other=other) for tree in trees]) for other in (False, True)
    )
    assert all(bool(g.isfinite().all()) for g in first.values()), "masking tokens makes the gradient non-finite"
    gap = largest_difference(first, second)
    assert gap < TOLERANCE, f"changing a masked token changes the gradient by {gap:.3g}"


def without_last(tree: Example, *, other: bool) -> Example:
    """A copy whose completions' last scored token is masked, and with `other` replaced by another token."""
    masks, answers = [], []
    extras = copy.deepcopy(tree.extras)
    for index, ids in enumerate(tree.completions):
        mask, ids = list(tree.mask(index)), list(ids)
        last = max((t for t, keep in enumerate(mask) if keep), default=None)
        if last is not None:
            mask[last] = 0
            if last == len(ids) - 1 and other:
                ids[last] = (ids[last] + 7) % TOKENS
        masks.append(mask)
        answers.append(ids)
    if isinstance(extras.get("labels"), list):
        extras["labels"] = extras["labels"][:-1]
    sampled = copy.deepcopy(tree.sampled)
    return dataclasses.replace(tree, completions=answers, loss_mask=masks, extras=extras, sampled=sampled)


def two_steps_lower_the_loss(subject: Subject) -> None:
    """Two small steps along the gradient make the loss on the same rows smaller."""
    trainer = subject.trainer(
        max_steps=2, per_device_train_batch_size=len(subject.rows), optim="sgd", learning_rate=1e-3
    )
    if hasattr(trainer, "fill_buffer"):
        raise NotApplicable("its rows are sampled anew, and the value of its loss says nothing")
    losses = []
    trees = examples_of(trainer)
    for _ in range(3):
        trainer.model.zero_grad()
        losses.append(float(trainer.training_step(trainer.model, trainer.make_work(trees))))
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(1e-3 * parameter.grad)
    assert losses[0] > losses[1] > losses[2], f"the loss goes {losses[0]:.6g}, {losses[1]:.6g}, {losses[2]:.6g}"
