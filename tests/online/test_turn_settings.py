"""A setting of tools or environments acts, or is refused where there are none: an agent calls its tools itself."""

from __future__ import annotations

from typing import Any

import pytest

from strop.agents import AgentProgram
from strop.agents.rollout_function import RolloutFunction
from strop.agents.tools import Tools
from strop.errors import ConfigError
from strop.methods.grpo import GRPOConfig
from strop.online.turn_settings import NEEDED, check_turn_settings
from strop.testing.cases import make_trainer

MOVED: dict[str, Any] = {
    "max_tool_calling_iterations": 3,
    "tool_timeout": 5.0,
    "tools_at_once": 2,
    "environment_isolation": True,
    "past_turns": "sampled",
}
GIVEN: dict[str, dict[str, Any]] = {
    "nothing": {},
    "tools": {"tools": Tools()},
    "environments": {"environments": object()},
    "agent": {"rollout_func": AgentProgram(lambda endpoint, row: None)},
    "function": {"rollout_func": RolloutFunction(lambda prompts, trainer: None)},
}


def test_every_setting_of_turns_is_known() -> None:
    assert MOVED.keys() == NEEDED.keys()


@pytest.mark.parametrize("name", MOVED)
@pytest.mark.parametrize("given", GIVEN)
def test_a_setting_acts_or_is_refused(given: str, name: str) -> None:
    args = GRPOConfig(use_cpu=True, **{name: MOVED[name]})
    if given in NEEDED[name]:
        check_turn_settings(args, GIVEN[given])
    else:
        with pytest.raises(ConfigError, match=rf"{name}={MOVED[name]!r} has no effect without .*; remove it"):
            check_turn_settings(args, GIVEN[given])


@pytest.mark.parametrize("given", GIVEN)
def test_defaults_are_taken_everywhere(given: str) -> None:
    check_turn_settings(GRPOConfig(use_cpu=True), GIVEN[given])


def test_an_agents_own_bounds_are_named() -> None:
    args = GRPOConfig(use_cpu=True, max_tool_calling_iterations=3, tool_timeout=5.0, tools_at_once=2)
    with pytest.raises(ConfigError) as refused:
        check_turn_settings(args, GIVEN["agent"])
    for bound in ("most_calls", "seconds", "at_once"):
        assert f"AgentProgram({bound}=...)" in str(refused.value)


def test_environments_beside_a_rollout_function_are_refused() -> None:
    with pytest.raises(ConfigError, match="environment_factory is asked by nobody"):
        check_turn_settings(GRPOConfig(use_cpu=True), GIVEN["function"] | GIVEN["environments"])


def test_a_trainer_asks(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"tool_timeout=5\.0 has no effect without tools or environment_factory"):
        make_trainer("grpo", tmp_path, tool_timeout=5.0)
