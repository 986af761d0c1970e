"""Settings that would be passed over in silence are refused."""

from __future__ import annotations

import pytest
import torch

from strop.errors import ConfigError
from strop.methods.dpo import DPOConfig
from strop.methods.grpo import GRPOConfig


def test_fsdp_is_refused_where_it_would_do_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    with pytest.raises(ConfigError, match="on CPU accelerate passes over it"):
        DPOConfig(output_dir=str(tmp_path), fsdp=True, use_cpu=True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigError, match="start with torchrun"):
        DPOConfig(output_dir=str(tmp_path), fsdp=True)
    assert not DPOConfig(output_dir=str(tmp_path), use_cpu=True).fsdp


def test_the_nearest_name_is_looked_for_where_a_setting_was_meant(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """transformers asks for `__name__` some twenty times a step: a search each time took most of a small step."""
    config = DPOConfig(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(AttributeError, match="Did you mean 'learning_rate'"):
        _ = config.learning_rat
    searches: list[str] = []
    monkeypatch.setattr("strop.settings.config.did_you_mean", lambda name, known: searches.append(name) or "")
    assert not hasattr(config, "__name__") and not hasattr(config, "_setup")
    assert searches == [] and not hasattr(config, "learning_rat") and searches == ["learning_rat"]


@pytest.mark.parametrize(
    "name", ["per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"]
)
def test_a_batch_has_rows(name: str, tmp_path) -> None:
    with pytest.raises(ConfigError, match=f"{name}=0: must be >= 1"):
        DPOConfig(output_dir=str(tmp_path), use_cpu=True, **{name: 0})


def test_a_vllm_server_takes_so_many_stop_strings(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.delenv("VLLM_MAX_STOP_STRINGS", raising=False)
    given = {"output_dir": str(tmp_path), "use_cpu": True, "use_vllm": True, "stop": ["a", "b", "c", "d", "e"]}
    with pytest.raises(ConfigError, match="stop: a vLLM server takes 4 texts, and 5 are given"):
        GRPOConfig(vllm_mode="server", **given)
    GRPOConfig(**given)  # one in this process takes any number
    monkeypatch.setenv("VLLM_MAX_STOP_STRINGS", "5")
    GRPOConfig(vllm_mode="server", **given)
