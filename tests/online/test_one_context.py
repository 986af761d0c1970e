"""Pairs are made of completions on one context: a run without any stops unrewarded, later ones are counted."""

from __future__ import annotations

import pytest

from strop.errors import RolloutError
from strop.online.groups import Group
from strop.records import Example, Stretch
from strop.testing.cases import make_trainer


def build(folder, function, reward, **settings):
    return make_trainer(
        "online-dpo", folder, trainer={"rollout_func": function, "reward_funcs": reward}, num_generations=3,
        max_steps=3, logging_steps=1, per_device_train_batch_size=2, **settings,
    )  # fmt: skip


def answers(prompts, n, sampling, trainer, own=lambda place: []):
    """Completions on their prompt, with the ids `own(number of the completion)` before them."""
    return {
        "completion_ids": [[[5, 6 + place] for place in range(n)] for _ in prompts],
        "logprobs": [[[-1.0, -1.0]] * n for _ in prompts],
        "prompt_ids": [[[*own(place), *ids] for place in range(n)] for ids in prompts],
    }


def stretched(prompts, n, sampling, trainer):
    """Each completion in two parts, the second on a context of its own."""
    given = answers(prompts, n, sampling, trainer)
    parts = [[[Stretch(ids, [5], [1], [-1.0]), Stretch([9, *ids], [6], [1], [-1.0])]] * n for ids in prompts]
    return {**given, "completion_ids": [[[5, 6]] * n for _ in prompts], "stretches": parts}


@pytest.mark.parametrize(
    "function", [stretched, lambda *given: answers(*given, own=lambda place: [7 + place])], ids=["stretches", "prompts"]
)
def test_contexts_that_cannot_be_compared_stop_the_run_before_anything_is_rewarded(function, tmp_path):
    def reward(completions, **columns):
        raise AssertionError("asked")

    with pytest.raises(
        RolloutError, match=r"OnlineDPO compares completions of one prompt.*rollout_func must return one"
    ):
        build(tmp_path, lambda p, n, s, t: function(p, n, s, t), reward).train()


def test_later_ones_are_left_out_and_counted(tmp_path):
    rounds = []

    def function(prompts, n, sampling, trainer):
        rounds.append(len(prompts))
        return answers(prompts, n, sampling, trainer, own=lambda place: [] if len(rounds) != 2 else [7 + place])

    trainer = build(tmp_path, function, lambda completions, **columns: [float(i) for i in range(len(completions))])
    trainer.train()
    logged = [line for line in trainer.state.log_history if "loss" in line]
    assert [line.get("pairs/apart_ratio", 0.0) for line in logged] == [0.0, 1.0, 0.0]
    assert [line["pairs/dropped_ratio"] for line in logged] == [0.0, 1.0, 0.0]


def test_a_run_that_is_gone_on_with_has_compared_before(tmp_path):
    def reward(completions, **columns):
        return [float(i) for i in range(len(completions))]

    saving = {"save_strategy": "steps", "save_steps": 1}
    build(tmp_path, answers, reward, **saving).train()
    rounds = []

    def function(prompts, n, sampling, trainer):
        rounds.append(len(prompts))
        return answers(prompts, n, sampling, trainer, own=lambda place: [7 + place] if len(rounds) == 1 else [])

    trainer = build(tmp_path, function, reward, **saving)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    logged = [line.get("pairs/apart_ratio", 0.0) for line in trainer.state.log_history if "loss" in line]
    assert logged == [0.0, 1.0, 0.0]


def test_completions_of_several_parts_are_compared_with_none():
    group = Group(Example([1], []), [[5], [6], [7]], [[-1.0]] * 3, ["stop"] * 3)
    assert group.comparable == [0, 1, 2]
    group.stretches = [None, [Stretch([1], [6], [1], [-1.0])], None]
    assert group.comparable == [0, 2]
