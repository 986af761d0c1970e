"""What is known about a step over all ranks, with the other rank played by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import strop.collectives
from strop.collectives import gather_rows, sum_over_ranks


def other_rank(monkeypatch: pytest.MonkeyPatch, gather: str, theirs: Any, *, first: bool) -> None:
    def gathered(ours: Any, *others: Any) -> list[Any]:
        return [theirs, ours] if first else [ours, theirs]

    monkeypatch.setattr(strop.collectives, gather, gathered)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: int(first))


@pytest.mark.parametrize("first", [False, True])
def test_counts_are_summed_over_ranks(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    other_rank(monkeypatch, "gather_numbers", {"tokens": 5.0, "desirable": 1.0}, first=first)
    assert sum_over_ranks({"tokens": 2.0, "trees": 1.0}, 2) == {"tokens": 7.0, "trees": 1.0, "desirable": 1.0}


@pytest.mark.parametrize("first", [False, True])
def test_statistics_see_the_rows_of_all_ranks_and_each_finds_its_own(
    first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_rank(monkeypatch, "gather_tensors", {"u": torch.tensor([9.0, 8.0, 7.0])}, first=first)
    parts = [{"u": torch.tensor([1.0, 2.0])}, {"u": torch.tensor([3.0])}]
    gathered = gather_rows(parts, 2, torch.device("cpu"))
    assert sorted(gathered.values["u"].tolist()) == [1, 2, 3, 7, 8, 9]
    assert [gathered.values["u"][gathered.rows(i)].tolist() for i in (0, 1)] == [[1, 2], [3]]
