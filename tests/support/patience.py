"""Time limits that a test is run under, on a machine that may have other work to do."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest


def with_patience(*limits: float) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a test `seconds`: the first of these limits, and where it does not hold under that one, the next.

    What such a test says is that under a time limit the one call that never ends costs nothing but itself. Any limit
    ends what never ends; what is healthy needs one that a busy machine can keep. The first is short, so that the test
    is quick, and the last so long that no machine is too slow for it: a fault is there under every limit.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            for seconds in limits[:-1]:
                try:
                    return test(*args, seconds=seconds, **kwargs)
                except (Exception, pytest.fail.Exception):
                    continue
            return test(*args, seconds=limits[-1], **kwargs)

        signature = inspect.signature(test)
        asked = [one for name, one in signature.parameters.items() if name != "seconds"]  # the others are fixtures
        run.__signature__ = signature.replace(parameters=asked)  # type: ignore[attr-defined]
        return run

    return decorate
