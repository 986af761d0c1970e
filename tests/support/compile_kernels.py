"""Translate the head's kernels to machine code for cards that are not here; prints one line for each. Run as a script.

Triton's interpreter takes more than its compiler does, so this is a test of its own, in a process of its own: a process
either interprets kernels or compiles them.
"""

from __future__ import annotations

import os
import sys
from typing import Any

CARDS = (80, 90, 100)
"""Ampere, Hopper, Blackwell, as compute capabilities."""
NUMBERS = {"row_stride": "i32", "out_stride": "i32", "vocabulary": "i32", "scale": "fp32", "temperature": "fp32"}
COLUMNS = dict.fromkeys(("logps", "lse", "anchors", "entropy", "log_square", "mean_logit", "factor", "bonus"), "*fp32")
TYPES = {**NUMBERS, **COLUMNS, "targets": "*i64", "top1": "*u8", "bias": "*bf16", "softcap": "fp32"}
LEAST = {*NUMBERS, "raw", "targets", "logps", "lse", "anchors", "out"}


def compiled(kernel: Any, raw: str, out: str, whole: bool, card: int) -> Any:
    """A kernel for logits and gradients of these types, with everything it can be asked for or the least."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from strop.model.head_kernels import MOST_COLUMNS

    types = {**TYPES, "raw": raw, "out": out}
    given = {name: types[name] for name in kernel.arg_names if name in (types if whole else LEAST)}
    signature = {name: given.get(name, "constexpr") for name in kernel.arg_names}
    constants = {name: MOST_COLUMNS if name == "BLOCK" else None for name, t in signature.items() if t == "constexpr"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", card, 32), options={"num_warps": 8})


def main() -> None:
    from strop.model import head_kernels

    for card in CARDS:
        for raw, out in (("*fp32", "*bf16"), ("*fp32", "*fp32"), ("*bf16", "*bf16"), ("*fp16", "*fp16")):
            for whole in (False, True):
                for kernel in (head_kernels._statistics_kernel, head_kernels._gradient_kernel):
                    found = compiled(kernel, raw, out, whole, card)
                    print(card, kernel.__name__, raw, out, whole, len(found.asm["cubin"]), found.metadata.shared)


if __name__ == "__main__":
    assert "TRITON_INTERPRET" not in os.environ, "this process would interpret the kernels"
    sys.exit(main())
