"""How often the head goes over the logits of a chunk, beside the products that make them and take their gradient.

A pass is one operator, or one kernel, that reads or writes all N x V of them. On a card each takes as long as its bytes
take through memory, so their number is what the head costs there.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support import kernels_by_hand
from tests.support.kernels_by_hand import card  # noqa: F401
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import strop.model.head as head_module
from strop.model.head import score_tokens
from strop.model.lm_head import LMHead
from strop.records import Want

N, H, V = 24, 4, 640
PRODUCTS = ("mm", "addmm")
ONE_ENTRY_A_ROW = ("gather", "scatter")
NO_PASS = ("empty", "new_empty", "empty_like", "detach")


class Passes(TorchDispatchMode):
    """Counts operators that touch at least N x V entries."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0].rstrip("_")
        if not func.is_view and name not in PRODUCTS + ONE_ENTRY_A_ROW + NO_PASS:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
            if any(x.numel() >= N * V for x in tensors):
                self.found.append(name)
        return out


class Called(nn.Module):
    """A layer that has to be called."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def passes(card: Any, kernels: bool, monkeypatch: pytest.MonkeyPatch, **given: Any) -> tuple[list[str], list[str]]:  # noqa: F811
    """Names of the passes of forward and backward."""
    card(kernels=kernels)
    mode = Passes()
    if kernels:

        class Noted:
            @staticmethod
            def statistics(*args: Any) -> None:
                mode.found.append("statistics")
                kernels_by_hand.statistics(*args)

            @staticmethod
            def gradient(*args: Any, **scales: Any) -> Any:
                mode.found.append("gradient")
                return kernels_by_hand.gradient(*args, **scales)

        monkeypatch.setattr(head_module, "kernels_for", lambda device, dtype: Noted)
    torch.manual_seed(0)
    layer = nn.Linear(H, V, bias=given.get("bias", False), dtype=given.get("dtype", torch.bfloat16))
    head = LMHead(Called(layer) if given.get("called") else layer, 0.5, given.get("softcap"))
    hidden = torch.randn(N, H, dtype=layer.weight.dtype, requires_grad=True)
    bonus = bool(given.get("bonus"))
    with mode:
        out = score_tokens(
            head, hidden, torch.randint(V, (N,)), given.get("want", Want.LOGPS), temperature=0.7,
            head_bytes=given.get("head_bytes"), grad_entropy=bonus,
        )  # fmt: skip
        forward, mode.found = mode.found, []
        (out["logps"].sum() + (out["entropy"].sum() if bonus else 0)).backward()
    return forward, mode.found


EVERYTHING = Want.LOGPS | Want.ENTROPY | Want.TOP1 | Want.LOG_SQUARE | Want.MEAN_LOGIT
ALL_AGAIN = V * 6 * (N + 1)
"""Bytes in which all rows are one chunk, and nothing is kept for the backward pass."""
HEADS: dict[str, tuple[dict[str, Any], int, int]] = {
    "residuals are kept": ({}, 2, 0),
    "logits are computed again": ({"head_bytes": ALL_AGAIN}, 1, 1),
    "everything is asked for": ({"want": EVERYTHING}, 2, 0),
    "capped, with a bias": ({"softcap": 5.0, "bias": True}, 1, 1),
    "an entropy bonus": ({"bonus": True, "want": EVERYTHING}, 1, 1),
    "an entropy bonus, computed again": ({"bonus": True, "head_bytes": ALL_AGAIN}, 1, 1),
    "float32": ({"dtype": torch.float32}, 2, 0),
    "float32, computed again": ({"dtype": torch.float32, "head_bytes": N * V * 4, "softcap": 9.0}, 1, 1),
    "a layer that is called": ({"called": True}, 1, 1),
}


@pytest.mark.parametrize("name", HEADS)
def test_with_kernels_the_head_goes_over_the_logits_twice(
    name: str, card: Any, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    given, forward, backward = HEADS[name]
    found = passes(card, True, monkeypatch, **given)
    assert (len(found[0]), len(found[1])) == (forward, backward), found
    assert set(found[0] + found[1]) == {"statistics", "gradient"} and len(found[0] + found[1]) <= 3


EAGER = {
    "residuals are kept": (8, 0),
    "everything is asked for": (12, 0),
}


@pytest.mark.parametrize("name", EAGER)
def test_operators_go_over_them_more_often(name: str, card: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    forward, backward = passes(card, False, monkeypatch, **HEADS[name][0])
    assert (len(forward), len(backward)) == EAGER[name], (forward, backward)
