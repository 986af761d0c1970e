from __future__ import annotations

import functools
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from strop.rewards.contract import Accepts, describe, describe_exception, read_values


@pytest.mark.parametrize(
    "returned",
    [
        [1.0, 0.5, None],
        (1, 0.5, None),
        [True, Fraction(1, 2), None],
        [Decimal("1"), Decimal("0.5"), None],
        [np.float32(1), np.float64(0.5), None],
        [torch.tensor(1.0), torch.tensor([0.5]), None],
        np.array([1.0, 0.5, None], dtype=object),
    ],
)
def test_lists_tuples_and_arrays_of_numbers_are_read(returned):
    outcome = read_values(returned, 3)
    assert outcome.values == [1.0, 0.5, None]
    assert outcome.failure is None and outcome.failed == {}


@pytest.mark.parametrize("array", [np.array([2, 3]), torch.tensor([2.0, 3.0]), torch.tensor([2, 3])])
def test_one_dimensional_arrays_are_read(array):
    assert read_values(array, 2).values == [2.0, 3.0]


def test_a_tensor_with_a_gradient_is_read():
    assert read_values(torch.tensor([1.5], requires_grad=True), 1).values == [1.5]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "returned None"),
        (1.0, "a float: 1.0"),
        ("ab", "a str: 'ab'"),
        ({0: 1.0, 1: 2.0}, "a dict"),
        ([1.0], "returned 1 values"),
        ([1.0, 2.0, 3.0], "returned 3 values"),
        (np.float64(1.0), "array of shape ()"),
        (np.ones((2, 1)), "array of shape (2, 1)"),
        (torch.ones(1, 2), "array of shape (1, 2)"),
        ((x for x in [1.0, 2.0]), "a generator"),
    ],
)
def test_answers_of_the_wrong_shape_are_refused_as_a_whole(returned, said):
    outcome = read_values(returned, 2)
    assert outcome.failure is not None and outcome.failure.kind == "value"
    assert said in outcome.failure.text
    assert "2 numbers" in outcome.failure.text
    assert outcome.values == []


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (-float("inf"), "-inf"),
        ("1.0", "a str: '1.0'"),
        (1j, "not a number"),
        ([1.0], "a list"),
        (10**400, "does not fit a float"),
        (np.ones(2), "not one number"),
        (torch.ones(2), "not one number"),
    ],
)
def test_a_bad_entry_fails_its_row_only(bad, said):
    outcome = read_values([1.0, bad, 3.0], 3)
    assert outcome.failure is None
    assert outcome.values == [1.0, None, 3.0]
    assert list(outcome.failed) == [1]
    assert said in outcome.failed[1].text


def test_nan_in_an_array_fails_and_says_how_to_abstain():
    outcome = read_values(np.array([1.0, np.nan]), 2)
    assert "return None to abstain" in outcome.failed[1].text


def test_describe_survives_values_that_cannot_be_printed():
    class Nasty:
        def __repr__(self):
            raise RuntimeError

    assert describe(Nasty()) == "a Nasty: (cannot be printed)" or "Nasty" in describe(Nasty())
    assert len(describe("x" * 10**6)) < 200


def test_describe_exception_names_type_message_and_place():
    try:
        raise ValueError("no such word")
    except ValueError as error:
        said = describe_exception(error)
    assert said.startswith("ValueError: no such word (")
    assert "test_contract.py" in said

    class Mute(Exception):
        def __str__(self):
            raise RuntimeError

    assert "Mute: (its message cannot be printed)" in describe_exception(Mute())


def test_accepts_passes_what_the_signature_names():
    def exact(completions, answer, extra=5):
        return completions, answer, extra

    offered = {"prompts": 0, "completions": 1, "answer": 2, "other": 3}
    accepts = Accepts.of(exact)
    assert accepts.call(exact, offered) == (1, 2, 5)
    assert not accepts.wants("prompts") and accepts.wants("answer")
    assert accepts.missing(["completions"]) == ["answer"]


def test_accepts_gives_everything_to_kwargs():
    def greedy(completions, **kwargs):
        return sorted(kwargs)

    assert Accepts.of(greedy).call(greedy, {"prompts": 0, "completions": 1, "x": 2}) == ["prompts", "x"]


def test_accepts_reads_positional_only_partials_methods_and_instances():
    def positional(completions, /, answer):
        return completions, answer

    assert Accepts.of(positional).call(positional, {"answer": 1, "completions": 2, "z": 3}) == (2, 1)

    partial = functools.partial(positional, answer=7)
    assert Accepts.of(partial).missing(["completions"]) == []
    assert Accepts.of(partial).call(partial, {"completions": 2, "answer": 1}) == (2, 7)
    bound = functools.partial(lambda completions, **kwargs: kwargs, scale=2.0)
    assert Accepts.of(bound).call(bound, {"completions": 1, "scale": 100.0, "other": 3}) == {"scale": 2.0, "other": 3}

    class Callable:
        def __call__(self, completions):
            return completions

        def method(self, prompts):
            return prompts

    assert Accepts.of(Callable()).call(Callable(), {"completions": 1, "prompts": 2}) == 1
    assert Accepts.of(Callable().method).call(Callable().method, {"completions": 1, "prompts": 2}) == 2


def test_accepts_of_a_c_function_without_signature():
    assert Accepts.of(dict.update).everything or Accepts.of(dict.update).names
