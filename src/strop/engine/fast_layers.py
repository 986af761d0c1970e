"""Layers that are compiled (`torch_compile`) or computed by Liger's kernels (`use_liger_kernel`): by strop, not by the
parent.

The parent compiles the whole model, for which flat rows have another shape at every step, and lets Liger put its losses
where strop's head is. Here a layer is changed once policy and reference are on the device, is held against the plain
layer (`strop.model.layer_check`), and is what it was where it does not equal it. Policy and reference change together,
so that the first step still begins at the reference.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import Trainer

from strop.engine.sharding import is_sharded
from strop.errors import SetupError
from strop.model import base_model
from strop.model.compiled_layers import compile_layers, plain_layers
from strop.model.layer_check import layers_of, problem_with
from strop.model.liger_layers import missing_liger, put_liger_layers
from strop.settings.devices import chosen_kernels


class FastLayersTrainer(Trainer):
    """The parent, which neither compiles a model nor puts Liger's kernels into it."""

    args: Any
    policy: Any
    _aside = ExitStack()  # settings that the parent does not see while it prepares its model

    def create_accelerator_and_postprocess(self) -> None:
        with set_aside(self.args, torch_compile_backend="no"):
            super().create_accelerator_and_postprocess()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as self._aside:
            self._aside.enter_context(set_aside(self.args, use_liger_kernel=False))
            return super().train(*args, **kwargs)

    def settings_are_back(self) -> None:
        """To be called once the parent has prepared its model: what the run records is what was set."""
        self._aside.close()

    def quicken_layers(self, reference: Any, say: Callable[[str], None]) -> None:
        """Make the layers of policy and reference faster, as the settings ask for, or say why they stay as they are."""
        models = language_models(self.policy)
        if hasattr(reference, "model"):
            models += language_models(reference.model)
        if self.args.use_liger_kernel:
            say(f"use_liger_kernel: {with_liger(models, self.args, self.accelerator)}")
        if backend := backend_of(self.args):
            say(f"torch_compile: {compiled(models, backend, self.args, self.accelerator)}")


@contextmanager
def set_aside(args: Any, **values: Any) -> Iterator[None]:
    """Settings that say something else while the parent reads them."""
    before = {name: getattr(args, name) for name in values}
    vars(args).update(values)
    try:
        yield
    finally:
        vars(args).update(before)


def backend_of(args: Any) -> str:
    """The compiler that the settings, or accelerate's launcher, ask for; "" where none."""
    launched = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    return str(args.torch_compile_backend) if args.torch_compile else launched if launched != "no" else ""


def language_models(module: Any) -> list[Any]:
    """The transformers models in a module: itself, or those beneath (a policy and its critic)."""
    try:
        base_model(module)
    except SetupError:
        return [model for child in module.children() for model in language_models(child)]
    return [module]


def with_liger(models: list[Any], args: Any, accelerator: Any) -> str:
    """Liger's kernels in the layers of these models, if they are there and right."""
    if why := missing_liger() or cannot_be_checked(accelerator):
        return f"layers stay transformers' own: {why}."
    out: list[Callable[[], None]] = []
    problem = problem_with(
        models, lambda: out.extend(put_liger_layers(m, chosen_kernels(args)) for m in models), accelerator.autocast
    )
    if problem:
        for take_out in reversed(out):
            take_out()
        return f"layers stay transformers' own: with Liger's kernels they differ ({problem})."
    return (
        "Liger's kernels compute the layers, and equal transformers' own. Its losses are not used: strop's head bounds "
        "memory itself."
    )


def compiled(models: list[Any], backend: str, args: Any, accelerator: Any) -> str:
    """The layers of these models compiled, if they then are right."""
    if why := cannot_be_checked(accelerator):
        return f"layers stay as they are: {why}."
    layers = [layer for model in models for layer in layers_of(model)]
    taken: list[Any] = []

    def change() -> None:
        compile_layers(layers, backend=backend, mode=args.torch_compile_mode)
        taken.extend(layers)

    if problem := problem_with(models, change, accelerator.autocast):
        plain_layers(taken)
        torch.compiler.reset()
        return f"layers stay as they are: compiled by {backend} they differ ({problem})."
    return f"{len(layers)} layers are compiled one by one by {backend}, and equal the plain ones; sampling uses those."


def cannot_be_checked(accelerator: Any) -> str:
    """Why layers could not be held against plain ones: their weights are elsewhere."""
    return "the weights are cut into shards" if is_sharded(accelerator) else ""
