"""`torch_compile` and `use_liger_kernel`: layers of policy and reference change together once checked, or stay so."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import integrations

from strop.engine import fast_layers
from strop.model import compiled_layers, liger_layers
from strop.model.layer_check import layers_of
from strop.testing.cases import make_trainer
from strop.testing.tiny import tiny_model


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    torch.compiler.reset()


def single(arch: str = "llama", seed: int = 0) -> Any:
    return tiny_model(arch, dtype=torch.float32, vocab_size=288, seed=seed)


class Compiler:
    """Stands for `torch.compile`, and notes what it is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, factor: float = 1.0) -> None:
        self.asked: list[Any] = []
        self.calls, self.factor = 0, factor
        monkeypatch.setattr(compiled_layers.torch, "compile", self)

    def __call__(self, function: Any, **options: Any) -> Any:
        self.asked.append(options)

        def run(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            out = function(*args, **kwargs)
            return (out[0] * self.factor, *out[1:]) if isinstance(out, tuple) else out * self.factor

        return run


def test_policy_and_reference_are_compiled_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = Compiler(monkeypatch)
    options = {"torch_compile": True, "torch_compile_mode": "max-autotune-no-cudagraphs"}
    trainer = make_trainer("dpo", tmp_path, model=single(), max_steps=1, **options)
    tried, *asked = compiler.asked  # the settings ask whether there is such a way first
    assert "dynamic" not in tried and tried["mode"] == "max-autotune-no-cudagraphs"
    assert asked == [{"backend": "inductor", "mode": "max-autotune-no-cudagraphs", "dynamic": True}]
    layers = layers_of(trainer.policy) + layers_of(trainer.ref_model)
    assert len(layers) == 4 and all("forward" in vars(layer) for layer in layers)
    before = compiler.calls
    trainer.train()
    assert compiler.calls > before
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.693147, abs=1e-6)  # it begins at the reference
    said = capsys.readouterr().out
    assert "torch_compile: 4 layers are compiled one by one by inductor" in said
    assert "_orig_mod" not in str(trainer.model_wrapped), "the parent compiled the whole model"


@pytest.mark.parametrize("verb", ["ppo", *(pytest.param(verb, marks=pytest.mark.slow) for verb in ("grpo", "reward"))])
def test_every_kind_of_method_trains_so(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = make_trainer(verb, tmp_path / "plain", max_steps=1)
    compiler = Compiler(monkeypatch)
    trainer = make_trainer(verb, tmp_path / "compiled", max_steps=1, torch_compile=True)
    for one in (plain, trainer):
        one.train()
    assert compiler.calls
    own = dict(trainer.policy.named_parameters())
    assert all(torch.equal(weight, own[name]) for name, weight in plain.policy.named_parameters())


def test_an_adapter_is_its_own_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(monkeypatch)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    options = {"max_steps": 1, "torch_compile": True, "trainer": {"peft_config": config}}
    trainer = make_trainer("dpo", tmp_path, model=single(), **options)
    trainer.train()
    assert compiler.calls and trainer.state.log_history[0]["loss"] == pytest.approx(0.693147, abs=1e-6)


def test_a_compiler_that_is_wrong_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Compiler(monkeypatch, factor=1.01)
    trainer = make_trainer("dpo", tmp_path, model=single(), max_steps=1, torch_compile=True)
    said = capsys.readouterr().out
    assert "torch_compile: layers stay as they are: compiled by inductor they differ (LlamaDecoderLayer" in said
    assert not any("forward" in vars(layer) for layer in layers_of(trainer.policy) + layers_of(trainer.ref_model))
    trainer.train()


def test_a_compiler_that_fails_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(function: Any, **options: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

        return run

    monkeypatch.setattr(compiled_layers.torch, "compile", absent)
    make_trainer("sft", tmp_path, model=single(), max_steps=1, torch_compile=True).train()
    assert "No working C++ compiler found" in capsys.readouterr().out


def test_the_launchers_wish_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(monkeypatch)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    trainer = make_trainer("sft", tmp_path, model=single(), max_steps=1)
    trainer.train()
    assert compiler.asked[0]["backend"] == "eager" and "_orig_mod" not in str(trainer.model_wrapped)


# ---- Liger ----------------------------------------------------------------------------------------------------------


class Liger:
    """Stands for the package: its norm, gate and rotation, in the places that it puts them into."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, eps: float = 1e-6, *, here: bool = True) -> None:
        self.asked: list[dict[str, Any]] = []
        self.rotations, self.eps = 0, eps
        from transformers.utils import import_utils

        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setattr(import_utils, "is_liger_kernel_available", lambda: here)
        monkeypatch.setattr("transformers.utils.is_liger_kernel_available", lambda: here)
        package = types.ModuleType("liger_kernel.transformers")
        package._apply_liger_kernel_to_instance = self.apply  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
        monkeypatch.setitem(sys.modules, "liger_kernel.transformers", package)
        monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: here)

    def apply(self, model: Any, **kernels: Any) -> None:
        from transformers.models.llama import modeling_llama

        self.asked.append(kernels)
        rotate = modeling_llama.apply_rotary_pos_emb

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.rotations += 1
            return rotate(*args, **kwargs)

        modeling_llama.apply_rotary_pos_emb = counted
        modeling_llama.LlamaRMSNorm = type("LigerRMSNorm", (modeling_llama.LlamaRMSNorm,), {})
        for module in model.modules():
            if "RMSNorm" in type(module).__name__:
                module.forward = lambda x, own=module: self.norm(x, own.weight)

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, self.eps)


@pytest.fixture
def namespace() -> Iterator[dict[str, Any]]:
    from transformers.models.llama import modeling_llama

    before = dict(vars(modeling_llama))
    yield before
    vars(modeling_llama).update(before)


def test_ligers_layers_are_used_and_its_losses_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], namespace: dict[str, Any]
) -> None:
    from transformers.models.llama import modeling_llama

    liger = Liger(monkeypatch)
    options = {"use_liger_kernel": True, "liger_kernel_config": {"swiglu": False}}
    trainer = make_trainer("dpo", tmp_path, model=single(), max_steps=1, **options)
    assert "use_liger_kernel: Liger's kernels compute the layers" in capsys.readouterr().out
    kernels = {"swiglu": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
    assert liger.asked == [kernels, kernels]  # policy and reference, and the parent not a third time
    assert modeling_llama.LlamaRMSNorm is namespace["LlamaRMSNorm"]
    before = liger.rotations
    trainer.train()
    assert len(liger.asked) == 2 and liger.rotations > before
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert trainer.args.use_liger_kernel is True


def test_kernels_that_differ_are_taken_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], namespace: dict[str, Any]
) -> None:
    from transformers.models.llama import modeling_llama

    Liger(monkeypatch, eps=0.1)
    trainer = make_trainer("dpo", tmp_path, model=single(), max_steps=1, use_liger_kernel=True)
    said = capsys.readouterr().out
    assert "layers stay transformers' own: with Liger's kernels they differ (LlamaDecoderLayer" in said
    assert modeling_llama.apply_rotary_pos_emb is namespace["apply_rotary_pos_emb"]
    norms = [m for m in trainer.policy.modules() if "RMSNorm" in type(m).__name__]
    assert norms and not any("forward" in vars(norm) for norm in norms)
    trainer.train()


@pytest.mark.parametrize(("here", "said"), [(False, "pip install liger-kernel"), (True, "there is none")])
def test_without_the_package_or_a_card_it_is_said(
    here: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Liger(monkeypatch, here=here)
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(liger_layers.torch.cuda, "is_available", lambda: False)
    make_trainer("sft", tmp_path, model=single(), max_steps=1, use_liger_kernel=True).train()
    assert said in capsys.readouterr().out


def test_an_architecture_without_kernels_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    liger = Liger(monkeypatch)
    monkeypatch.setattr(liger, "apply", lambda model, **kernels: None)
    sys.modules["liger_kernel.transformers"]._apply_liger_kernel_to_instance = liger.apply  # type: ignore[attr-defined]
    make_trainer("sft", tmp_path, model=single(), max_steps=1, use_liger_kernel=True)
    assert "Liger has no kernels for LlamaForCausalLM" in capsys.readouterr().out


def test_kernels_that_fit_a_model_in_part_are_taken_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], namespace: dict[str, Any]
) -> None:
    from transformers.models.llama import modeling_llama

    liger = Liger(monkeypatch)

    def half_way(model: Any, **kernels: Any) -> None:
        liger.apply(model, **kernels)
        raise AttributeError("'LlamaMLP' object has no attribute 'gate_up_proj'")

    sys.modules["liger_kernel.transformers"]._apply_liger_kernel_to_instance = half_way  # type: ignore[attr-defined]
    trainer = make_trainer("sft", tmp_path, model=single(), max_steps=1, use_liger_kernel=True)
    assert "layers stay transformers' own" in capsys.readouterr().out
    assert not [name for name, value in namespace.items() if vars(modeling_llama)[name] is not value]
    assert not any("forward" in vars(module) for module in trainer.policy.modules())


def test_a_run_records_what_was_set(tmp_path: Path) -> None:
    trainer = make_trainer("sft", tmp_path, model=single(), max_steps=1, use_liger_kernel=True, save_strategy="steps")
    trainer.train()
    assert "use_liger_kernel: true" in (tmp_path / "config.yaml").read_text()
    assert torch.load(tmp_path / "checkpoint-1" / "training_args.bin", weights_only=False).use_liger_kernel is True


def test_shards_are_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_layers, "is_sharded", lambda accelerator: True)
    assert "cut into shards" in fast_layers.compiled([], "inductor", None, None)
    assert integrations is not None
