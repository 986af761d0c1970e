"""Hybrid models share prompts: convolutions and states fork where the completions begin, forward and backward."""

from __future__ import annotations

import pytest
import torch
from benchmarks.support.configs import small_config
from transformers import AutoModel, AutoModelForCausalLM

from strop.model import score
from strop.model.select import layout_of, why_not_far
from strop.model.wrappers import decoder_of
from strop.records import Example

HYBRIDS = {
    "lfm2": "short convolutions",
    "qwen3_next": "gated delta rules",
    "mamba2": "scans alone",
    "falcon_h1": "scan and attention in every layer",
    "nemotron_h": "scans, attention and layers without either",
}


def ids(length: int, seed: int) -> list[int]:
    return [(7 * i * i + 13 * i + 31 * seed) % 57 + 3 for i in range(length)]


FOREST = [
    Example(ids(70, 0), [ids(40, 1), ids(1, 2), ids(67, 3)]),  # past a chunk of 64 tokens, in the prompt and behind it
    Example(ids(5, 4), [ids(3, 5)]),
    Example(ids(1, 6), [ids(9, 7), ids(2, 8)]),  # a prompt shorter than the convolutions are wide
]


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_log_probabilities_and_gradients_are_those_of_rows_alone(architecture: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config(architecture)).float().train()
    assert layout_of(model).name == "tree", layout_of(model).reason
    found = {}
    for layout in ("tree", "packed", "padded"):
        model.zero_grad()
        logps = score(model, FOREST, layout=layout).logps
        (logps * torch.linspace(0.5, 1.5, len(logps))).sum().backward()
        found[layout] = logps.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    right, slopes = found.pop("padded")
    for layout, (logps, gradients) in found.items():
        torch.testing.assert_close(logps, right, rtol=0, atol=1e-5)
        assert gradients.keys() == slopes.keys()
        for name, gradient in gradients.items():
            error = float((gradient - slopes[name]).norm() / (slopes[name].norm() + 1e-3))
            assert error < 1e-3, f"{layout}: {name} is off by {error:.1e}"


def test_checkpointed_layers_fork_again_in_backward() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config("qwen3_next")).float().train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        score(model, FOREST, layout="tree").logps.sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_outside_of_scoring_the_layers_are_as_they_were() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config("lfm2")).float().eval()
    row = torch.tensor([ids(9, 1)])
    before = model(input_ids=row).logits
    score(model, FOREST, layout="tree")
    assert torch.equal(model(input_ids=row).logits, before)
    assert model.generate(input_ids=row, max_new_tokens=3, do_sample=False).shape[1] <= 12


@pytest.mark.parametrize("architecture", ["bamba", "mamba2", "nemotron_h"])
def test_a_model_of_real_size_is_tried_past_its_chunks_on_a_small_twin(architecture: str) -> None:
    from transformers import AutoConfig

    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(architecture))
    with torch.no_grad():
        assert why_not_far(decoder_of(model)) is None
