"""Where a program is run: behind the wall if one can be built here, else nowhere, unless the user says otherwise."""

from __future__ import annotations

import functools
import os
import warnings

from strop.errors import SetupError
from strop.rewards.sandbox.fences import Fences
from strop.rewards.sandbox.protocol import Limits, Sandbox
from strop.rewards.sandbox.wall import Wall

_PROBE_SECONDS = 30.0


@functools.cache
def find_wall() -> tuple[Wall | None, str]:
    """(the wall, "") or (None, why there is none). Tried once per process."""
    wall = Wall()
    why = wall.unusable() or _probe(wall)
    return (None, why) if why else (wall, "")


def choose(sandbox: Sandbox | None, allow_unsafe_code: bool) -> Sandbox:
    """The sandbox to use.

    Raises:
        SetupError: no wall can be built here, and nobody allowed to do without; or this is no POSIX system.
    """
    if sandbox is not None:
        return sandbox
    wall, why = find_wall()
    if wall is not None:
        return wall
    if os.name != "posix":
        raise SetupError("Running model-written code needs a POSIX system; use WSL, or give a sandbox= of your own.")
    fences = Fences()
    lacks = "; ".join(fences.missing)
    if not allow_unsafe_code:
        raise SetupError(
            f"A program that a model wrote is not run here: no wall can be built around it ({why}). Install "
            "bubblewrap (apt-get install bubblewrap), and where a container forbids user namespaces allow them "
            "(docker run --security-opt seccomp=unconfined, sysctl kernel.unprivileged_userns_clone=1, "
            "kernel.apparmor_restrict_unprivileged_userns=0); or give sandbox= (Docker, a remote machine: see "
            f"strop.rewards.sandbox.protocol); or say allow_unsafe_code=True, knowing what is missing then: {lacks}."
        )
    warnings.warn(
        f"Model-written code runs without a wall ({why}), because of allow_unsafe_code=True. Missing: {lacks}.",
        stacklevel=3,
    )
    return fences


def _probe(wall: Wall) -> str:
    """Why a process cannot be started behind the wall; "" if it can."""
    limits = Limits(_PROBE_SECONDS, 1 << 30, 1 << 20, 1 << 16)
    try:
        process = wall.start(["-I", "-S", "-c", "print('here')"], limits)
    except OSError as error:
        return str(error)
    try:
        out, said = process.communicate(timeout=_PROBE_SECONDS)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        wall.stop(process)
    last = said.decode("utf-8", "replace").strip().splitlines()[-1:]
    return "" if out == b"here\n" else f"bwrap failed: {(last or ['it said nothing'])[0]}"
