from __future__ import annotations

import pytest
import torch
from torch import nn

from strop.rollout import packed_linear
from strop.rollout.packed_linear import available_memory_bytes, packed_linears


class Scaled(nn.Linear):
    """A linear layer with a forward of its own, as quantised ones have."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden) * 2


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), Scaled(32, 8), nn.Linear(8, 100, bias=False)).to(dtype)


def patched(module: nn.Module) -> list[int]:
    return [index for index, layer in enumerate(module) if "forward" in vars(layer)]  # type: ignore[arg-type]


def test_this_torch_has_the_packed_operators() -> None:
    packed_linear._packing_works.cache_clear()
    assert packed_linear._packing_works(torch.float32)


def test_a_processor_without_bfloat16_kernels_packs_float32_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    reorder = torch.ops.mkldnn._reorder_linear_weight

    def reordered(weight: torch.Tensor) -> torch.Tensor:
        if weight.dtype == torch.bfloat16:
            raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx512bw")
        return reorder(weight)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", reordered)
    packed_linear._packing_works.cache_clear()
    for dtype, layers in ((torch.bfloat16, []), (torch.float32, [0, 3])):
        with packed_linears([net := model(dtype)], steps=100):
            assert patched(net) == layers
    packed_linear._packing_works.cache_clear()


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_packed_layers_compute_the_same(rows: int) -> None:
    net, hidden = model(), torch.randn(rows, 1, 16)
    with torch.no_grad():
        expected = net(hidden)
        with packed_linears([net], steps=100) as size:
            assert patched(net) == [0, 3]
            assert size == (16 * 32 + 8 * 100) * 4
            torch.testing.assert_close(net(hidden), expected, atol=1e-5, rtol=1e-5)
    assert patched(net) == []


def test_layers_are_restored_after_an_error() -> None:
    net = model()
    with pytest.raises(ValueError), packed_linears([net], steps=100):
        assert patched(net)
        raise ValueError
    assert patched(net) == []


def test_what_cannot_or_should_not_be_packed_stays() -> None:
    with packed_linears([model(torch.float64)], steps=100) as size:
        assert size == 0
    with packed_linears([model()], steps=3) as size:
        assert size == 0
    net = model()
    with torch.autocast("cpu", torch.bfloat16), packed_linears([net], steps=100):
        assert patched(net) == []
    net[0].forward = net[0].forward  # somebody else's hook
    with packed_linears([net], steps=100):
        assert patched(net) == [0, 3] and not isinstance(net[0].forward, packed_linear._PackedForward)
    assert patched(net) == [0]


def test_autocast_that_begins_later_is_respected() -> None:
    """accelerate wraps the model's own forward in autocast: packing happens outside it, the layers run inside."""
    net, hidden = model(), torch.randn(3, 16)
    with torch.no_grad(), packed_linears([net], steps=100):
        with torch.autocast("cpu", torch.bfloat16):
            assert net(hidden).dtype == torch.bfloat16
        assert net(hidden).dtype == torch.float32


def test_short_memory_packs_the_head_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "available_memory_bytes", lambda: 4000)
    net = model()
    with packed_linears([net], steps=100):
        assert patched(net) == [3]


def test_shared_weights_are_packed_once() -> None:
    first, second = nn.Linear(16, 32), nn.Linear(16, 32)
    second.weight = first.weight
    with packed_linears([nn.Sequential(first), nn.Sequential(second)], steps=100) as size:
        assert size == 16 * 32 * 4


def test_without_the_operators_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "_packing_works", lambda dtype: False)
    net = model()
    with packed_linears([net], steps=100):
        assert patched(net) == []


def test_available_memory_is_plausible() -> None:
    assert available_memory_bytes() > 1 << 20
