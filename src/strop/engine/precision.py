"""One precision for every model that a run compares: policy, reference, teacher, old log-probs, values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from strop.records import Scores


def in_one_precision(accelerator: Any, scoring: Callable[..., Scores], *args: Any, **options: Any) -> Scores:
    """`scoring(*args, **options)` in the precision that the policy is trained in.

    accelerate puts mixed precision around the wrapped policy's forward only; reference, teacher and a policy without
    its wrapper would be scored in another one, and their ratios be off by its rounding.
    """
    with accelerator.autocast():
        scores = scoring(*args, **options)
    if accelerator.mixed_precision != "no" and scores.hidden is not None:
        scores.hidden = scores.hidden.float()  # as accelerate widens what the wrapped policy returns
    return scores
