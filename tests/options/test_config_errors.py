"""What a config answers to any keyword and any value: it is made, or a `ConfigError` names the field."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from tests.support.flips import own_fields

import strop
from strop.cli import main
from strop.errors import ConfigError
from strop.methods.registry import METHODS
from strop.settings.schema import Range, field_hints

CONFIGS = [getattr(strop, method.config_name) for method in METHODS]
ids = [config.__name__ for config in CONFIGS]


@pytest.mark.parametrize("config_class", CONFIGS, ids=ids)
def test_an_unknown_keyword_is_answered_with_the_nearest_name(config_class: Any) -> None:
    for name in own_fields(config_class):
        wrong = name + "z"
        with pytest.raises(ConfigError) as error:
            config_class(**{wrong: 1})
        assert f"{wrong}=1 is not a field of {config_class.__name__}" in str(error.value)
        assert f"Did you mean '{name}'?" in str(error.value)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.verb)
@pytest.mark.parametrize("way", ["flag", "file"])
def test_an_unknown_name_is_answered_on_the_command_line_too(method: Any, way: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "run.yaml").write_text("learning_rat: 0.1\nwarmup_step: 3\n")
    words = {"flag": ["--learning_rat", "0.1", "--warmup-step", "3"], "file": ["--config", str(tmp_path / "run.yaml")]}
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
        status = main([method.verb, "--model", "m", "--dataset", str(tmp_path / "rows.jsonl"), *words[way]])
    assert status != 0
    assert (
        "Did you mean 'learning_rate'?" in printed.getvalue() and "Did you mean 'warmup_steps'?" in printed.getvalue()
    )


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values around a type hint: inside and outside of its range, its names and others, other types."""
    origin, args = get_origin(hint), get_args(hint)
    inside = [values(a) for a in args if isinstance(a, type) or get_origin(a) is not None]
    ends = [end for a in args if isinstance(a, Range) for end in (a.min, a.max)]
    near = st.sampled_from([e + d for e in ends for d in (-1, -0.5, 0, 0.5, 1) if abs(e) < 1e9] or [0])
    anything = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 3),
        st.floats(-2, 2),
        st.text(max_size=3),
        st.lists(st.floats(0, 1), max_size=2),
    )
    names = [st.sampled_from(args)] if origin is not None and "Literal" in str(origin) else []
    return st.one_of(anything, near, *names, *inside)


@pytest.mark.parametrize("config_class", CONFIGS, ids=ids)
@limits(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_any_value_makes_a_config_or_an_error_that_names_the_field(config_class: Any, data: Any) -> None:
    hints = field_hints(config_class)
    name = data.draw(st.sampled_from([n for n in own_fields(config_class) if n != "bf16"]))
    value = data.draw(values(hints[name]))
    try:
        config_class(output_dir="runs/x", use_cpu=True, **{name: value})
    except ConfigError as error:
        assert name in str(error), f"{name}={value!r}: {error}"


@pytest.mark.parametrize("config_class", CONFIGS, ids=ids)
def test_a_config_comes_back_from_yaml(config_class: Any, tmp_path: Path) -> None:
    made = config_class(
        output_dir=str(tmp_path), use_cpu=True, learning_rate=3e-5, max_length=77, eval_strategy="steps"
    )
    text = yaml.safe_dump(made.resolved())
    names = {f.name for f in dataclasses.fields(config_class) if f.init}
    read = {name: value for name, value in yaml.safe_load(text).items() if name in names}
    again = config_class(**read)
    assert plain(again.resolved()) == plain(made.resolved())


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return yaml.safe_load(yaml.safe_dump(dict(settings)))
