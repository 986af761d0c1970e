"""Matrix products that are not rounded to half precision: logits, and gradients that are added up.

    on a card     half-precision matrices, multiplied and added up in float32, the result in float32
    elsewhere     the matrices are widened first

PyTorch offers the first as `torch.mm(..., out_dtype=torch.float32)`, for CUDA only. It is tried on first use against
float64, and where it is not there or not right, matrices are widened there too: a fault costs speed, not truth.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch

logger = logging.getLogger(__name__)

WIDE = (torch.float32, torch.float64)
HALF = (torch.bfloat16, torch.float16)
BOUND = 64
"""Error that a float32 result may have, in units of float32's precision: sums on a card are cut off, not rounded."""
_mm: Any = torch.mm


def on_card(device: torch.device) -> bool:
    """Whether what is written for CUDA runs there."""
    return device.type == "cuda"


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether the processor has units for products of bfloat16 (AMX, AVX-512 BF16); PyTorch before 2.9 does not say."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(known.get("amx_bf16") or known.get("avx512_bf16"))


def stays_narrow(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether matrices of this dtype are multiplied as they are, since `wide_product` gives float32 of them."""
    return dtype in WIDE or (on_card(device) and dtype in HALF and _gives_float32(device, dtype))


def wide_product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """a @ b, (n, k), (k, m) -> (n, m), in float32 or float64; half precision only where it `stays_narrow`."""
    if a.dtype in WIDE:
        return torch.mm(a, b, out=out)
    return _mm(a, b, out_dtype=torch.float32, out=out)


@functools.cache
def _gives_float32(device: torch.device, dtype: torch.dtype) -> bool:
    problem = difference_to_exact(device, dtype)
    if problem:
        logger.warning(
            "products of %s with float32 results are not right on %s (%s); widening the matrices instead, which is "
            "slower",
            dtype,
            device.type,
            problem,
        )
    return not problem


@torch.no_grad()
def difference_to_exact(device: torch.device, dtype: torch.dtype) -> str:
    """What is wrong with products of this dtype that are asked for in float32, or the empty string.

    Tried as the head multiplies: by a transposed matrix, by a transposed chunk, into a given buffer.
    """
    generator = torch.Generator().manual_seed(0)
    rows, matrix = (torch.randn(*sizes, generator=generator).to(device, dtype) for sizes in ((24, 96), (40, 96)))
    buffer = torch.empty(24, 40, device=device)
    cases = ((rows, matrix.t(), None), (rows.t(), rows, None), (rows, matrix.t(), buffer))
    try:
        with torch.autocast(device.type, enabled=False):
            for a, b, out in cases:
                found, exact = wide_product(a, b, out), a.double() @ b.double()
                error = float((found.double() - exact).norm() / exact.norm())
                if found.dtype != torch.float32 or (out is not None and found.data_ptr() != out.data_ptr()):
                    return f"the result is {found.dtype}, or not where it was asked for"
                if not error <= BOUND * torch.finfo(torch.float32).eps:
                    return f"relative error {error:.1e}"
    except Exception as caught:  # whatever an operator raises that is not there, or has changed
        return f"{type(caught).__name__}: {caught}"
    return ""
