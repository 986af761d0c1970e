"""The native engine's branches for cards, run on a card that is made of the host's memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.support.card_in_memory import emulated_card
from torch.nn.attention import SDPBackend, sdpa_kernel

from strop.model.forest import always
from strop.records import Rollout
from strop.rollout import Mixture, SamplingParams, attention, cuda_graph, draw, limits, sampling
from strop.rollout.cuda_graph import GraphedSteps
from strop.rollout.native import NativeGenerator
from strop.rollout.scheduler import Scheduler
from strop.testing.tiny import tiny_model

PROMPTS = [[3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], [14, 15, 16], [17, 18, 19, 20, 21, 22]]
STOPS = tuple(range(2, 12))  # a token in six ends a completion


def small(**options: Any) -> Any:
    return tiny_model("llama", num_hidden_layers=1, **options)


@pytest.fixture
def plain_products(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On the host too attention is products and a softmax, so that both sides do the same operations."""
    monkeypatch.setattr(attention, "_flash_on_cpu_works", lambda: False)
    with sdpa_kernel(SDPBackend.MATH):
        yield


def on_card(model: Any, prompts: list[list[int]], n: int, params: SamplingParams, **options: Any) -> Rollout:
    with emulated_card(has_float64=options.pop("has_float64", True)) as card:
        return NativeGenerator(card.move(model), **options).generate(prompts, n, params)


def logps_of(rollout: Rollout) -> torch.Tensor:
    return torch.tensor([x for line in rollout.sampler_logps for row in line for x in row])


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_groups_that_share_slots_are_those_of_the_host(arch: str, plain_products: None) -> None:
    """Groups of 8 of one prompt in 11 slots: rows end, the others close up, rows of the next prompts join."""
    params = SamplingParams(max_new_tokens=7, temperature=2.0, stop_token_ids=STOPS, seed=3)
    options: dict[str, Any] = {"max_slots": 11, "shares": always, "prefill_tokens": 16}
    host = NativeGenerator(tiny_model(arch), share_prompts=False, **options).generate(PROMPTS, 8, params)
    card = on_card(tiny_model(arch), PROMPTS, 8, params, cuda_graphs=False, **options)
    assert len({len(ids) for line in host.completions for ids in line}) > 3
    assert card.completions == host.completions and card.sampler_logps == host.sampler_logps
    assert card.finish_reasons == host.finish_reasons
    alone = NativeGenerator(tiny_model(arch), share_prompts=True, max_slots=1).generate(PROMPTS, 8, params)
    assert card.completions == alone.completions
    torch.testing.assert_close(logps_of(card), logps_of(alone), atol=1e-12, rtol=0)


@pytest.mark.parametrize("share", [True, False])
def test_a_conversation_goes_on_from_its_keys(share: bool, plain_products: None) -> None:
    def turns(engine: NativeGenerator) -> list[Rollout]:
        contexts, found = PROMPTS[:2], []
        with engine.keeping():
            for turn in range(2):
                params = SamplingParams(max_new_tokens=3, stop_token_ids=(), seed=turn)
                found.append(engine.generate(contexts, 1, params))
                contexts = [p + c[0] + [50, 51] for p, c in zip(contexts, found[-1].completions, strict=True)]
        return found

    host = turns(NativeGenerator(small(), share_prompts=share, shares=always))
    with emulated_card() as card:
        there = turns(NativeGenerator(card.move(small()), share_prompts=share, shares=always))
    assert [r.completions for r in there] == [r.completions for r in host]
    assert [r.sampler_logps for r in there] == [r.sampler_logps for r in host]
    assert there[1].prefilled == host[1].prefilled == 2 * 3


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 0.7}, False),
        ({"top_k": 6}, True),
        ({"top_p": 0.8}, False),
        ({"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.1}, False),
    ],
    ids=str,
)
def test_a_step_waits_once_whatever_the_rows(settings: dict[str, Any], share: bool, plain_products: None) -> None:
    params = SamplingParams(max_new_tokens=4, stop_token_ids=(), seed=5, **settings)
    host = NativeGenerator(small(), share_prompts=share).generate(PROMPTS, 4, params)
    with emulated_card() as card:
        engine = NativeGenerator(card.move(small()), share_prompts=share, cuda_graphs=False)
        for n in (1, 4):
            card.waits.clear()
            rollout = engine.generate(PROMPTS, n, params)
            assert engine.decode_steps == 3
            entering = 1 + (params.repetition_penalty != 1)  # the first tokens, and what their prompts have seen
            assert sum(card.waits.values()) == engine.decode_steps + entering, card.waits
    assert rollout.completions == host.completions and rollout.sampler_logps == host.sampler_logps


def test_a_nucleus_wider_than_was_looked_at_is_drawn_again(
    monkeypatch: pytest.MonkeyPatch, plain_products: None
) -> None:
    params = SamplingParams(max_new_tokens=4, temperature=4.0, top_p=0.95, stop_token_ids=(), seed=5)
    host = NativeGenerator(small(), share_prompts=False).generate(PROMPTS, 4, params)
    monkeypatch.setattr(sampling, "_ONLY_CANDIDATES", 8)
    card = on_card(small(), PROMPTS, 4, params)
    assert card.completions == host.completions
    assert len({i for line in card.completions for ids in line for i in ids}) > 8


def test_logits_that_are_not_finite_are_an_error_before_a_token_is_taken() -> None:
    model = small()
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(draw.RolloutError, match="diverged"):
        on_card(model, [[5, 6]], 2, SamplingParams(max_new_tokens=3, seed=0, repetition_penalty=1.2))


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.9}, {"temperature": 0}, {"top_p": 0.7, "repetition_penalty": 1.2}], ids=str
)
def test_a_device_without_float64_draws_the_same_tokens(settings: dict[str, Any], plain_products: None) -> None:
    params = SamplingParams(max_new_tokens=4, stop_token_ids=STOPS, seed=6, **settings)
    host = NativeGenerator(small(dtype=torch.float32), share_prompts=False).generate(PROMPTS, 3, params)
    card = on_card(small(dtype=torch.float32), PROMPTS, 3, params, has_float64=False)
    assert card.completions == host.completions and card.sampler_logps == host.sampler_logps


# ---- graphs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs after two steps, and of few keys."""
    monkeypatch.setattr(cuda_graph, "_AFTER_STEPS", 2)
    monkeypatch.setattr(cuda_graph, "_COLUMN_BUCKET", 8)


def both_ways(model: Any, prompts: list[list[int]], n: int, **options: Any) -> tuple[Rollout, Rollout, NativeGenerator]:
    """Without graphs, with them, and the engine of the latter."""
    mixture = options.pop("mixture", None)
    params = SamplingParams(max_new_tokens=14, temperature=0.9, stop_token_ids=options.pop("stops", ()), seed=7)
    eager = NativeGenerator(model, cuda_graphs=False, **options).generate(prompts, n, params, mixture=mixture)
    engine = NativeGenerator(model, **options)
    return eager, engine.generate(prompts, n, params, mixture=mixture), engine


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_replays_are_the_eager_steps(arch: str, soon: None, caplog: Any) -> None:
    with emulated_card() as card, caplog.at_level("WARNING"):
        model = card.move(tiny_model(arch))
        eager, graphed, engine = both_ways(model, [[5, 6, 7], [8]], 3, stops=STOPS[:4], max_slots=5)
    assert "CUDA graphs are off" not in caplog.text
    assert graphed.completions == eager.completions
    assert 0 < engine.graph_replays < card.replays  # some were compared
    assert len(card.graphs) > 1
    torch.testing.assert_close(logps_of(graphed), logps_of(eager), atol=1e-12, rtol=0)  # products of other shapes


def test_two_models_at_once_have_graphs_of_their_own(soon: None) -> None:
    with emulated_card() as card:
        mixture = Mixture(card.move(small(seed=5)), 0.3)
        eager, graphed, engine = both_ways(card.move(small()), [[5, 6], [8]], 1, mixture=mixture)
    assert graphed.completions == eager.completions and engine.graph_replays > 10


@pytest.mark.parametrize(("trained", "wrapped"), [(True, True), (False, False)], ids=["accelerate's too", "frozen"])
def test_graphs_are_on_under_autocast(
    trained: bool, wrapped: bool, soon: None, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    plan = Scheduler.plan

    def wide(self: Scheduler, device: torch.device) -> Any:  # the eager steps have the shapes of the graphs
        ids, found = plan(self, device)
        found.capacity, found.lockstep = 16, None
        return ids, found

    monkeypatch.setattr(Scheduler, "plan", wide)
    with emulated_card() as card, caplog.at_level("INFO"):
        model = card.move(tiny_model("qwen3", dtype=torch.float32)).requires_grad_(trained)
        if wrapped:
            model.forward = torch.autocast("cuda", torch.bfloat16)(model.forward)
        eager, graphed, engine = both_ways(model, [[5, 6]], 4, autocast=torch.bfloat16)
    assert "off" not in caplog.text and "other logits" not in caplog.text
    assert engine.graph_replays == 13 - 2 - 2
    assert graphed.completions == eager.completions and graphed.sampler_logps == eager.sampler_logps


def test_a_value_that_is_frozen_into_a_graph_switches_graphs_off(
    soon: None, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """The fault: what was computed before the capture is read by every replay, and a wrong replay wrote wrong keys."""
    monkeypatch.setattr("strop.rollout.kv_cache.StepPlan.forget_biases", lambda self: None)
    with emulated_card() as card, caplog.at_level("WARNING"):
        eager, graphed, engine = both_ways(card.move(tiny_model("llama")), [[5, 6, 7], [8]], 2)
    assert "CUDA graphs are off" in caplog.text and engine.graph_replays == 0
    assert graphed.completions == eager.completions


def test_a_buffer_that_is_rebound_switches_graphs_off(soon: None, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def rebound(self: GraphedSteps, rows: int, ids: torch.Tensor, plan: Any) -> None:
        self._inputs = torch.stack([ids, plan.own, plan.positions])

    monkeypatch.setattr(GraphedSteps, "_fill", rebound)
    with emulated_card() as card, caplog.at_level("WARNING"):
        eager, graphed, engine = both_ways(card.move(small()), [[5, 6, 7]], 4)
    assert "the replay differs" in caplog.text and engine.graph_replays == 0
    assert graphed.completions == eager.completions


def test_a_layer_that_asks_the_host_leaves_the_eager_step(soon: None, caplog: Any) -> None:
    with emulated_card() as card, caplog.at_level("WARNING"):
        model = card.move(small())
        forward = model.model.layers[0].mlp.forward
        model.model.layers[0].mlp.forward = lambda x: forward(x) if float(x.sum()) != 0.5 else x
        eager, graphed, engine = both_ways(model, [[5, 6, 7]], 4)
    assert caplog.text.count("not permitted when stream is capturing") == 1 and engine.graph_replays == 0
    assert graphed.completions == eager.completions


def test_memory_that_torch_holds_and_does_not_use_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("memory_reserved", 600), ("memory_allocated", 100)):
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (50, 1000))
    assert limits.free_bytes(torch.device("cuda")) == 550


def test_keys_under_autocast_are_counted_in_its_dtype() -> None:
    model = tiny_model("llama", dtype=torch.float32)
    assert limits.key_bytes(model, torch.bfloat16) * 2 == limits.key_bytes(model)
