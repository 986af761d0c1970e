"""What is asked of cards: refused with what to do instead where its result could not be stated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import ParallelismConfig

from strop.errors import ConfigError
from strop.methods.dpo import DPOConfig
from strop.settings.devices import chosen_kernels


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"liger_kernel_config": {"rope": True}}, "no effect unless use_liger_kernel"),
        ({"use_liger_kernel": True, "liger_kernel_config": {"fused_linear_cross_entropy": True}}, "strop's head"),
        ({"use_liger_kernel": True, "liger_kernel_config": '{"cross_entropy": true}'}, "strop's head"),
        ({"use_liger_kernel": True, "liger_kernel_config": "rope"}, "liger_kernel_config='rope': give .* true"),
        ({"use_liger_kernel": True, "liger_kernel_config": ["rope"]}, r"liger_kernel_config=\['rope'\]: give"),
        ({"use_liger_kernel": True, "liger_kernel_config": {"rope": "yes"}}, "'yes'}: give"),
        ({"torch_compile_backend": "inducto"}, "torch_compile_backend='inducto' is no compiler .* mean 'inductor'"),
        ({"torch_compile": True, "torch_compile_mode": "max-autotun"}, "torch_compile_mode='max-autotun': inductor"),
        ({"parallelism_config": ParallelismConfig(cp_size=2)}, "cp_size=2 cuts rows .* activation_offloading=True"),
        ({"parallelism_config": ParallelismConfig(sp_size=4)}, "sp_size=4 cuts rows"),
    ],
)
def test_what_is_refused(setting: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        DPOConfig(output_dir=str(tmp_path), **setting)


@pytest.mark.parametrize("kernels", [{"rope": True}, '{"rms_norm": false}', {"cross_entropy": False}])
def test_kernels_of_layers_may_be_chosen(kernels: Any, tmp_path: Path) -> None:
    settings = DPOConfig(output_dir=str(tmp_path), use_liger_kernel=True, liger_kernel_config=kernels, use_cpu=True)
    assert isinstance(chosen_kernels(settings), dict)


def test_the_launchers_wishes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARALLELISM_CONFIG_CP_SIZE", "4")
    DPOConfig(output_dir=str(tmp_path), use_cpu=True)  # nobody reads it
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    with pytest.raises(ConfigError, match="cp_size=4"):
        DPOConfig(output_dir=str(tmp_path), use_cpu=True)
    monkeypatch.delenv("ACCELERATE_USE_PARALLELISM_CONFIG")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ConfigError, match="Take bf16"):
        DPOConfig(output_dir=str(tmp_path), use_cpu=True)


@pytest.mark.parametrize("bf16", [False, True])
def test_compiling_does_not_round_float32_products(bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switched: list[bool] = []
    monkeypatch.setattr(transformers.training_args, "is_torch_tf32_available", lambda: True)
    monkeypatch.setattr(transformers.training_args, "enable_tf32", switched.append)
    settings = DPOConfig(output_dir=str(tmp_path), use_cpu=True, torch_compile=True, bf16=bf16)
    assert switched[-1] is False and settings.tf32 is None
    assert not torch.backends.cuda.matmul.allow_tf32
    DPOConfig(output_dir=str(tmp_path), use_cpu=True, torch_compile=True, tf32=True)
    assert switched[-1] is True


@pytest.mark.parametrize("launched", ["bf16", "fp16"])
def test_the_launchers_precision_is_taken_where_nothing_else_is_said(
    launched: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # where strop would choose bf16 by itself
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(DPOConfig, "contradictions", lambda self: [])
    settings = DPOConfig(output_dir=str(tmp_path), use_cpu=True)
    assert (settings.bf16, settings.fp16) == (launched == "bf16", launched == "fp16")
    own = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert not own.bf16 and not own.fp16
