"""A trajectory whose past turns were rewritten lies on several contexts and counts once, in every sum."""

from __future__ import annotations

import pytest
import torch

from strop.online.groups import Group
from strop.records import Example, Sampled, Stretch
from strop.testing.cases import largest_difference, make_trainer, rows_for, step_gradients

FIRST = [Stretch([5, 6], [7, 8, 9], [1, 1, 1], [-1.0] * 3), Stretch([5, 6, 9], [10, 11], [1, 0], [-1.0, 0.0])]
STEPS = {0: [0.3, -0.2, 0.1, 0.25], 1: [-0.15, 0.2]}
"""Old log-probs of the trajectories are the current ones less these."""
ADVANTAGES = [1.5, -0.5]


def group() -> Group:
    made = Group(
        Example([5, 6], [], row=0),
        [[7, 8, 9, 10, 11], [12, 13]],
        [[-1.0, -1.0, -1.0, -1.0, 0.0], [-1.0, -1.0]],
        ["stop", "stop"],
        [[1, 1, 1, 1, 0], [1, 1]],
        stretches=[FIRST, None],
    )
    made.advantages = torch.tensor(ADVANTAGES).double()
    return made


def shifted(trainer, trees):
    """The trees with old log-probs that differ from the current ones by fixed steps; the current ones by trajectory."""
    current = {0: [], 1: []}
    steps = {number: iter(own) for number, own in STEPS.items()}
    for tree in trees:
        batch = trainer.build([tree])
        logps = trainer.score(trainer.model, batch, log=False).logps
        old, place = [], 0
        for index, ids in enumerate(tree.completions):
            number = tree.sampled.of[index]
            old.append([])
            for on in tree.mask(index):
                if not on:
                    old[-1].append(0.0)
                    continue
                old[-1].append(float(logps[place].detach()) - next(steps[number]))
                current[number].append(logps[place])
                place += 1
            assert len(old[-1]) == len(ids)
        tree.sampled.old_logps = old
    return current


def wanted(loss_type, level, current, max_length):
    """The loss by hand from log-probs by trajectory, [number][token]; old ones are constants."""
    terms = {}
    for number, own in current.items():
        log_ratios = [logp - logp.detach() + step for logp, step in zip(own, STEPS[number], strict=True)]
        if level == "sequence":
            mean = sum(log_ratios) / len(log_ratios)
            log_ratios = [mean] * len(own)
        advantage = ADVANTAGES[number]
        terms[number] = [-torch.minimum(r.exp() * advantage, r.exp().clamp(0.8, 1.2) * advantage) for r in log_ratios]
    if loss_type == "grpo":
        return sum(sum(t) / len(t) for t in terms.values()) / 2
    if loss_type == "dr_grpo":
        return sum(sum(t) for t in terms.values()) / (2 * max_length)
    if loss_type == "luspo":
        return sum(sum(t) for t in terms.values()) / 2
    return sum(sum(t) for t in terms.values()) / sum(map(len, terms.values()))


@pytest.mark.parametrize(
    ("loss_type", "level"),
    [("grpo", "token"), ("grpo", "sequence"), ("dapo", "token"), ("dr_grpo", "token"), ("luspo", "sequence")],
)
@pytest.mark.parametrize("per_device", [1, 8])
def test_a_forked_trajectory_counts_once(loss_type, level, per_device, tmp_path):
    trainer = make_trainer(
        "grpo", tmp_path, rows=rows_for("grpo", 2), num_generations=2, loss_type=loss_type, max_completion_length=16,
        importance_sampling_level=level, per_device_train_batch_size=per_device, beta=0.0,
        gradient_accumulation_steps=2 if per_device == 1 else 1,
    )  # fmt: skip
    trees = trainer.trees(group())
    assert [tree.sampled.follows for tree in trees] == [False, False, True]
    current = shifted(trainer, trees)
    trainer.model.zero_grad()
    loss = wanted(loss_type, level, current, 16)
    loss.backward()
    expected = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.prepare_step = lambda examples: examples
    assert trainer.counts(trees)["completions"] == 2
    assert largest_difference(step_gradients(trainer, trees), expected) < 1e-12


def test_rloo_sums_over_the_whole_trajectory(tmp_path):
    trainer = make_trainer("rloo", tmp_path, rows=rows_for("rloo", 2), num_generations=2, beta=0.1)
    trees = trainer.trees(group())
    with torch.no_grad():
        current = shifted(trainer, trees)
        sums, _ = trainer.summed_logps([group()], "train")
    assert sums[0].tolist() == pytest.approx([float(sum(current[0])), float(sum(current[1]))], abs=1e-12)
    current = shifted(trainer, trees)
    ratios = [torch.exp(sum(logp - logp.detach() for logp in current[n]) + sum(STEPS[n])) for n in (0, 1)]
    terms = [-torch.minimum(r * a, r.clamp(0.8, 1.2) * a) for r, a in zip(ratios, ADVANTAGES, strict=True)]
    trainer.model.zero_grad()
    (sum(terms) / 2).backward()
    expected = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.prepare_step = lambda examples: examples
    assert largest_difference(step_gradients(trainer, trees), expected) < 1e-12


def test_the_stretches_of_a_trajectory_share_its_advantage_and_stay_together():
    made = group()
    known = Sampled(3, advantages=ADVANTAGES, sampler_logps=made.sampler_logps)
    whole, *own = made.trees(known, first=6)
    assert whole.completions == [[12, 13]] and whole.sampled.of == [1] and whole.sampled.trajectory is None
    assert [tree.prompt_ids for tree in own] == [[5, 6], [5, 6, 9]]
    assert all(tree.sampled.trajectory == 6 and tree.sampled.advantages == [1.5] for tree in own)
    assert [tree.sampled.sampler_logps for tree in own] == [[[-1.0] * 3], [[-1.0, 0.0]]]
    assert all(Example.from_plain(tree.to_plain()) == tree for tree in own)
    assert all(tree.sampled.place == 3 for tree in own)
