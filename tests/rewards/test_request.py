from __future__ import annotations

import pickle
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest

from strop.errors import DataError
from strop.rewards.contract import Accepts
from strop.rewards.request import ScoringRequest, snapshot


@dataclass
class State:
    global_step: int = 3
    log_history: list[dict[str, Any]] = field(default_factory=lambda: [{"loss": 0.5}])
    lock: Any = field(default_factory=threading.Lock)


def make(**more):
    return ScoringRequest.checked(["p", "q"], ("a", "b"), [[1], [2, 3]], {"answer": ("x", "y")}, **more)


def test_rows_are_cut_out_of_everything():
    request = make(environments=["e", "f"], trainer_state=State()).take([1])
    offered = request.offered()
    assert offered.pop("trainer_state").global_step == 3
    assert offered == {
        "prompts": ["q"],
        "completions": ["b"],
        "completion_ids": [[2, 3]],
        "answer": ["y"],
        "environments": ["f"],
    }


def test_what_was_not_given_is_not_offered():
    offered = ScoringRequest.checked(["p"], ["a"], None, None).offered()
    assert "completion_ids" not in offered and "environments" not in offered and "trainer_state" in offered


def test_ids_become_lists():
    import numpy as np

    request = ScoringRequest.checked(["p"] * 2, ["a"] * 2, [np.array([1, 2]), (3,)], None)
    ids = request.arguments["completion_ids"]
    assert ids == [[1, 2], [3]] and type(ids[0][0]) is int


def test_lengths_and_names_are_checked_all_at_once():
    with pytest.raises(DataError) as caught:
        ScoringRequest.checked(["p"], ["a", "b"], [[1]], {"answer": [1, 2, 3], "completions": [1, 2]})
    said = str(caught.value)
    for name in ("'prompts' has 1", "'completion_ids' has 1", "'answer' has 3", "column is called 'completions'"):
        assert name in said


def test_no_function_can_change_what_another_is_given():
    request = make()
    request.offered()["completions"].clear()
    request.offered()["answer"].append("z")
    assert request.offered()["completions"] == ["a", "b"] and request.offered()["answer"] == ["x", "y"]


def test_what_is_sent_is_what_is_accepted_without_live_objects():
    def reward(completions, answer):
        return []

    request = make(environments=["e", "f"], trainer_state=State())
    assert request.sent(Accepts.of(reward)) == {"completions": ["a", "b"], "answer": ["x", "y"]}

    def greedy(**kwargs):
        return []

    sent = request.sent(Accepts.of(greedy))
    assert set(sent) == {"prompts", "completions", "completion_ids", "answer", "trainer_state"}
    assert not hasattr(sent["trainer_state"], "lock") and sent["trainer_state"].global_step == 3


def test_the_snapshot_of_a_state_is_its_plain_data():
    seen = pickle.loads(pickle.dumps(snapshot(State())))
    assert seen.global_step == 3 and seen.log_history == [{"loss": 0.5}]
    assert not hasattr(seen, "lock")
    assert snapshot(None) is None


def test_a_function_that_changes_what_it_was_given_changes_nobody_elses():
    chat = [[{"role": "user", "content": "p"}]]
    request = ScoringRequest.checked(chat, [[{"role": "assistant", "content": "a"}]], [[1, 2]], {"parts": [["x"]]})
    offered = request.offered()
    offered["prompts"][0].clear()
    offered["completions"][0][0]["content"] = "changed"
    offered["completion_ids"][0].clear()
    offered["parts"][0].append("y")
    assert chat == [[{"role": "user", "content": "p"}]]
    again = {name: value for name, value in request.offered().items() if name != "trainer_state"}
    assert again == {
        "prompts": chat,
        "completions": [[{"role": "assistant", "content": "a"}]],
        "completion_ids": [[1, 2]],
        "parts": [["x"]],
    }
