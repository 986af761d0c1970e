"""Activations that wait in host memory: the gradient is the same, activations move, and weights in no form do.

The context is made for tensors "of the CPU", so that what it does on a card can be seen on one: its packing, what it
leaves alone, and that unpacking gives back what was packed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from strop.engine import offloading, step_trainer
from strop.model import build_batch, score_batch
from strop.records import Example
from strop.testing.cases import make_trainer
from strop.testing.tiny import tiny_model

TREES = [Example([5, 6, 7, 8, 9, 10, 11], [[20, 21, 22], [30, 31, 32, 33, 34]]), Example([12, 13], [[40, 41]])]


class Moved:
    """The tensors that went to the host, as they were made room for there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[tuple[int, ...], torch.dtype]] = []
        make = torch.empty_like

        def noted(tensor: torch.Tensor, **options: Any) -> torch.Tensor:
            if "pin_memory" in options:
                self.shapes.append((tuple(tensor.shape), tensor.dtype))
            return make(tensor, **options)

        monkeypatch.setattr(offloading.torch, "empty_like", noted)


def gradients(model: Any, *, offload: bool, autocast: bool = False) -> list[torch.Tensor]:
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    saved = offloading.offloaded_activations(model, 0, of="cpu" if offload else "cuda")
    with saved, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logps = score_batch(model, build_batch(TREES)).logps
    assert logps is not None
    weights = torch.linspace(-1, 1.3, logps.numel(), dtype=logps.dtype)
    return list(torch.autograd.grad((logps * weights).sum(), learned))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("arch", ["qwen3", "qwen3_moe"])
def test_gradients_are_the_same(arch: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, moved = tiny_model(arch).train(), Moved(monkeypatch)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    plain = gradients(model, offload=False)
    assert not moved.shapes
    found = gradients(model, offload=True)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    tokens = build_batch(TREES).input_ids.numel()
    assert any(tokens in shape for shape, _ in moved.shapes)


@pytest.mark.parametrize("autocast", [False, True])
def test_weights_stay_in_every_form(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd hands over transposed views of weights, and under mixed precision copies of them."""
    model, moved = tiny_model("llama", dtype=torch.float32).train(), Moved(monkeypatch)
    gradients(model, offload=True, autocast=autocast)
    weights = {tuple(weight.shape) for weight in model.parameters() if weight.dim() > 1}
    weights |= {shape[::-1] for shape in weights}
    assert moved.shapes and not [shape for shape, _ in moved.shapes if shape in weights]
    dtypes = {dtype for _, dtype in moved.shapes}
    assert (torch.bfloat16 in dtypes) is autocast


def test_small_tensors_and_those_of_other_devices_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    moved, model = Moved(monkeypatch), torch.nn.Linear(4, 3)
    for most, of in ((10**6, "cpu"), (0, "cuda")):
        with offloading.offloaded_activations(model, most, of=of):
            model(torch.randn(7, 4)).exp().sum().backward()
    assert not moved.shapes


def test_strides_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of a backward pass read tensors as they were laid out."""
    seen: list[tuple[int, ...]] = []

    class Looks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            seen.append(ctx.saved_tensors[0].stride())
            return grad

    turned = torch.randn(5, 6, requires_grad=True).transpose(0, 1)
    with offloading.offloaded_activations(torch.nn.Linear(2, 2), 0, of="cpu"):
        Looks.apply(turned).sum().backward()
    assert seen == [(1, 6)]


def test_a_step_goes_through_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def noted(model: Any) -> Any:
        made.append(model)
        return offloading.offloaded_activations(model, 0, of="cpu")

    monkeypatch.setattr(step_trainer, "offloaded_activations", noted)
    states = []
    for on in (False, True):
        trainer = make_trainer("dpo", tmp_path / str(on), max_steps=2)
        trainer.args.activation_offloading = on
        trainer.train()
        states.append({name: weight.clone() for name, weight in trainer.policy.state_dict().items()})
        assert bool(made) is on and all(model is trainer.policy for model in made)
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())
