"""Whether the head's kernels are used on a device: where Triton is, and where they give what the reference gives.

They are compiled on the user's machine, by whatever Triton and driver are there. So each is held against the eager code
in float64 once per process, before it is used; a fault costs speed, not truth.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import Any

import torch

from strop.model import head_kernels, softmax
from strop.model.lm_head import Reading
from strop.model.products import HALF, on_card
from strop.model.softmax import TokenStatistics
from strop.records import Want

logger = logging.getLogger(__name__)

BOUND = 16
"""Error that a kernel may have in units of float32's precision, beside one rounding of what it writes; errors of logits
grow with them."""
EVERYTHING = Want.ENTROPY | Want.TOP1 | Want.LOG_SQUARE | Want.MEAN_LOGIT
VOCABULARY = 2 * head_kernels.MOST_COLUMNS + 809
"""Two blocks of columns and a part of one."""


def kernels_for(device: torch.device, dtype: torch.dtype) -> Any:
    """The module whose `statistics` and `gradient` serve logits of this dtype on a device, or None."""
    if not on_card(device) or head_kernels.triton is None or dtype not in (torch.float32, *HALF):
        return None
    return head_kernels if _are_right(device) else None


@functools.cache
def _are_right(device: torch.device) -> bool:
    problem = difference_to_eager(head_kernels, device)
    if problem:
        logger.warning(
            "the head's kernels on %s do not equal the eager code (%s); using the slower eager code",
            device.type,
            problem,
        )
    return not problem


@dataclass(frozen=True)
class Case:
    raw: torch.dtype
    written: torch.dtype
    softcap: float | None = None
    has_bias: bool = False
    has_bonus: bool = False
    has_factor: bool = True
    want: Want = EVERYTHING


CASES = (
    Case(torch.float32, torch.bfloat16, has_factor=False),
    Case(torch.float32, torch.float32, softcap=20.0, has_bias=True, has_bonus=True),
    Case(torch.bfloat16, torch.bfloat16, softcap=20.0, want=Want(0)),
    Case(torch.float16, torch.float16, has_bias=True, has_bonus=True, want=Want.ENTROPY),
)


@torch.no_grad()
def difference_to_eager(kernels: Any, device: torch.device) -> str:
    """What is wrong with the kernels, or the empty string."""
    try:
        for case in CASES:
            if problem := _difference(kernels, device, case):
                return f"{problem}; raw logits in {case.raw}, cap {case.softcap}"
    except Exception as caught:  # no compiler, another Triton, a card that it does not know
        return f"{type(caught).__name__}: {caught}"
    return ""


def drawn_logits(count: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw logits (n, V) as they come and as they hardly ever come, and targets (n,): at least six rows."""
    generator = torch.Generator().manual_seed(0)
    raw = 3 * torch.randn(count, vocabulary, generator=generator)
    targets = torch.randint(vocabulary, (count,), generator=generator)
    targets[:3] = torch.tensor([vocabulary - 1, 0, vocabulary // 2])
    raw[1] = raw[1] * 30 + 1000  # large, and far from 0
    raw[2, : vocabulary // 2] = -torch.inf  # tokens that the model rules out, whole blocks of them among these
    raw[3, targets[3]] = 25.0  # all but certain
    raw[4, targets[4]] = raw[4].max()  # as probable as another token
    raw[5, 7] = 150.0  # beside it the sum of the rest is nothing, and would pass what float32 holds
    return raw, targets


def _difference(kernels: Any, device: torch.device, case: Case) -> str:
    drawn, targets = drawn_logits(6, VOCABULARY)
    raw, targets = drawn.to(device, case.raw), targets.to(device)
    bias = torch.linspace(-1, 1, VOCABULARY, device=device) if case.has_bias else None
    reading = Reading(0.75, case.softcap, 0.8, bias)
    g, e = torch.linspace(-1, 2, 2 * len(targets), device=device).split(len(targets))

    def run(passes: Any, raw: torch.Tensor, written: torch.dtype) -> tuple[TokenStatistics, torch.Tensor]:
        wide = torch.promote_types(raw.dtype, torch.float32)
        found = TokenStatistics.empty(len(raw), case.want, raw.new_empty(0, dtype=wide))
        anchors = raw.new_empty(len(raw), 3, dtype=wide)
        passes.statistics(raw, targets, found, anchors, reading)
        scales = reading.scales(g.to(wide), e.to(wide) if case.has_bonus else None, found.entropy)
        out = raw if raw.dtype == written else torch.empty_like(raw, dtype=written)
        passes.gradient(raw, targets, anchors, out, reading, **(scales if case.has_factor else {}))
        return found, out

    z = reading.logits_(raw.double())
    sizes = 1 + torch.where(z.isfinite(), z, 0.0).abs().amax(1) / reading.temperature  # (n,)
    residual = softmax.softmax_residual_(raw.double(), targets, TokenStatistics.empty(len(z), Want(0), z), reading)
    right, exact = run(softmax, raw.double(), torch.float64)
    found, out = run(kernels, raw, case.written)

    for name, a, b in zip(TokenStatistics.__slots__, found.columns(), right.columns(), strict=True):
        if a is not None and b is not None and (problem := _column_problem(a, b, sizes)):
            return f"{name}: {problem}"
    error, size = (out.double() - exact).norm(dim=1), exact.norm(dim=1)
    eps, written = torch.finfo(torch.float32).eps, torch.finfo(case.written)
    bound = (BOUND * eps * sizes + written.eps) * size
    bound += 8 * eps * residual.norm(dim=1)  # at a cap the gradient is a small difference
    bound += written.tiny * written.eps * VOCABULARY**0.5  # float16 has no smaller steps
    return "" if bool((error <= bound).all()) else f"gradient: relative errors {(error / size).tolist()}"


def _column_problem(found: torch.Tensor, right: torch.Tensor, sizes: torch.Tensor) -> str:
    if found.dtype == torch.bool:
        return "" if torch.equal(found, right) else f"{found.tolist()}, not {right.tolist()}"
    found = found.double()
    error = ((found - right).abs() / (1 + right.abs()) / sizes).where(found != right, 0.0)  # equal: infinities too
    worst = float(error.max()) if bool(error.isfinite().all()) else float("inf")
    return "" if worst <= BOUND * torch.finfo(torch.float32).eps else f"error {worst:.1e}"
