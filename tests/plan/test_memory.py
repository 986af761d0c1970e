"""The plan against what really lives in memory, storage by storage, over a grid of models and loads."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.live_tensors import LiveTensors
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from strop.cli import main
from strop.cli.flags import all_values
from strop.cli.plan import FLAGS, load_of
from strop.errors import ConfigError
from strop.methods.registry import BY_VERB
from strop.model import score
from strop.plan.activations import Shape, shape_of
from strop.plan.memory import Load, plan
from strop.records import Example
from strop.testing.cases import ONLINE

VOCABULARY = 1000
SIZES = {"intermediate_size": 256, "num_hidden_layers": 3, "num_key_value_heads": 2, "vocab_size": VOCABULARY}
CONFIGS = {
    "llama": LlamaConfig(hidden_size=96, num_attention_heads=4, **SIZES),
    "wide": LlamaConfig(hidden_size=256, num_attention_heads=8, **SIZES),
    "qwen3": Qwen3Config(hidden_size=96, num_attention_heads=4, head_dim=32, **SIZES),
}
LOADS = {
    "pairs": ("dpo", Load(rows=2, prompt=64, completion=48)),
    "rows": ("sft", Load(rows=4, prompt=20, completion=60)),
    "few": ("sft", Load(rows=1, prompt=16, completion=24)),
    "group": ("grpo", Load(rows=4, prompt=80, completion=24, generations=4)),
}
BARE = {"half": False, "reference": False, "slots": 0}


def trees(method: str, load: Load) -> list[Example]:
    rng = random.Random(0)
    ids = lambda count: [rng.randrange(VOCABULARY) for _ in range(count)]  # noqa: E731
    completions = {"dpo": 2, "grpo": load.generations}.get(method, 1)
    count = load.rows // load.generations if method == "grpo" else load.rows
    return [Example(ids(load.prompt), [ids(load.completion) for _ in range(completions)]) for _ in range(count)]


def elsewhere(model: Any) -> torch.autograd.graph.saved_tensors_hooks:
    """Activations out of torch's memory between forward and backward, as offloading takes them off a card."""
    weights = {tuple(weight.shape) for weight in model.parameters() if weight.dim() > 1}
    weights |= {shape[::-1] for shape in weights}

    def pack(tensor: torch.Tensor) -> Any:
        stays = tuple(tensor.shape) in weights or not tensor.is_floating_point()
        return tensor if stays else tensor.detach().numpy().copy()

    return torch.autograd.graph.saved_tensors_hooks(
        pack, lambda saved: saved if isinstance(saved, torch.Tensor) else torch.from_numpy(saved)
    )


def measured(config: Any, method: str, load: Load, *, lora: bool = False) -> int:
    """Bytes that forward and backward of a micro-batch add at their peak."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    model.train()
    examples = trees(method, load)
    score(model, examples)  # what is made once
    with LiveTensors(config.vocab_size) as live:
        with elsewhere(model) if load.offloading else contextlib.nullcontext():
            loss = score(model, examples).logps.sum()  # type: ignore[union-attr]
        loss.backward()
    return live.peak_bytes


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("load", LOADS)
def test_a_step_takes_what_was_planned(name: str, load: str) -> None:
    method, given = LOADS[load]
    given = Load(**{**given.__dict__, **BARE})
    found = plan(method, shape_of(CONFIGS[name], torch.float32), given)
    step = found.peak - found.parts["weights"] - found.parts["optimizer"]
    assert step == pytest.approx(measured(CONFIGS[name], method, given), rel=0.15)


def test_a_step_under_an_adapter_takes_what_was_planned() -> None:
    method, load = "dpo", Load("lora", 8, rows=2, prompt=64, completion=48, **BARE)
    shape = shape_of(CONFIGS["wide"], torch.float32, lora_rank=8)
    found = plan(method, shape, load)
    step = found.peak - found.parts["weights"] - found.parts["optimizer"]
    assert step == pytest.approx(measured(CONFIGS["wide"], method, load, lora=True), rel=0.15)


@pytest.mark.parametrize("lora", [False, True])
def test_offloaded_activations_take_at_most_what_was_planned(lora: bool) -> None:
    """Of three layers one is planned for; half of it is there at once."""
    how: dict[str, Any] = {"training": "lora", "lora_rank": 8} if lora else {}
    load = Load(rows=2, prompt=64, completion=48, offloading=True, **how, **BARE)
    kept, there = (Load(**{**load.__dict__, "offloading": on}) for on in (False, True))
    shape = shape_of(CONFIGS["wide"], torch.float32, lora_rank=8 if lora else None)
    before, found = (plan("dpo", shape, each) for each in (kept, there))
    step = found.peak - found.parts["weights"] - found.parts["optimizer"]
    taken = measured(CONFIGS["wide"], "dpo", load, lora=lora)
    assert 0.5 * step < taken < 1.15 * step and found.peak < before.peak


def test_the_logits_of_a_large_vocabulary_are_planned() -> None:
    config = LlamaConfig(hidden_size=96, num_attention_heads=4, **{**SIZES, "vocab_size": 16 * VOCABULARY})
    load = Load("lora", 8, rows=2, prompt=64, completion=48, **BARE)
    found = plan("dpo", shape_of(config, torch.float32, lora_rank=8), load)
    step = found.peak - found.parts["weights"] - found.parts["optimizer"]
    assert found.parts["logits"] > 0.5 * step
    assert step == pytest.approx(measured(config, "dpo", load, lora=True), rel=0.15)


def test_the_counts_are_those_of_the_model() -> None:
    for config in CONFIGS.values():
        model = AutoModelForCausalLM.from_config(config)
        assert shape_of(config, torch.float32).parameters == sum(p.numel() for p in model.parameters())


@pytest.fixture(scope="module")
def shape() -> Shape:
    return shape_of(CONFIGS["llama"], torch.bfloat16)


@pytest.mark.parametrize("verb", BY_VERB)
def test_every_method_has_a_plan_and_its_other_models(verb: str, shape: Shape) -> None:
    found = plan(verb, shape, Load(reward=shape))
    assert found.peak <= sum(found.parts.values()) and all(size >= 0 for size in found.parts.values())
    assert ("teacher" in found.parts) == (verb == "gkd") and ("critic" in found.parts) == (verb == "ppo")
    assert bool(found.parts.get("sampling")) == (verb in ONLINE or verb == "xpo")


def test_what_saves_memory_does(shape: Shape) -> None:

    def peak(**given: Any) -> int:
        return plan("dpo", shape, Load(micro_batches=4, **given)).peak

    assert peak(training="4bit") < peak(training="lora") < peak()
    assert peak(checkpointing=True, offloading=True) <= peak(checkpointing=True) < peak()
    by_engine = [peak(engine=engine, devices=8) for engine in ("ddp", "zero1", "zero2")]
    assert by_engine == sorted(by_engine, reverse=True) and len(set(by_engine)) == 3
    with pytest.raises(ConfigError, match="need an engine"):
        peak(devices=2)


def test_the_command_says_whether_it_fits_and_what_to_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["wide"].to_dict()))
    assert main(["plan", "dpo", "--model", str(tmp_path / "config.json"), "--gpus", "1x24GB"]) == 0
    assert "It fits." in (fits := capsys.readouterr().out) and "reference" in fits
    assert main(["plan", "dpo", "--model", str(tmp_path), "--gpus", "1x0.2GB"]) == 0
    out = capsys.readouterr().out
    assert "It does not fit." in out and out.strip().splitlines()[-1].endswith("fits")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["dpoo", "--model", "x"], "'dpo'"),
        (["dpo"], "--model must be given"),
        (["dpo", "--model", "./nowhere/config.json"], "no such file"),
        (["dpo", "--model", ".", "--gpus", "many"], "1x24GB"),
    ],
)
def test_what_cannot_be_planned_is_said(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *argv]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "sizes"),
    [
        ([], (512, 512)),
        (["--max_length", "2048"], (1536, 512)),
        (["--max_length", "600"], (300, 300)),
        (["--max_length", "2048", "--max_completion_length", "1500"], (548, 1500)),
        (["--max_completion_length", "2000"], (512, 2000)),
    ],
)
def test_a_row_is_given_whole_or_by_its_parts(argv: list[str], sizes: tuple[int, int]) -> None:
    load = load_of(all_values(argv, FLAGS))
    assert (load.prompt, load.completion) == sizes


@pytest.mark.parametrize(
    "argv",
    [
        ["--max_length", "9", "--max_prompt_length", "9"],
        ["--max_length", "0"],
        ["--max_completion_length", "0"],
        ["--max_length", "1"],
    ],
)
def test_a_row_without_room_is_refused(argv: list[str]) -> None:
    with pytest.raises(ConfigError, match="go into max_length together"):
        load_of(all_values(argv, FLAGS))
