"""Settings that would be passed over in silence are refused."""

from __future__ import annotations

import pytest
import torch

from strop.errors import ConfigError
from strop.methods.dpo import DPOConfig


def test_fsdp_is_refused_where_it_would_do_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    with pytest.raises(ConfigError, match="on CPU accelerate passes over it"):
        DPOConfig(output_dir=str(tmp_path), fsdp=True, use_cpu=True)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigError, match="start with torchrun"):
        DPOConfig(output_dir=str(tmp_path), fsdp=True)
    assert not DPOConfig(output_dir=str(tmp_path), use_cpu=True).fsdp
