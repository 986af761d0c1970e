"""The head's two kernels against float64: on a card where there is one, by Triton's interpreter on a CPU.

PyTorch for CPUs comes without Triton; these tests are then skipped, and `test_head_card.py` holds what calls the
kernels. `pip install triton` (198 MB, 691 unpacked) is all that they need.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from packaging.version import Version
from tests.support.kernels_by_hand import card  # noqa: F401
from torch import nn

import strop.model.head as head_module
from strop.model import head_kernels, head_trial
from strop.model.head import score_tokens
from strop.model.head_kernels import Reading
from strop.model.lm_head import LMHead
from strop.model.softmax import TokenStatistics
from strop.records import Want

if head_kernels.triton is None:
    pytest.skip("Triton is not installed: `pip install triton` runs the kernels on a CPU too", allow_module_level=True)
if not torch.cuda.is_available() and Version(head_kernels.triton.__version__) < Version("3.7"):
    pytest.skip("interpreters before Triton 3.7 do not go with numpy 2", allow_module_level=True)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EVERYTHING = Want.ENTROPY | Want.TOP1 | Want.LOG_SQUARE | Want.MEAN_LOGIT
WIDE_EPS = torch.finfo(torch.float32).eps


def drawn(count: int, vocabulary: int, dtype: torch.dtype, size: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(vocabulary)
    raw = (size * torch.randn(count, vocabulary, generator=generator)).to(DEVICE, dtype)
    return raw, torch.randint(vocabulary, (count,), generator=generator).to(DEVICE)


def exact(raw: torch.Tensor, targets: torch.Tensor, reading: Reading, g: torch.Tensor, e: torch.Tensor | None) -> Any:
    """Statistics by name, and the gradient of sum g log p + e entropy, in float64 by autograd."""
    leaf = raw.double().requires_grad_()
    z = reading.scale * (leaf if reading.bias is None else leaf + reading.bias.double())
    if reading.softcap is not None:
        z = reading.softcap * torch.tanh(z / reading.softcap)
    log_p = (z / reading.temperature).log_softmax(1)
    possible = log_p > -torch.inf
    finite = torch.where(possible, log_p, 0.0)
    entropy = -(finite.exp() * finite * possible).sum(1)
    logps = log_p.gather(1, targets[:, None])[:, 0]
    loss = (g * logps).sum() + (0 if e is None else (e * entropy).sum())
    (grad,) = torch.autograd.grad(loss, leaf)
    return {
        "logps": logps.detach(),
        "lse": (z / reading.temperature).logsumexp(1).detach(),
        "entropy": entropy.detach(),
        "top1": z.argmax(1) == targets,
        "log_square": (2 * log_p).logsumexp(1).detach(),
        "mean_logit": z.mean(1).detach(),
    }, torch.where(possible, grad, 0.0)


def run(
    raw: torch.Tensor, targets: torch.Tensor, reading: Reading, g: torch.Tensor, e: torch.Tensor | None, want: Want,
    written: torch.dtype | None = None,
) -> tuple[TokenStatistics, torch.Tensor]:  # fmt: skip
    into = TokenStatistics.empty(len(raw), want, raw.new_empty(0, dtype=torch.float32))
    anchors = torch.empty(len(raw), 3, device=DEVICE)
    head_kernels.statistics(raw, targets, into, anchors, reading)
    scale = reading.scale / reading.temperature
    out = torch.empty_like(raw, dtype=written or raw.dtype)
    scaled = {} if e is None else {"bonus": (e * scale).float(), "entropy": into.entropy}
    head_kernels.gradient(raw, targets, anchors, out, reading, factor=(-g * scale).float(), **scaled)
    return into, out


def weights(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    g, e = torch.linspace(-1, 2, 2 * count, dtype=torch.float64, device=DEVICE).split(count)
    g = g.clone()
    g[0] = 0.0  # a token that is not learned from
    return g, e


def hold(found: TokenStatistics, right: dict[str, torch.Tensor], size: float) -> None:
    for name, column in zip(TokenStatistics.__slots__, found.columns(), strict=True):
        if column is None:
            continue
        if column.dtype == torch.bool:
            assert torch.equal(column, right[name]), name
        else:
            near = 64 * WIDE_EPS * (1 + size)
            torch.testing.assert_close(
                column.double(), right[name], rtol=near, atol=near, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [1, 2, 37, 4096, 4097, 9001])
def test_any_vocabulary(dtype: torch.dtype, vocabulary: int) -> None:
    for softcap, bias, bonus in itertools.product((None, 7.0), (False, True), (False, True)):
        raw, targets = drawn(3, vocabulary, dtype, 3.0)
        added = torch.linspace(-1, 1, vocabulary, device=DEVICE) if bias else None
        reading = Reading(0.6, softcap, 0.8, added)
        g, e = weights(3)
        right, expected = exact(raw, targets, reading, g, e if bonus else None)
        found, grad = run(raw, targets, reading, g, e if bonus else None, EVERYTHING)
        hold(found, right, 20.0)
        assert grad.dtype == dtype
        if bonus is False:
            assert not grad[0].any()
        near = 64 * WIDE_EPS * 20 + torch.finfo(dtype).eps * (dtype != torch.float32)
        for a, b in zip(grad.double(), expected, strict=True):
            assert float((a - b).norm()) <= near * float(b.norm()) + 1e-7, (softcap, bias, bonus)


@pytest.mark.parametrize("written", [torch.float32, torch.bfloat16])
def test_logits_that_hardly_ever_come(written: torch.dtype) -> None:
    raw, targets = head_trial.drawn_logits(6, 9001)
    raw, targets = raw.to(DEVICE), targets.to(DEVICE)
    raw[5] = -torch.inf
    raw[5, 8999:] = torch.tensor([2.0, 3.0])  # two tokens in the last block are all that is possible
    targets[5] = 8999
    reading, (g, e) = Reading(), weights(6)
    right, expected = exact(raw, targets, reading, g, e)
    found, grad = run(raw, targets, reading, g, e, EVERYTHING, written)
    assert bool(grad.isfinite().all()) and bool(found.entropy.isfinite().all())  # type: ignore[union-attr]
    hold(found, right, 1500.0)
    near = 64 * WIDE_EPS * 1500 + torch.finfo(written).eps
    for a, b in zip(grad.double(), expected, strict=True):
        assert float((a - b).norm()) <= near * float(b.norm())
    assert not grad[5, :8999].any()


def test_the_gradient_of_a_confident_token_keeps_its_digits() -> None:
    raw = torch.tensor([[300.0, 288.0, 288.0]], device=DEVICE)  # log p = -1.2e-5, beside a log-sum-exp of 300
    targets = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    one = torch.ones(1, dtype=torch.float64, device=DEVICE)
    _, expected = exact(raw, targets, Reading(), one, None)
    _, grad = run(raw, targets, Reading(), one, None, Want(0))
    assert float((grad.double() - expected).norm() / expected.norm()) < 1e-2


def test_written_in_place_and_rows_apart() -> None:
    wide, targets = drawn(4, 100, torch.float32, 2.0)
    raw = wide[:, :77]  # rows that are not neighbours
    targets = targets % 77
    g, _ = weights(4)
    right, expected = exact(raw, targets, Reading(), g, None)
    beyond = wide[:, 77:].clone()
    into = TokenStatistics.empty(4, Want.ENTROPY, raw)
    anchors = torch.empty(4, 3, device=DEVICE)
    head_kernels.statistics(raw, targets, into, anchors, Reading())
    head_kernels.gradient(raw, targets, anchors, raw, Reading(), factor=(-g).float())
    hold(into, right, 10.0)
    assert torch.allclose(raw.double(), expected, atol=1e-5) and torch.equal(wide[:, 77:], beyond)


def test_rows_beyond_the_reach_of_32_bits() -> None:
    """A chunk of 15,000 tokens of a large vocabulary has more than 2^31 logits; here few of them are touched."""
    base = torch.empty(2**31 + 2**20, dtype=torch.bfloat16, device=DEVICE)
    near, targets = drawn(3, 500, torch.bfloat16, 2.0)
    far = base.as_strided((3, 500), (2**30, 1))
    far.copy_(near)
    found = []
    for raw in (near, far):
        into = TokenStatistics.empty(3, Want.ENTROPY, raw.new_empty(0, dtype=torch.float32))
        anchors = torch.empty(3, 3, device=DEVICE)
        head_kernels.statistics(raw, targets, into, anchors, Reading())
        head_kernels.gradient(raw, targets, anchors, raw, Reading())
        found.append((into.logps, into.entropy, raw))
    assert all(map(torch.equal, *found))


def test_the_trial_is_passed() -> None:
    assert head_trial.difference_to_eager(head_kernels, DEVICE) == ""


@pytest.mark.parametrize("head_bytes", [1, 5 * 41 * 6, None])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_the_head_by_its_kernels(
    head_bytes: int | None, softcap: float | None, card: Any, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    if DEVICE.type == "cpu":
        card()
    monkeypatch.setattr(head_module, "kernels_for", lambda device, dtype: head_kernels)
    torch.manual_seed(1)
    layer = nn.Linear(8, 41, dtype=torch.bfloat16, device=DEVICE)
    nn.init.normal_(layer.weight, std=1.0)
    hidden = torch.randn(12, 8, device=DEVICE).bfloat16().requires_grad_()
    targets = torch.randint(41, (12,)).to(DEVICE)
    head = LMHead(layer, 0.7, softcap)
    out = score_tokens(head, hidden, targets, Want.ENTROPY, temperature=0.8, head_bytes=head_bytes, grad_entropy=True)
    grads = torch.autograd.grad((out["logps"] + 0.3 * out["entropy"]).sum(), [hidden, *layer.parameters()])

    double = nn.Linear(8, 41, dtype=torch.float64, device=DEVICE)
    double.load_state_dict({name: value.double() for name, value in layer.state_dict().items()})
    states = hidden.detach().double().requires_grad_()
    log_p = (LMHead(double, 0.7, softcap).logits(states) / 0.8).log_softmax(1)
    logps, entropy = log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(1)
    expected = torch.autograd.grad((logps + 0.3 * entropy).sum(), [states, *double.parameters()])
    assert torch.allclose(out["logps"].double(), logps, atol=1e-5)
    assert torch.allclose(out["entropy"].double(), entropy, atol=1e-5)
    for a, b in zip(grads, expected, strict=True):
        assert float((a.double() - b).norm() / b.norm()) < 1e-2


FAULTS = {
    "the maximum of the last block": ("risen = tl.maximum(top, tl.max(x, 0))", "risen = tl.max(x, 0)"),
    "sums that do not follow the maximum": ("tl.exp(-growth))", "tl.exp(-growth * 0.0))"),
    "entropy without the growth of the maximum": ("(weighted - growth * total)", "weighted"),
    "squares that grow once": ("kept * kept * squares", "kept * squares"),
    "columns beyond the vocabulary": ('x = tl.where(inside, z / temperature, float("-inf"))', "x = z / temperature"),
    "no temperature": ('tl.where(inside, z / temperature, float("-inf"))', 'tl.where(inside, z, float("-inf"))'),
    "no temperature in the gradient": ("log_p = z / temperature -", "log_p = z -"),
    "no scale": ("    z *= scale\n", ""),
    "no bias": ("other=0.0).to(tl.float32)\n    z *=", "other=0.0).to(tl.float32) * 0.0\n    z *="),
    "a cap without its sign": ("z = tl.where(z < 0.0, -bent, bent)", "z = bent"),
    "no slope of the cap": ("found *= 1.0 - bent * bent", "found *= 1.0"),
    "the target's own residual": ("tl.load(anchors + 3 * row + 2), p)", "p, p)"),
    "the neighbour's target": ("columns == tl.load(targets + row)", "columns == tl.load(targets + row) + 1"),
    "the sum left out of the gradient": (" - tl.load(anchors + 3 * row + 1)", ""),
    "the first block only": ("tl.program_id(1) * BLOCK +", "0 * tl.program_id(1) * BLOCK +"),
    "no factor": ("found *= tl.load(factor + row)", "found *= 1.0"),
    "the bonus added": ("found -= tl.load(bonus + row) * spread", "found += tl.load(bonus + row) * spread"),
    "impossible tokens": ("tl.where(e > 0.0, e * d, 0.0)", "e * d"),
    "impossible blocks": ('base = tl.where(risen == float("-inf"), 0.0, risen)', "base = risen"),
    "of equal logits the last": ("(columns < target)", "(columns > target)"),
    "the mean over the block": ("added / vocabulary", "added / BLOCK"),
}


def with_fault(find: str, replace: str, folder: Path) -> ModuleType:
    """The module of the kernels with one fault in it."""
    text = Path(head_kernels.__file__).read_text(encoding="utf-8")
    assert text.count(find) == 1, f"{find!r} stands {text.count(find)} times in head_kernels.py; write the fault anew"
    path = folder / "faulty_kernels.py"
    path.write_text(text.replace(find, replace), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("faulty_kernels", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faulty_kernels"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("fault", FAULTS)
def test_the_trial_finds_a_fault_in_a_kernel(fault: str, tmp_path: Path) -> None:
    assert head_trial.difference_to_eager(with_fault(*FAULTS[fault], tmp_path), DEVICE) != ""


@pytest.mark.slow
def test_the_kernels_compile_for_cards() -> None:
    """Ampere, Hopper and Blackwell: the interpreter takes more than the compiler does."""
    root = Path(__file__).resolve().parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(root / "src"), *sys.path])
    script = root / "tests" / "support" / "compile_kernels.py"
    run = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    assert len(run.stdout.splitlines()) == 3 * 4 * 2 * 2
