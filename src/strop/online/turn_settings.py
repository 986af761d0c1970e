"""Settings of turns are refused where nothing that a trainer was given has turns for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from strop.agents.program import AgentProgram
from strop.errors import ConfigError
from strop.settings.prerequisites import default_of

NEEDED = {
    "max_tool_calling_iterations": ("tools", "environments"),
    "tool_timeout": ("tools", "environments"),
    "tools_at_once": ("tools",),
    "environment_isolation": ("environments",),
    "past_turns": ("tools", "environments", "agent"),
}
"""Setting -> what it is about; one of them is enough."""
ARGUMENTS = {"tools": "tools", "environments": "environment_factory", "agent": "an AgentProgram"}
INSTEAD = {
    "max_tool_calling_iterations": "AgentProgram(most_calls=...) bounds what an agent asks of the model",
    "tool_timeout": "AgentProgram(seconds=...) bounds the time of an agent",
    "tools_at_once": "AgentProgram(at_once=...) bounds the agents that work at a time",
}
"""What an agent, which calls its tools itself, has in their place."""


def check_turn_settings(args: Any, given: Mapping[str, Any]) -> None:
    """Refuse settings of tools and environments, and environments, that the rollouts of this trainer do not come to.

    Args:
        given: the trainer's own arguments: `tools`, `environments`, `rollout_func`.

    Raises:
        ConfigError: all of them.
    """
    own = given.get("rollout_func")
    there = {name for name in ("tools", "environments") if given.get(name) is not None} if own is None else set[str]()
    there |= {"agent"} if isinstance(own, AgentProgram) else set()
    problems = []
    if own is not None and not isinstance(own, AgentProgram) and given.get("environments") is not None:
        problems.append("environment_factory is asked by nobody: the rollout_func makes the turns itself; remove one.")
    for field in dataclasses.fields(args):
        needs = NEEDED.get(field.name)
        if needs is None or there & {*needs} or getattr(args, field.name) == default_of(field):
            continue
        needed = " or ".join(ARGUMENTS[name] for name in needs)
        why = f"{field.name}={getattr(args, field.name)!r} has no effect without {needed}"
        problems.append(f"{why}{_beside(own, field.name)}; remove it.")
    if problems:
        raise ConfigError.collect("This has no effect on the rollouts here:", problems)


def _beside(own: Any, name: str) -> str:
    """Why it has none where turns are somebody else's."""
    if own is None:
        return ""
    if not isinstance(own, AgentProgram):
        return ": the rollout_func makes the turns itself"
    return f": an agent calls its tools itself{', and ' + INSTEAD[name] if name in INSTEAD else ''}"
