"""Compiled layers: the log-probs and gradients of the plain ones on trees of any length, by few graphs; a compiler that
is wrong is not used."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import peft
import pytest
import torch

from strop.errors import SetupError
from strop.model import disable_dropout, score_batch
from strop.model.compiled_layers import compile_layers, plain_layers
from strop.model.layer_check import layers_of, problem_with, recorded_calls
from strop.model.layout import build_batch
from strop.records import Example
from strop.testing.tiny import tiny_model


def single(arch: str) -> Any:
    """A model in float32, which takes no detours in its norms, without dropout."""
    return disable_dropout(tiny_model(arch, dtype=torch.float32).train())


class Counting:
    """A compiler that makes nothing faster, and counts its graphs."""

    graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@contextmanager
def compiled(model: Any, backend: Any) -> Iterator[None]:
    layers = layers_of(model)
    compile_layers(layers, backend=backend)
    yield
    plain_layers(layers)


def gradients(model: Any, examples: list[Example]) -> list[torch.Tensor]:
    """Log-probs, and the gradient of a fixed weighted sum of them for every weight."""
    logps = score_batch(model, build_batch(examples)).logps
    assert logps is not None
    weights = torch.linspace(-1, 1.3, logps.numel(), dtype=logps.dtype)
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    return [logps.detach(), *torch.autograd.grad((logps * weights).sum(), learned)]


def assert_equal(model: Any, backend: Any, draws: int = 4, **options: Any) -> None:
    for draw in range(draws):
        rng = random.Random(draw)
        ids = lambda low, high: [rng.randrange(3, 60) for _ in range(rng.randint(low, high))]  # noqa: B023, E731
        examples = [Example(ids(1, 9 + 9 * draw), [ids(1, 12) for _ in range(rng.randint(1, 3))]) for _ in range(3)]
        plain = gradients(model, examples)
        with compiled(model, backend):
            found = gradients(model, examples)
        for a, b in zip(found, plain, strict=True):
            torch.testing.assert_close(a, b, **(options or {"rtol": 1e-5, "atol": 1e-6}))


def test_trees_of_any_length_take_the_graphs_of_the_first() -> None:
    """Under checkpointing, so that the backward pass goes through the graphs too."""
    model, counting = single("qwen3"), Counting()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_equal(model, counting, 1)
    first = counting.graphs
    assert 0 < first <= 12  # for both layers together: what stands before the attention, and behind it
    assert_equal(model, counting, 3)
    with compiled(model, counting):  # completions are sampled by the plain layers
        model.generate(torch.tensor([[5, 7, 9]]), max_new_tokens=3, do_sample=False)
    assert counting.graphs == first


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["llama", "gemma3_text", "qwen3_moe", "gpt2"])
def test_log_probs_and_gradients_are_the_plain_ones(arch: str) -> None:
    assert_equal(single(arch), Counting(), 2)


@pytest.mark.slow
def test_an_adapter_is_compiled_with_its_layer() -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(single("llama"), config).train()
    assert_equal(model, Counting(), 1)
    assert problem_with([model], lambda: compile_layers(layers_of(model), backend=Counting())) == ""


# ---- the check ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["qwen3", "gemma3_text", "gpt2", "qwen3_moe"])
def test_a_layer_of_each_kind_is_tried(arch: str) -> None:
    model = tiny_model(arch)
    windows = {str(call.layer) for call in recorded_calls(model)}
    assert windows and len(recorded_calls(model)) == (2 if arch == "gemma3_text" else 1)
    assert problem_with([model], lambda: None) == ""


WRONG: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a hundredth more": lambda x: x * 1.01,
    "no gradient": lambda x: x.detach().requires_grad_(x.requires_grad),
    "not a number": lambda x: x * torch.nan,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("fault", WRONG)
def test_layers_that_differ_are_named(fault: str, dtype: torch.dtype) -> None:
    model = tiny_model("llama", dtype=dtype)
    layers = layers_of(model)

    def change() -> None:
        layers[0].mlp.register_forward_hook(lambda module, args, out: WRONG[fault](out))

    problem = problem_with([model], change)
    assert "LlamaDecoderLayer" in problem or "RuntimeError" in problem


def test_half_precision_is_held_to_its_own_rounding() -> None:
    """What rounds in another order passes, a scale that is a tenth off does not."""
    model = tiny_model("llama", dtype=torch.bfloat16)
    layer: Any = layers_of(model)[0]

    def in_float32(x: torch.Tensor) -> torch.Tensor:
        gate, up, down = (part.weight.float() for part in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj))
        return ((layer.mlp.act_fn(x.float() @ gate.t()) * (x.float() @ up.t())) @ down.t()).to(x.dtype)

    assert problem_with([model], lambda: setattr(layer.mlp, "forward", in_float32)) == ""
    del layer.mlp.forward
    assert "LlamaDecoderLayer" in problem_with(
        [model], lambda: layer.self_attn.register_forward_hook(lambda m, a, out: (out[0] * 1.1, *out[1:]))
    )


def test_where_one_forward_is_not_the_class_s_all_layers_stay_as_they_were() -> None:
    layers = layers_of(single("llama"))
    layers[-1].forward = own = functools.partial(type(layers[-1]).forward, layers[-1])  # as accelerate's hooks do
    with pytest.raises(SetupError, match="replaced the forward of LlamaDecoderLayer"):
        compile_layers(layers, backend="eager")
    assert ["forward" in vars(layer) for layer in layers] == [False, True] and layers[-1].forward is own


@pytest.mark.slow
def test_inductor() -> None:
    """PyTorch's own compiler, by C++ on a CPU: one minute."""
    model = single("qwen3")
    assert problem_with([model], lambda: compile_layers(layers_of(model))) == ""
    plain_layers(layers_of(model))
    assert_equal(model, "inductor", 3, rtol=1e-4, atol=1e-4)
