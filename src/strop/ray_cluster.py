"""Ray, where it is asked for: a cluster to work in, and answers of its actors that come, or are missed by name."""

from __future__ import annotations

import os
from typing import Any

from strop.errors import SetupError
from strop.plain_text import first_line


class Missed(Exception):
    """An actor gave no answer: it died, or its time was over. The text says which."""


def cluster() -> Any:
    """The module `ray`, in a cluster: the one that the script joined or RAY_ADDRESS names, else one on this machine.

    Raises:
        SetupError: the package is missing.
    """
    try:
        import ray
    except ImportError:
        raise SetupError("Ray is not installed: pip install 'strop[ray]'.") from None
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(include_dashboard=False, log_to_driver=False)
    return ray


def answers(futures: list[Any], seconds: float) -> list[Any]:
    """What the actors answered, in order.

    Args:
        futures: of calls of actors.
        seconds: to wait for all of them together; an actor for which the cluster has no room never answers.

    Raises:
        Missed: one died, or did not answer in time. What a call itself raised is raised as it is.
    """
    ray = cluster()
    try:
        return list(ray.get(futures, timeout=seconds))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.GetTimeoutError:
        free = ", ".join(f"{amount:g} {name}" for name, amount in ray.available_resources().items() if "PU" in name)
        raise Missed(
            f"it gave no answer within {seconds:g} seconds (free in the cluster: {free or 'no CPU'})"
        ) from None
    except ray.exceptions.RayError as error:
        raise Missed(f"it died ({first_line(error)})") from None
