"""Scale and cap of the output layer, as configs name them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from strop.errors import SetupError
from strop.model.lm_head import LMHead, lm_head_of
from strop.testing.tiny import tiny_model


@pytest.mark.parametrize(
    ("arch", "scale", "softcap"),
    [("llama", 1.0, None), ("cohere", 0.25, None), ("granite", 1 / 3, None), ("gemma2", 1.0, 30.0)],
)
def test_scale_and_cap_are_read(arch: str, scale: float, softcap: float | None, model_of: Any) -> None:
    head = lm_head_of(model_of(arch))
    assert head.scale == pytest.approx(scale) and head.softcap == softcap
    assert head.is_plain


def test_models_without_a_language_model_head_are_refused() -> None:
    with pytest.raises(SetupError, match="no language-model head"):
        lm_head_of(tiny_model("llama", task="score"))
    with pytest.raises(SetupError, match="no language-model head"):
        lm_head_of(nn.Linear(2, 2))


def test_what_is_plain() -> None:
    class Odd(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    class Sharded(nn.Linear):
        """As FSDP makes it: another class, the same forward."""

    assert LMHead(Sharded(2, 3)).is_plain
    assert not LMHead(Odd(2, 3)).is_plain
    hooked = nn.Linear(2, 3)
    hooked.forward = lambda x: x  # type: ignore[method-assign]
    assert not LMHead(hooked).is_plain
