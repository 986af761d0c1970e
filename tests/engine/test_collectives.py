"""What ranks tell each other: two processes over gloo."""

from __future__ import annotations

import types
import weakref
from typing import Any

import pytest
import torch
from tests.support.processes import run_ranks
from tests.support.talk import RUNS, told

from strop.collectives import gather_rows, hosts, sum_over_ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(told, 2, tmp_path_factory.mktemp("ranks"), str(tmp_path_factory.mktemp("runs")))


def test_no_object_is_pickled_in_a_step(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["objects"] == {verb: {} for verb in RUNS} or not any(map(sum_of, rank["objects"].values())), rank


def sum_of(counts: dict[str, int]) -> int:
    return sum(counts.values())


def test_ranks_need_not_have_the_same_names(ranks: list[dict[str, Any]]) -> None:
    first, second = {"rows": 2.0, "only here": 7.0}, {"tokens": 0.1, "rows": 3.0}
    for rank in ranks:
        assert rank["numbers"] == [first, second]
        assert rank["sum"] == {"rows": 5.0, "only here": 7.0, "tokens": 0.1}
        assert rank["same"] == [{"a": 0.0}, {"a": 1.0}] and rank["none"] == [{}, {}]


def test_rows_of_ranks_may_differ_in_number_type_and_name(ranks: list[dict[str, Any]]) -> None:
    for number, rank in enumerate(ranks):
        first, second = rank["tensors"]
        assert list(first) == ["wide"] and first["wide"].tolist() == [[0.1] * 3]
        assert second["flags"].tolist() == [True, False, True] and second["flags"].dtype == torch.bool
        assert torch.equal(second["wide"], torch.full((2, 3), 1.1, dtype=torch.float64))
        values, own = rank["rows"]
        assert values == [0, 1, 2, 10, 11] and own == ([[], [0, 1, 2]], [[10, 11], []])[number]
        assert rank["empty"] == [1.0]


def test_rewards_of_all_ranks_come_as_groups(ranks: list[dict[str, Any]]) -> None:
    for number, rank in enumerate(ranks):
        assert rank["own groups"] == ([True, False, False], [False, True, True])[number]
        assert rank["groups"] == [
            (2, [[0.0], [0.0]], [[1.0], [2.0, 0.0]]),
            (2, [[1.0], [1.0]], [[1.0], [2.0, 1.0]]),
            (2, [[1.0], [1.0]], [[1.0], [2.0, 1.0]]),
        ]


class Group:
    """Stands for a process group."""


def test_hosts_talk_over_gloo_beside_a_group_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    made, beside = [], Group()
    monkeypatch.setattr(torch.distributed, "group", types.SimpleNamespace(WORLD=Group()))
    monkeypatch.setattr(torch.distributed, "get_backend", lambda group: "nccl")
    monkeypatch.setattr(torch.distributed, "new_group", lambda **given: made.append(given) or beside)
    assert hosts() is hosts() is beside
    assert [given["backend"] for given in made] == ["gloo"]


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_a_group_that_a_script_is_done_with_is_gone(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that is still held when Python ends has threads that cannot, and the process aborts."""
    world, beside = types.SimpleNamespace(WORLD=Group()), [Group()]
    monkeypatch.setattr(torch.distributed, "group", world)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda group: backend)
    monkeypatch.setattr(torch.distributed, "new_group", lambda **given: beside[0])
    hosts()
    left = [weakref.ref(world.WORLD), weakref.ref(beside[0])]
    world.WORLD, beside[0] = Group(), Group()  # another one is made
    assert [group() for group in left] == [None, None]
    assert hosts() is (beside[0] if backend == "nccl" else None)


def test_one_process_asks_nobody() -> None:
    parts = [{"u": torch.tensor([1.0, 2.0])}, {}, {"u": torch.tensor([3.0])}]
    gathered = gather_rows(parts, 1, torch.device("cpu"))
    assert gathered.values["u"].tolist() == [1, 2, 3] and gathered.rows(2) == slice(2, 3)
    assert sum_over_ranks({"tokens": 2.0}, 1) == {"tokens": 2.0}
