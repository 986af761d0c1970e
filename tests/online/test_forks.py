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


def test_a_critic_looks_through_all_stretches(tmp_path):
    """G = A + V, A_t = rho_t + gamma V_{t+1} - V_t + gamma lam A_{t+1}, over the tokens of a trajectory, by hand."""
    trainer = make_trainer(
        "ppo", tmp_path, rows=rows_for("ppo", 2), num_generations=2, beta=0.2, gamma=0.9, lam=0.8, whiten_rewards=False
    )
    with torch.no_grad():  # away from the reference
        next(trainer.policy.parameters()).mul_(1.5)
    made = group()
    made.rewards = torch.tensor([3.0, -1.0]).double()
    trees = trainer.make_trees([made], training=True)
    found, states = {0: [], 1: []}, {0: [], 1: []}  # by trajectory: returns of the tokens, (reward of the KL, value)
    for tree in trees:
        batch = trainer.build([tree])
        scores = trainer.score(trainer.model, batch, log=False)
        kl = (scores.logps - trainer.reference_scores(batch).logps).tolist()
        assert max(map(abs, kl)) > 1e-3
        (number,) = tree.sampled.of
        found[number] += [v for v, on in zip(tree.sampled.returns[0], tree.mask(0), strict=True) if on]
        states[number] += [(-0.2 * k, v) for k, v in zip(kl, scores.values.tolist(), strict=True)]
    for number, total in enumerate(made.rewards.tolist()):
        wanted, running, following = [], 0.0, 0.0
        for reward, value in reversed(states[number]):
            reward += total if not wanted else 0.0
            running = reward + 0.9 * following - value + 0.9 * 0.8 * running
            wanted, following = [running + value, *wanted], value
        assert found[number] == pytest.approx(wanted)
    assert trainer._metrics["train"].drain()["objective/scores"] == 1.0, "a trajectory has its reward once"


def test_a_teacher_teaches_on_every_stretch(tmp_path):
    """The divergence is that of tokens, on the contexts where they were written."""
    trainer = make_trainer("gkd", tmp_path, rows=rows_for("gkd", 2), lmbda=1.0)
    alone = Group(Example([5, 6], [], row=0), [[7, 8, 9, 10, 11]], [[0.0] * 5], ["stop"], stretches=[FIRST])
    trees = trainer.make_trees([alone], training=True)
    assert [(tree.prompt_ids, tree.completions) for tree in trees] == [(s.prompt_ids, [s.ids]) for s in FIRST]
    assert trainer.counts(trees)["completions"] == 1.0
    trainer.prepare_step = lambda examples: examples
    whole, parts = step_gradients(trainer, trees), [step_gradients(trainer, [tree]) for tree in trees]
    weighted = {name: (3 * parts[0][name] + parts[1][name]) / 4 for name in whole}
    assert largest_difference(whole, weighted) < 1e-12


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
