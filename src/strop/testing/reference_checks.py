"""Checks of the reference model: that it is the starting model, whichever way it is held, and stays so."""

from __future__ import annotations

import copy
import hashlib
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig

from strop.testing.cases import examples_of, largest_difference, step_gradients
from strop.testing.scene import move
from strop.testing.subject import NotApplicable, Subject

if TYPE_CHECKING:
    from strop.engine.trainer import BaseTrainer

TOLERANCE = 1e-9


def made(subject: Subject, **settings: Any) -> Any:
    trainer = subject.trainer(**{**({"beta": 0.1} if subject.like in ("grpo", "rloo", "ppo") else {}), **settings})
    if trainer.reference is None:
        raise NotApplicable("it compares with no reference")
    return trainer


def reference_is_the_start(subject: Subject) -> None:
    """Before the first step policy and reference give the same log-probs, to the last bit."""
    trainer = made(subject)
    trees = trainer.prepare_step(examples_of(trainer))
    batch = trainer.build(trees)
    model = trainer.accelerator.unwrap_model(trainer.model)
    with torch.no_grad():
        own = trainer.score(model, batch, False)
    ref = trainer.reference_scores(batch)
    for name in ("logps", "hidden"):
        a, b = getattr(own, name), getattr(ref, name)
        if a is not None and b is not None:
            gap = float((a - b).abs().max())
            assert gap == 0.0, f"{name} of policy and reference differ by {gap:.3g} before the first step"


def adapter_off_is_a_frozen_copy(subject: Subject) -> None:
    """With an adapter, the base model as reference gives the gradient that a frozen copy of it gives."""
    made(subject)
    adapter = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    found = []
    for copied in (False, True):
        torch.manual_seed(0)
        extra: dict[str, Any] = {"peft_config": copy.deepcopy(adapter)}
        if copied:
            extra["ref_model"] = copy.deepcopy(subject.trainer().policy)
        trainer = made(subject, extra=extra)
        if not any("lora" in name for name, _ in trainer.model.named_parameters()):
            raise NotApplicable("it takes no adapter")
        move(trainer.model, seed=2, size=0.05)
        found.append(step_gradients(trainer))
    gap = largest_difference(*found)
    assert gap < TOLERANCE, f"the gradient with the adapter off differs from that with a frozen copy by {gap:.3g}"


def reference_stands_still(subject: Subject) -> None:
    """Training leaves the reference as it was; only `sync_ref_model` may move it."""
    trainer = made(subject, max_steps=2, learning_rate=1e-2)
    before = fingerprint(trainer)
    trainer.train()
    assert fingerprint(trainer) == before, "two steps of training changed the reference's weights"


def fingerprint(trainer: BaseTrainer) -> str:
    """Hash of the reference's weights."""
    digest = hashlib.blake2b()
    with trainer.reference.active() as model:
        for name, tensor in model.state_dict().items():
            if "lora" not in name:
                digest.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
