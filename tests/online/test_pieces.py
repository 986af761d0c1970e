"""Trees cut to fit a micro-batch: nothing is lost, nothing is mixed up, the gradient does not notice."""

from __future__ import annotations

import pytest

from strop.online.pieces import pieces
from strop.records import Example, Sampled
from strop.testing.cases import largest_difference, make_trainer, rows_for, step_gradients
from strop.testing.rollouts import fix_rollouts

TREE = Example(
    [1, 2],
    [[3], [4, 5], [6, 7, 8], [9]],
    [[1], [1, 0], [1, 1, 1], [0]],
    extras={"tools": ["four", "that", "stay", "whole"]},  # as many as there are completions
    row=5,
    sampled=Sampled(7, advantages=[0.1, 0.2, 0.3, 0.4], old_logps=[[0.3], [0.4, 0.5], [0.6, 0.7, 0.8], [0.9]]),
)


def together(parts):
    return (
        [ids for part in parts for ids in part.completions],
        [mask for part in parts for mask in part.loss_mask],
        [a for part in parts for a in part.sampled.advantages],
    )


@pytest.mark.parametrize("limits", [{"max_completions": n} for n in (1, 2, 3)] + [{"max_tokens": n} for n in (1, 4, 6)])
def test_pieces_hold_everything_once_in_order(limits):
    parts = pieces(TREE, **limits)
    assert together(parts) == (TREE.completions, TREE.loss_mask, TREE.sampled.advantages)
    for part in parts:
        assert part.prompt_ids == [1, 2] and part.row == 5 and part.sampled.place == 7 and part.extras == TREE.extras
        assert [len(logps) for logps in part.sampled.old_logps] == [len(ids) for ids in part.completions]
        assert len(part.completions) <= limits.get("max_completions", 4)
        assert part.num_tokens <= limits.get("max_tokens", 99) or len(part.completions) == 1


def test_what_is_known_survives_a_checkpoint():
    assert all(Example.from_plain(part.to_plain()) == part for part in [TREE, *pieces(TREE, max_completions=2)])


def test_a_tree_that_fits_is_left_as_it_is():
    assert pieces(TREE, max_completions=4) == [TREE] and pieces(TREE, max_tokens=9)[0] is TREE
    assert len(pieces(TREE, max_tokens=8)) == 2


@pytest.mark.parametrize("verb", ["grpo", "rloo", "ppo"])
def test_the_gradient_does_not_notice(verb, tmp_path):
    """8 completions at once, or 1 at a time; as many at once as `per_device_train_batch_size` says."""

    def gradients(per_device, accumulation, **overrides):
        trainer = fix_rollouts(
            make_trainer(
                verb,
                tmp_path,
                rows=rows_for(verb, 2),
                num_generations=4,
                per_device_train_batch_size=per_device,
                gradient_accumulation_steps=accumulation,
                **overrides,
            )
        )
        laid_out, build = [], trainer.build
        trainer.build = lambda examples: (laid_out.append(sum(len(e.completions) for e in examples)), build(examples))[
            1
        ]
        return step_gradients(trainer), max(laid_out)

    whole, at_once = gradients(8, 1)
    assert at_once == 8 and any(float(g.abs().max()) > 1e-6 for g in whole.values())
    for cut in ({"per_device": 1, "accumulation": 8}, {"per_device": 3, "accumulation": 3}):
        small, at_once = gradients(**cut)
        assert at_once <= cut["per_device"]
        assert largest_difference(whole, small) < 1e-10
    budget, _ = gradients(8, 1, max_tokens_per_micro_batch=12)
    assert largest_difference(whole, budget) < 1e-10
