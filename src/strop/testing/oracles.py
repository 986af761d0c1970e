"""The loss of every method written out by hand, with gradient, from plain forward passes of one row at a time.

An oracle is a function `(scene) -> loss`: a scalar tensor whose gradient is that of the policy (and critic). The
formulas follow the papers named in the trainers and share no code with `strop.losses`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from strop.metric import LN2
from strop.records import Example
from strop.testing.scene import Scene, logits, logps, states, values

Oracle = Callable[[Scene], Tensor]
TOKENS = 288  # ids of the toy tokenizers, which is the vocabulary of the tiny models


@dataclass(frozen=True)
class Start:
    """What follows from the start alone: metrics of the first step, the settings they are so under, the models."""

    metrics: Mapping[str, float]
    settings: Mapping[str, Any] = field(default_factory=dict)
    models: str = ""  # "even": the output layer is zeros; "student": the teacher is a copy of the student


@dataclass(frozen=True)
class Formula:
    """What the loss of a case must equal."""

    loss: Oracle
    settings: Mapping[str, Any]  # under which the two are compared: none at a neutral value
    uses: int  # how often trees are used before the comparison
    start: Start


FORMULAS: dict[str, Formula] = {}
"""Case -> its formula."""


def formula_of(case: str, start: Start, *, uses: int = 1, **settings: Any) -> Callable[[Oracle], Oracle]:
    """Decorator: the function is the formula of a case, whose first step starts so."""

    def note(loss: Oracle) -> Oracle:
        FORMULAS[case] = Formula(loss, settings, uses, start)
        return loss

    return note


@formula_of("sft", Start({"loss": math.log(TOKENS), "entropy": math.log(TOKENS)}, models="even"))
def sft(scene: Scene) -> Tensor:
    scored = []
    for tree in scene.trees:
        found = logps(scene.policy, tree.prompt_ids, tree.completions[0])
        mask = tree.mask(0) if tree.prompt_ids else tree.mask(0)[1:]
        scored += [value for value, keep in zip(found, mask, strict=True) if keep]
    return -torch.stack(scored).mean()


@formula_of("reward", Start({"loss": LN2, "margin": 0.0}, models="even"))
def reward(scene: Scene) -> Tensor:
    losses = []
    for tree in scene.trees:
        chosen, rejected = (
            scene.policy.score(states(scene.policy, tree.prompt_ids, ids)[-1])[0] for ids in tree.completions
        )
        losses.append(softplus(-(chosen - rejected)))
    return torch.stack(losses).mean()


def ratio(scene: Scene, tree: Example, index: int, temperature: float = 1.0) -> Tensor:
    """u = log pi(y) - log mu(y) of a completion."""
    prompt, ids = tree.prompt_ids, tree.completions[index]
    return logps(scene.policy, prompt, ids, temperature).sum() - scene.ref_logps(prompt, ids, temperature).sum()


@formula_of("dpo", Start({"loss": LN2, "rewards/margins": 0.0, "rewards/chosen": 0.0}), beta=0.3)
def dpo(scene: Scene) -> Tensor:
    gaps = [ratio(scene, tree, 0) - ratio(scene, tree, 1) for tree in scene.trees]
    return softplus(-scene.args.beta * torch.stack(gaps)).mean()


@formula_of("xpo", Start({"loss": 1.0, "rewards/margins": 0.0}), beta=0.3)
def xpo(scene: Scene) -> Tensor:
    gaps = [ratio(scene, tree, 0) - ratio(scene, tree, 1) for tree in scene.trees]
    return torch.exp(-scene.args.beta * torch.stack(gaps)).mean()


def signs(scene: Scene) -> Tensor:
    return torch.tensor([1.0 if tree.extras["label"] else -1.0 for tree in scene.trees], dtype=torch.float64)


@formula_of("kto", Start({"loss": 0.5, "kl": 0.0, "rewards/chosen": 0.0}), beta=0.3)
def kto(scene: Scene) -> Tensor:
    own = torch.stack([ratio(scene, tree, 0) for tree in scene.trees])
    other = torch.stack([ratio(scene, tree, 1) for tree in scene.trees if len(tree.completions) > 1]).detach()
    point = max(0.0, float(other.mean()))
    return (1 - torch.sigmoid(signs(scene) * scene.args.beta * (own - point))).mean()


@formula_of("bco", Start({"loss": LN2, "rewards/chosen": 0.0}), beta=0.3)
def bco(scene: Scene) -> Tensor:
    rewards = scene.args.beta * torch.stack([ratio(scene, tree, 0) for tree in scene.trees])
    labels = signs(scene)
    shift = 0.5 * (float(rewards[labels > 0].mean()) + float(rewards[labels < 0].mean()))
    return -logsigmoid(labels * (rewards - shift)).mean()


@formula_of(
    "orpo",
    Start({"loss": math.log(TOKENS) + 0.3 * LN2, "log_odds_chosen": 0.0}, {"beta": 0.3}, models="even"),
    beta=0.3,
)
def orpo(scene: Scene) -> Tensor:
    nll, odds = [], []
    for tree in scene.trees:
        sides = [logps(scene.policy, tree.prompt_ids, ids) for ids in tree.completions]
        nll += [-sides[0], -logps(scene.policy, [], tree.prompt_ids)] if len(tree.prompt_ids) > 1 else [-sides[0]]
        chosen, rejected = (torch.exp(side.mean()) for side in sides)
        odds.append(torch.log((chosen / (1 - chosen)) / (rejected / (1 - rejected))))
    return torch.cat(nll).mean() + scene.args.beta * softplus(-torch.stack(odds)).mean()


SIMPO = {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5}


@formula_of("cpo", Start({"loss": math.log(1 + math.exp(0.5))}, SIMPO, models="even"), beta=0.3)
def cpo(scene: Scene) -> Tensor:
    chosen = [logps(scene.policy, tree.prompt_ids, tree.completions[0]) for tree in scene.trees]
    rejected = [logps(scene.policy, tree.prompt_ids, tree.completions[1]) for tree in scene.trees]
    gaps = torch.stack([w.sum() - r.sum() for w, r in zip(chosen, rejected, strict=True)])
    return softplus(-scene.args.beta * gaps).mean() - torch.cat(chosen).mean()


@formula_of("prm", Start({"loss": LN2}, models="even"))
def prm(scene: Scene) -> Tensor:
    losses = []
    for tree in scene.trees:
        marked = [len(tree.prompt_ids) + t for t, mark in enumerate(tree.mask(0)) if mark]
        judged = scene.policy.score(states(scene.policy, tree.prompt_ids, tree.completions[0]))[marked].log_softmax(-1)
        losses += [-row[int(label)] for row, label in zip(judged, tree.extras["labels"], strict=True)]
    return torch.stack(losses).mean()


def completions(scene: Scene) -> list[tuple[Example, int]]:
    return [(tree, i) for tree in scene.trees for i in range(len(tree.completions))]


UNMOVED = Start({"kl": 0.0, "clip_ratio/region_mean": 0.0}, {"beta": 0.1})


@formula_of("grpo", UNMOVED, uses=2, num_generations=3, temperature=0.8, num_iterations=2)
def grpo(scene: Scene) -> Tensor:
    """DAPO's token mean over the step, ratios to the policy that sampled."""
    total, count, temperature = torch.zeros((), dtype=torch.float64), 0, scene.args.temperature
    for tree in scene.trees:
        rewards = torch.tensor([scene.reward(ids) for ids in tree.completions], dtype=torch.float64)
        flat = float(rewards.max()) == float(rewards.min())
        advantages = torch.zeros_like(rewards) if flat else (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        for advantage, ids in zip(advantages, tree.completions, strict=True):
            old = logps(scene.before, tree.prompt_ids, ids, temperature).detach()
            moved = torch.exp(logps(scene.policy, tree.prompt_ids, ids, temperature) - old)
            clipped = moved.clamp(1 - scene.args.epsilon, 1 + scene.args.epsilon)
            total = total - torch.minimum(moved * advantage, clipped * advantage).sum()
            count += len(ids)
    return total / count


@formula_of("rloo", UNMOVED, uses=2, num_generations=3, temperature=0.8, num_iterations=2, beta=0.2)
def rloo(scene: Scene) -> Tensor:
    losses, temperature = [], scene.args.temperature
    for tree in scene.trees:
        shaped, old = [], []
        for ids in tree.completions:
            old.append(float(logps(scene.before, tree.prompt_ids, ids, temperature).sum()))
            kl = old[-1] - float(scene.ref_logps(tree.prompt_ids, ids, temperature).sum())
            shaped.append(scene.reward(ids) - scene.args.beta * kl)
        for i, ids in enumerate(tree.completions):
            others = [r for j, r in enumerate(shaped) if j != i]
            advantage = shaped[i] - sum(others) / len(others)
            moved = torch.exp(logps(scene.policy, tree.prompt_ids, ids, temperature).sum() - old[i])
            clipped = moved.clamp(1 - scene.args.epsilon, 1 + scene.args.epsilon)
            losses.append(-torch.minimum(moved * advantage, clipped * advantage))
    return torch.stack(losses).mean()


@formula_of(
    "ppo",
    Start({"objective/kl": 0.0, "val/ratio": 1.0, "policy/approxkl_avg": 0.0, "policy/clipfrac_avg": 0.0}),
    beta=0.3,
    temperature=0.8,
    lam=0.9,
    gamma=0.95,
)
def ppo(scene: Scene) -> Tensor:
    args, temperature = scene.args, scene.args.temperature
    old, old_values, advantages, returns = [], [], [], []
    for tree, i in completions(scene):
        prompt, ids = tree.prompt_ids, tree.completions[i]
        old.append(logps(scene.before, prompt, ids, temperature).detach())
        old_values.append(values(scene.critic_before, prompt, ids).detach())
        rewards = -args.beta * (old[-1] - scene.ref_logps(prompt, ids, temperature))
        rewards[-1] += scene.reward(ids)
        carry, found = 0.0, []
        for t in reversed(range(len(ids))):
            after = float(old_values[-1][t + 1]) if t + 1 < len(ids) else 0.0
            carry = float(rewards[t]) + args.gamma * after - float(old_values[-1][t]) + args.gamma * args.lam * carry
            found.append(carry)
        advantages.append(torch.tensor(found[::-1], dtype=torch.float64))
        returns.append(advantages[-1] + old_values[-1])
    flat = torch.cat(advantages)
    whitened = (flat - flat.mean()) / torch.sqrt(flat.var() + 1e-8)
    now = torch.cat([logps(scene.policy, t.prompt_ids, t.completions[i], temperature) for t, i in completions(scene)])
    moved = torch.exp(now - torch.cat(old))
    policy = torch.maximum(-whitened * moved, -whitened * moved.clamp(1 - args.cliprange, 1 + args.cliprange))
    judged = torch.cat([values(scene.critic, t.prompt_ids, t.completions[i]) for t, i in completions(scene)])
    start, target = torch.cat(old_values), torch.cat(returns)
    near = start + (judged - start).clamp(-args.cliprange_value, args.cliprange_value)
    critic = 0.5 * torch.maximum((judged - target) ** 2, (near - target) ** 2)
    return policy.mean() + args.vf_coef * critic.mean()


@formula_of("online-dpo", Start({"loss": LN2, "objective/kl": 0.0}), beta=0.3, temperature=0.8)
def online_dpo(scene: Scene) -> Tensor:
    gaps = []
    for tree in scene.trees:
        best = 0 if scene.reward(tree.completions[0]) > scene.reward(tree.completions[1]) else 1
        temperature = scene.args.temperature
        gaps.append(ratio(scene, tree, best, temperature) - ratio(scene, tree, 1 - best, temperature))
    return softplus(-scene.args.beta * torch.stack(gaps)).mean()


@formula_of("nash-md", Start({"objective/kl": 0.0}), beta=0.3, temperature=0.8)
def nash_md(scene: Scene) -> Tensor:
    """Reward to go: every token is pushed by the preference less the KL from there on."""
    losses, temperature = [], scene.args.temperature
    for tree in scene.trees:
        ids = tree.completions[0]
        wins = 1 / (1 + math.exp(scene.reward(scene.opponent(tree.prompt_ids)) - scene.reward(ids)))
        found = logps(scene.policy, tree.prompt_ids, ids, temperature)
        kl = found.detach() - scene.ref_logps(tree.prompt_ids, ids, temperature)
        to_go = torch.stack([kl[t:].sum() for t in range(len(ids))])
        losses.append(-((wins - 0.5 - scene.args.beta * to_go) * found).sum())
    return torch.stack(losses).mean()


@formula_of("xpo-online", Start({"loss/dpo": LN2, "objective/kl": 0.0}), beta=0.3, temperature=0.8, alpha=0.01)
def xpo_online(scene: Scene) -> Tensor:
    losses, temperature = [], scene.args.temperature
    for tree in scene.trees:
        best = 0 if scene.reward(tree.completions[0]) > scene.reward(tree.completions[1]) else 1
        gap = ratio(scene, tree, best, temperature) - ratio(scene, tree, 1 - best, temperature)
        bonus = logps(scene.policy, tree.prompt_ids, tree.completions[1], temperature).sum()
        losses.append(softplus(-scene.args.beta * gap) + scene.args.alpha * bonus)
    return torch.stack(losses).mean()


@formula_of("gkd", Start({"loss": 0.0, "jsd": 0.0}, models="student"), beta=0.3, temperature=0.8)
def gkd(scene: Scene) -> Tensor:
    beta, found = scene.args.beta, []
    for tree in scene.trees:
        student = logits(scene.policy, tree.prompt_ids, tree.completions[0]).softmax(-1)
        teacher = logits(scene.trainer.teacher, tree.prompt_ids, tree.completions[0]).softmax(-1).detach()
        middle = beta * teacher + (1 - beta) * student
        to_teacher = (teacher * (teacher / middle).log()).sum(-1)
        to_student = (student * (student / middle).log()).sum(-1)
        found.append(beta * to_teacher + (1 - beta) * to_student)
    return torch.cat(found).mean()
