from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import pytest

from strop.errors import ConfigError
from strop.settings.schema import Range, allowed, config, describe, validate


@config
class Sample:
    aliases = {"strength": "beta"}  # noqa: RUF012
    removed = {"old": "Use beta."}  # noqa: RUF012

    beta: Annotated[float, Range(min=0, open_min=True)] = 0.1
    """How strong
    it is."""
    kind: Literal["a", "b"] | list[Literal["a", "b"]] = "a"
    """Which."""
    size: Annotated[int, Range(min=1, max=5)] | None = None
    """How many."""


def test_the_string_under_a_field_describes_it():
    assert describe(Sample)["beta"] == ("float > 0", "How strong it is.")
    assert allowed(Literal["a", "b"] | None) == "'a' | 'b' or None"


@config
class Wider(Sample):
    beta: Annotated[float, Range(min=0)] = 0.2
    kind: Literal["a", "b"] | list[Literal["a", "b"]] = "b"
    """Which of two."""


def test_a_field_that_is_declared_anew_keeps_its_description():
    assert describe(Wider)["beta"] == ("float >= 0", "How strong it is.") and Wider().beta == 0.2
    assert describe(Wider)["kind"][1] == "Which of two." and describe(Sample)["kind"][1] == "Which."


def test_aliases_reach_their_field():
    assert Sample(strength=0.3).beta == 0.3


def test_unknown_keywords_are_all_named_with_the_nearest_field():
    with pytest.raises(ConfigError) as error:
        Sample(btea=1, old=2, nonsense_word=3)
    text = str(error.value)
    assert "Did you mean 'beta'?" in text and "Use beta." in text and "nonsense_word=3" in text


def test_alias_and_field_together_are_refused():
    with pytest.raises(ConfigError, match="both are given"):
        Sample(strength=1.0, beta=2.0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"beta": 0.0}, "must be > 0"),
        ({"beta": "x"}, "must be float > 0"),
        ({"beta": True}, "must be float"),
        ({"kind": "c"}, "choose one of 'a', 'b'"),
        ({"kind": ["a", "c"]}, "choose one of"),
        ({"size": 9}, "must be >= 1 and <= 5"),
        ({"size": 2.5}, "must be int"),
    ],
)
def test_values_outside_the_declaration_are_reported(values, expected):
    (problem,) = validate(Sample(**values))
    assert expected in problem


def test_values_inside_the_declaration_pass():
    assert validate(Sample(beta=2, kind=["a", "b"], size=5)) == []


def test_numbers_and_lists_of_numpy_are_those_of_python():
    sample = Sample(beta=np.float32(0.5), size=np.int64(3), kind=np.array(["a", "b"]))
    assert (sample.beta, sample.size, sample.kind) == (0.5, 3, ["a", "b"]) and validate(sample) == []
    assert (type(sample.beta), type(sample.size)) == (float, int)
