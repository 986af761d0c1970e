from __future__ import annotations

import functools
import importlib
import pickle
import sys
import threading

import numpy as np
import pytest
import torch

from strop.rewards.transfer import _is_heavy, parcels, stays_home
from strop.rewards.verifiers import get_length_reward, think_format_reward

ANSWERS = {"a": 1.0}
SEEN: list[str] = []
TENSOR = torch.ones(1)
COUNT = 0


def plain(completions, **kwargs):
    return [0.0 for _ in completions]


def reads_globals(completions, **kwargs):
    rewards = []
    for text in completions:
        rewards.append(ANSWERS.get(text, 0.0))
    return rewards


def appends_to_a_global(completions, **kwargs):
    SEEN.extend(completions)
    return [0.0] * len(completions)


def writes_a_global_by_key(completions, **kwargs):
    ANSWERS["b"] = 2.0
    return [0.0] * len(completions)


def rebinds_a_global(completions, **kwargs):
    global COUNT
    COUNT += 1
    return [0.0] * len(completions)


def holds_a_tensor(completions, **kwargs):
    return [float(TENSOR)] * len(completions)


def writes_to_stderr(completions, **kwargs):
    sys.stderr.write("hello")
    return [0.0] * len(completions)


class Stateless:
    def __init__(self):
        self.bonus = 1.0

    def __call__(self, completions, **kwargs):
        return [self.bonus for _ in completions]


class Counting:
    def __init__(self):
        self.calls = 0

    def __call__(self, completions, **kwargs):
        self.calls += 1
        return [0.0 for _ in completions]


@pytest.mark.parametrize(
    "function",
    [plain, reads_globals, writes_to_stderr, Stateless(), functools.partial(plain), think_format_reward, lambda c: c],
)
def test_functions_that_keep_their_meaning_may_go(function):
    assert stays_home(function) == ""


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (appends_to_a_global, "SEEN"),
        (writes_a_global_by_key, "ANSWERS"),
        (rebinds_a_global, "COUNT"),
        (Counting(), "self"),
        (functools.partial(appends_to_a_global), "SEEN"),
        (holds_a_tensor, "TENSOR"),
    ],
)
def test_functions_that_write_around_them_or_hold_tensors_stay(function, name):
    assert f"'{name}'" in stays_home(function)


def test_closures_that_write_to_what_they_captured_stay():
    seen = []

    def closure(completions, **kwargs):
        seen.append(completions)
        return [0.0]

    assert "'seen'" in stays_home(closure)


def first_loaded(function):
    parcel = next(iter(parcels(function)))
    loads = importlib.import_module(parcel.encoding).loads
    return parcel.encoding, loads(parcel.payload)


def test_a_function_of_a_light_module_goes_by_name():
    encoding, loaded = first_loaded(think_format_reward)
    assert encoding == "pickle" and loaded is think_format_reward


def test_a_picklable_instance_goes_by_name():
    encoding, loaded = first_loaded(get_length_reward(4))
    assert encoding == "pickle" and loaded(completion_ids=[[1, 2]]) == [-0.5]


def test_a_function_of_a_module_that_imports_torch_goes_by_value():
    # This test module imports torch; the worker must not have to.
    encoding, loaded = first_loaded(reads_globals)
    assert encoding == "cloudpickle"
    assert loaded is not reads_globals and loaded(["a", "z"]) == [1.0, 0.0]


def test_heavy_is_found_through_imports():
    from strop.rewards import judges, language_model_judge, model_reward, resolve

    assert _is_heavy(model_reward) and _is_heavy(language_model_judge)
    assert not _is_heavy(judges) and not _is_heavy(resolve)


@pytest.mark.parametrize("missing", ["", "cloudpickle"])
def test_lambdas_and_closures_go_by_value(monkeypatch, missing):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("strop.rewards.transfer.find_spec", lambda name: None if name == missing else find_spec(name))
    bonus = 0.25
    encoding, loaded = first_loaded(lambda completions: [bonus for _ in completions])
    assert encoding == ("dill" if missing else "cloudpickle")
    assert loaded(["x"]) == [0.25]


def test_what_cannot_be_pickled_gives_no_parcel():
    lock = threading.Lock()
    assert list(parcels(lambda completions: [lock])) == []


def test_what_is_too_large_gives_no_parcel():
    table = np.zeros(1_000_000)
    assert list(parcels(lambda completions: table, limit_bytes=100_000)) == []
    assert list(parcels(lambda completions: table)) != []


def test_a_name_in_main_is_never_sent_by_name(monkeypatch):
    def script_function(completions):
        return [1.0]

    script_function.__module__, script_function.__qualname__ = "__main__", "script_function"
    monkeypatch.setattr(sys.modules["__main__"], "script_function", script_function, raising=False)
    assert pickle.loads(pickle.dumps(script_function)) is script_function
    assert "pickle" not in [parcel.encoding for parcel in parcels(script_function)]
