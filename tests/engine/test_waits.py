"""A step on a card, played on the CPU: how often the host waits, what is on which side, which types are made there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.card import CARD, Card, Traced, played

from strop.device import Fetched, read, sent, sent_together, wide_dtype
from strop.engine.metrics import MetricLog
from strop.records import Extreme, Mean
from strop.rollout.draw import draw
from strop.rollout.sampling import keep_top_p
from strop.testing.cases import CASES, make_trainer, rows_for
from strop.testing.rollouts import fix_rollouts

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{verb: (verb, {}) for verb in CASES},
    "dpo, aot": ("dpo", {"loss_type": "aot"}),
    "grpo, reused": (
        "grpo", {"num_iterations": 2, "beta": 0.1, "importance_sampling_level": "sequence", "max_steps": 3},
    ),
    "grpo, entropy": ("grpo", {"use_adaptive_entropy": True, "top_entropy_quantile": 0.5}),
}  # fmt: skip
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"{verb}, no log line": (verb, {"max_steps": 3}) for verb in CASES},
    "dpo, all terms": ("dpo", {"loss_type": ["sigmoid", "sft"], "ld_alpha": 0.5, "use_weighting": True}),
    "kto, exp": ("kto", {"loss_type": "kto_exp"}),
    "bco, pooled": ("bco", {"delta_mode": "cumulative_pooled"}),
    "prm, last": ("prm", {"train_on_last_step_only": True}),
    "dpo, packed": ("dpo", {"layout": "packed"}),
}


def trained(verb: str, folder: Path, *, trace: bool = True, **options: Any) -> Any:
    """A run of two steps of two micro-batches, its last with the metrics of a log line; and what was traced."""
    settings = {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 2, "logging_steps": 100,
    }  # fmt: skip
    groups = {"num_generations": 2} if verb in ("grpo", "rloo", "online-dpo") else {}
    trainer = fix_rollouts(
        make_trainer(verb, folder, rows=rows_for(verb), dtype=torch.float32, **settings | groups | options)
    )
    traced = Traced(trainer, float64=False)
    if trace:
        trainer.add_callback(traced)
    trainer.train()
    return trainer, traced.steps


@pytest.mark.parametrize("name", [*VARIANTS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_a_step_waits_for_the_card_once(name: str, tmp_path: Path) -> None:
    verb, options = (VARIANTS | MORE)[name]
    with played(float64=False):
        _, steps = trained(verb, tmp_path, **options)
    assert sorted(steps) == list(range(1, 1 + options.get("max_steps", 2)))
    for step, found in list(steps.items())[1:]:  # at the first one things are tried that are kept
        assert not found.mixed, (step, found.mixed)
        assert not found.lacking, (step, found.lacking)
        assert not found.unordered, (step, found.unordered)
        assert len(found.waits) == 1 and "guard.py" in found.waits[0], (step, "\n".join(found.waits))


def test_the_card_of_these_tests_sees_what_makes_a_host_wait() -> None:
    with played(), Card([there := torch.arange(6.0)]) as card:
        mask = there > 2
        for reads in (
            lambda: float(there[0]), lambda: bool(mask.any()), lambda: there.tolist(), lambda: there.cpu(),
            lambda: there[mask], lambda: mask.nonzero(), lambda: there.masked_select(mask), lambda: there.unique(),
            lambda: torch.bincount(there.long()), lambda: torch.equal(there, there), lambda: there.numpy(),
            lambda: there.repeat_interleave(there.long()), lambda: torch.tensor([1.0], device=there.device),
            lambda: torch.ones(2).to(there.device), lambda: there[torch.tensor([0, 1])], lambda: there.to("cpu"),
            lambda: max(there[0], there[1]), lambda: torch.ones(6).copy_(there), lambda: there.new_tensor([1.0]),
        ):  # fmt: skip
            before = len(card.found.waits)
            reads()
            assert len(card.found.waits) == before + 1, card.found.waits[before:]
        quiet = len(card.found.waits)
        there[1:3], there.sum(), torch.zeros(3, device=there.device) + there[:3], there.masked_fill(mask, 0.0)
        there.index_select(0, sent([0, 1], there.device))
        torch.ones(6).copy_(there, non_blocking=True)
        assert len(card.found.waits) == quiet and not card.found.mixed
        torch.ones(6) + there
        assert len(card.found.mixed) == 1 and "test_waits" not in card.found.mixed[0]


def test_numbers_sent_together_are_what_they_were() -> None:
    given = {
        "ids": torch.arange(7).view(1, 7), "mask": torch.tensor([True, False]), "last": torch.tensor([-1, 3]),
        "none": torch.zeros(0, dtype=torch.long), "wide": torch.tensor([0.1, 0.2], dtype=torch.float64),
    }  # fmt: skip
    with played():
        found = sent_together(given, CARD)
    assert list(found) == list(given)
    assert all(torch.equal(found[name], given[name]) and found[name].dtype == given[name].dtype for name in given)
    with played(float64=False):
        assert wide_dtype(CARD) == torch.float32 and wide_dtype(torch.device("cpu")) == torch.float64
        assert sent(given["wide"], CARD).dtype == torch.float32
    assert sent_together(given, "cpu")["ids"] is given["ids"]


def test_what_is_fetched_is_what_it_was_when_it_set_out() -> None:
    with played(), Card([there := torch.arange(3.0)]) as card:
        coming = Fetched(there)
        there.add_(1.0)
        assert not card.found.waits
    assert coming.has_come and coming.take().tolist() == [0, 1, 2]


@pytest.mark.parametrize("deterministic", [False, True])
def test_draws_are_in_order_where_that_is_asked_for(deterministic: bool) -> None:
    """Floats are not added up one after the other on a card in deterministic mode, which refuses to."""
    logits, uniforms = torch.linspace(-2, 3, 600).view(2, 300), torch.tensor([0.2, 0.9], dtype=torch.float64)
    expected, kept = draw(logits, uniforms), keep_top_p(logits, 0.5)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        with played(), Card([there := logits.clone()]) as card:
            ids, logps = draw(there, sent(uniforms, CARD))
            assert torch.equal(keep_top_p(there, 0.5).cpu(), kept)
    finally:
        torch.use_deterministic_algorithms(before)
    assert torch.equal(ids, expected[0]) and torch.equal(logps, expected[1])
    assert bool(card.found.unordered) is not deterministic, card.found.unordered


def test_a_log_line_reads_the_card_once() -> None:
    values = [torch.tensor(0.1), torch.tensor(3), torch.tensor(0.2, dtype=torch.float64), torch.tensor(1)]
    with Card(values) as card:
        log = MetricLog()
        for _ in range(2):
            log.add({"a": Mean(values[0], values[1]), "b": Mean(values[2], values[3]), "c": Mean(1.0, 2.0)})
            log.add({"high": Extreme(values[0]), "low": Extreme(values[2], largest=False)})
        assert not card.found.waits
        found = log.drain()
        assert len(card.found.waits) == 1, card.found.waits
    near = torch.tensor(0.1) + torch.tensor(0.1)
    assert found == {"a": float(near) / 6, "b": 0.4 / 2, "c": 0.5, "high": float(values[0]), "low": 0.2}
    assert read([]) == []


def test_a_run_on_the_card_is_the_run_on_the_cpu(tmp_path: Path) -> None:
    with played():
        there, _ = trained("dpo", tmp_path / "there", trace=False)
    here, _ = trained("dpo", tmp_path / "here", trace=False)
    pairs = zip(there.model.parameters(), here.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
