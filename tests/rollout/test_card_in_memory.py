"""The emulated card refuses what a card refuses, and counts what makes the host wait: tests on it can fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.support.card_in_memory import EmulatedCard, Graph, OnCard, emulated_card

from strop.device import sent


def test_numbers_are_those_of_the_host_and_say_where_they_are() -> None:
    with emulated_card() as card:
        there = card.put(torch.arange(6.0).view(2, 3))
        assert there.device.type == "cuda" and isinstance(there @ there.T, OnCard)
        assert torch.equal((there @ there.T).cpu(), torch.tensor([[5.0, 14.0], [14.0, 50.0]]))
        there[:, 1] = 7.0
        assert there.cpu().tolist() == [[0.0, 7.0, 2.0], [3.0, 7.0, 5.0]]
        assert torch.arange(3, device=there.device).device == there.device


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x.cpu(),
        lambda x: x[x > 1],
        lambda x: (x > 1).nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: torch.ones(3).to(x.device),
        lambda x: x[torch.tensor([0, 1])],
    ],
)
def test_what_makes_the_host_wait_is_counted_and_cannot_be_captured(ask: Callable) -> None:
    with emulated_card() as card:
        there = card.put(torch.arange(3.0))
        ask(there)
        assert sum(card.waits.values()) == 1
        with pytest.raises(RuntimeError, match="capturing"), card.capture(Graph(card)):
            ask(there)


def test_pinned_memory_is_fetched_without_waiting() -> None:
    with emulated_card() as card:
        there = sent([[1, 2], [3, 4]], card.device)
        assert isinstance(there, OnCard) and not card.waits
        assert there.cpu().tolist() == [[1, 2], [3, 4]] and sum(card.waits.values()) == 1


def test_what_a_card_refuses_is_refused() -> None:
    with emulated_card() as card, pytest.raises(RuntimeError, match="same device"):
        card.put(torch.ones(3)) + torch.ones(3)
    with emulated_card(has_float64=False) as card, pytest.raises(TypeError, match="float64"):
        card.put(torch.ones(3)).double()


def captured(card: EmulatedCard, function: Callable[[], torch.Tensor]) -> tuple[Graph, torch.Tensor]:
    graph = Graph(card)
    with card.capture(graph):
        out = function()
    return graph, out


def test_a_replay_reads_the_tensors_of_the_capture_and_no_python() -> None:
    with emulated_card() as card:
        held = {"x": card.put(torch.ones(2)), "total": card.put(torch.zeros(2))}
        calls = []

        def step() -> torch.Tensor:
            calls.append(1)
            held["total"].add_(held["x"])
            return held["total"] * 2

        graph, out = captured(card, step)
        assert held["total"].cpu().tolist() == [0.0, 0.0] and out.cpu().isnan().all()  # nothing was computed
        graph.replay()
        assert out.cpu().tolist() == [2.0, 2.0]
        held["x"].copy_(card.put(torch.tensor([1.0, 4.0])))
        graph.replay()
        assert out.cpu().tolist() == [4.0, 10.0]
        held["x"] = card.put(torch.full((2,), 100.0))  # a buffer that is another one now is not seen
        graph.replay()
        assert out.cpu().tolist() == [6.0, 18.0] and calls == [1]


def test_graphs_of_one_pool_use_each_others_memory() -> None:
    with emulated_card() as card:
        x = card.put(torch.ones(2))
        (first, out), (second, _) = captured(card, lambda: x + 1), captured(card, lambda: x + 2)
        first.replay()
        assert out.cpu().tolist() == [2.0, 2.0]
        second.replay()
        assert out.cpu().isnan().all()
