"""What may be asked of cards, and what is refused because its result could not be stated."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from strop.errors import did_you_mean
from strop.model.liger_layers import LOSSES
from strop.plain_text import first_line

LONG_ROWS = (
    "For rows that do not fit: gradient_checkpointing=True, activation_offloading=True, one row at a time "
    "(per_device_train_batch_size=1), and FSDP or ZeRO-3 for the weights."
)


def device_problems(settings: Any) -> list[str]:
    """Problems with the settings of layers and of several cards."""
    problems = []
    try:
        kernels = chosen_kernels(settings)
    except ValueError:
        kernels = settings.liger_kernel_config
    named = isinstance(kernels, Mapping) and all(isinstance(on, bool) for on in kernels.values())
    if kernels is not None and not named:
        problems.append(
            f"liger_kernel_config={kernels!r}: give kernels by Liger's names, with true or false for each, as in "
            '{"swiglu": false}.'
        )
    if kernels and not settings.use_liger_kernel:
        problems.append(
            f"liger_kernel_config={kernels!r} has no effect unless use_liger_kernel is True; set that, or remove it."
        )
    if isinstance(kernels, Mapping) and (losses := [name for name in LOSSES if kernels.get(name)]):
        problems.append(
            f"liger_kernel_config: {', '.join(losses)} would compute logits in the place of strop's head, which no "
            "method asks for; remove it. The kernels of layers are used without being named."
        )
    problems += compiler_problems(settings.torch_compile_backend, settings.torch_compile_mode)
    for name, size in sizes_along_rows(settings.parallelism_config).items():
        problems.append(
            f"{name}={size} cuts rows over processes, and strop lays several rows out as one, with an attention of its "
            f"own: each process would compute all of them. Remove it. {LONG_ROWS}"
        )
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower() == "fp8":
        problems.append(
            "mixed_precision fp8 rounds the inputs of every product to three bits or two: nobody can say how far the "
            "gradient then is from the loss's, and policy and reference would differ by it. Take bf16."
        )
    return problems


def compiler_problems(backend: str | None, mode: str | None) -> list[str]:
    """What torch says against a compiler, or a way of compiling, before there is anything to compile.

    Asked later it would be one of many reasons for which layers stay as they are.
    """
    if backend is None and mode is None:
        return []
    known = torch.compiler.list_backends(None)
    if backend is not None and backend not in known:
        usual = ", ".join(torch.compiler.list_backends())
        return [
            f"torch_compile_backend='{backend}' is no compiler that torch finds here."
            f"{did_you_mean(backend.lower(), known)} There are {usual}, and others to debug with."
        ]
    try:
        torch.compile(lambda x: x, backend=backend or "inductor", mode=mode)
    except Exception as error:  # of whatever kind a compiler raises
        return [f"torch_compile_mode='{mode}': {backend or 'inductor'} refuses it ({first_line(error)})."]
    return []


def chosen_kernels(settings: Any) -> Any:
    """`liger_kernel_config` as a dictionary: on the command line it is JSON."""
    given = settings.liger_kernel_config
    return json.loads(given) if isinstance(given, str) else given


def sizes_along_rows(parallelism: Any) -> dict[str, int]:
    """Context and sequence parallelism above one process: of the settings, or of accelerate's launcher."""
    names = ("cp_size", "sp_size")
    launched = os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() == "true"
    if parallelism is None and launched:
        sizes = {name: int(os.environ.get(f"PARALLELISM_CONFIG_{name.upper()}", "1")) for name in names}
    else:
        sizes = {name: getattr(parallelism, name, None) or 1 for name in names}
    return {name: size for name, size in sizes.items() if size > 1}


def take_launched_precision(settings: Any) -> None:
    """Train in the precision that accelerate's launcher was given, where the settings say nothing of their own."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if settings.bf16 is None and not settings.fp16 and launched in ("bf16", "fp16"):
        setattr(settings, launched, True)


@contextmanager
def whole_float32_products(settings: Any) -> Iterator[None]:
    """Within it the parent does not round float32 products to TF32, as it does by itself where layers are compiled."""
    asked = settings.tf32
    if asked is None and (settings.torch_compile or settings.torch_compile_backend or settings.torch_compile_mode):
        settings.tf32 = False
    try:
        yield
    finally:
        settings.tf32 = asked
