"""What completions of older weights give to each method's gradient, against formulas written out tree by tree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support.stale import Beside, ByHand, stale
from torch.nn.functional import softplus

SLOW = {"dtype": torch.float64, "max_grad_norm": 0.0, "learning_rate": 0.05, "max_steps": 3}
Key = tuple[int, tuple[int, ...]]


def logps_of(model: Any, prompt: list[int], ids: list[int]) -> torch.Tensor:
    """Log-probs (T,) of a completion, alone."""
    logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]


def values_of(critic: Any, prompt: list[int], ids: list[int]) -> torch.Tensor:
    """Values (T,) of the states that the tokens of a completion were drawn from."""
    hidden = critic.model(input_ids=torch.tensor([prompt + ids])).last_hidden_state
    return critic.score(hidden)[0, len(prompt) - 1 : -1, 0]


def weights_by_hand(gap: torch.Tensor, mode: str, high: float) -> torch.Tensor:
    """pi_old / pi_sampler (T,) of a completion, from the difference of log-probs (T,)."""
    ratio = (gap.sum().expand_as(gap) if mode.startswith("sequence") else gap).exp()
    return ratio.clamp(max=high) if mode.endswith("truncate") else ratio * (ratio <= high)


class Ppo:
    """L = sum over tokens of w max(-A r, -A clip(r)) + c/2 max((V - G)^2, (V_clip - G)^2), over their number."""

    def __init__(self, mode: str, high: float) -> None:
        self.mode, self.high = mode, high
        self.weights: list[float] = []
        self.round: dict[Key, dict[str, torch.Tensor]] = {}

    def __call__(self, trainer: Any, trees: list[Any]) -> torch.Tensor:
        args = trainer.args
        if trainer.state.global_step % trainer.sizes.steps == 0:
            self.round = self.taken(trainer, trees)
        terms = []
        for key, fixed in self.round.items():
            prompt, ids = fixed["prompt"].tolist(), list(key[1])
            ratio = (logps_of(trainer.model.policy, prompt, ids) - fixed["old"]).exp()
            unclipped, clipped = ratio, ratio.clamp(1 - args.cliprange, 1 + args.cliprange)
            policy = torch.maximum(-fixed["advantages"] * unclipped, -fixed["advantages"] * clipped)
            values = values_of(trainer.model.critic, prompt, ids)
            near = fixed["values"] + (values - fixed["values"]).clamp(-args.cliprange_value, args.cliprange_value)
            errors = torch.maximum((values - fixed["returns"]) ** 2, (near - fixed["returns"]) ** 2)
            terms.append(fixed["weights"] * policy + args.vf_coef / 2 * errors)
        flat = torch.cat(terms)
        return flat.sum() / len(flat)

    @torch.no_grad()
    def taken(self, trainer: Any, trees: list[Any]) -> dict[Key, dict[str, torch.Tensor]]:
        """What is fixed when a round is taken: all of it from the weights of that moment, but for the sampler's."""
        found: dict[Key, dict[str, torch.Tensor]] = {}
        for tree in trees:
            told = tree.sampled
            for ids, total, said in zip(tree.completions, told.totals, told.sampler_logps, strict=True):
                old = logps_of(trainer.model.policy, tree.prompt_ids, ids)
                values = values_of(trainer.model.critic, tree.prompt_ids, ids)
                rewards = -trainer.args.beta * (old - logps_of(trainer.reference.model, tree.prompt_ids, ids))
                rewards[-1] += total
                advantages, running = torch.zeros_like(old), 0.0
                for t in reversed(range(len(ids))):
                    following = values[t + 1] if t + 1 < len(ids) else 0.0
                    running = rewards[t] + following - values[t] + trainer.args.lam * running
                    advantages[t] = running
                weights = weights_by_hand(old - torch.tensor(said, dtype=old.dtype), self.mode, self.high)
                self.weights += weights.tolist()
                found[tree.row, tuple(ids)] = {
                    "prompt": torch.tensor(tree.prompt_ids), "old": old, "values": values,
                    "advantages": advantages, "returns": advantages + values, "weights": weights,
                }  # fmt: skip
        flat = torch.cat([fixed["advantages"] for fixed in found.values()])
        for fixed in found.values():
            fixed["advantages"] = (fixed["advantages"] - flat.mean()) / (flat.var() + 1e-8).sqrt()
        return found


@pytest.mark.parametrize(
    ("name", "mode", "high"),
    [("ppo twice", "token_truncate", 1.05), ("ppo", "sequence_mask", 1.001)],
)
def test_ppo_weighs_the_policy_term_and_not_the_critic(name, mode, high, tmp_path):
    steps = 4 if name == "ppo twice" else 3
    settings = {
        "vllm_importance_sampling_mode": mode,
        "vllm_importance_sampling_clip_max": high,
        "max_steps": steps,
        "learning_rate": 0.003,
    }
    trainer = stale(tmp_path, name, Beside, prompts=6, **{**SLOW, **settings})
    formula = Ppo(mode, high)
    hand = ByHand(trainer, formula)
    trainer.train()
    assert len(hand.gaps) == steps and max(hand.gaps) < 1e-8
    assert [line["staleness/max"] for line in trainer.state.log_history if "loss" in line][-1] > 0
    bound = high if mode.endswith("truncate") else 0.0
    assert any(weight == pytest.approx(bound) for weight in formula.weights), "no weight met its bound"
    assert any(abs(weight - 1) > 0.01 and weight != pytest.approx(bound) for weight in formula.weights)


def sums_of(model: Any, tree: Any) -> list[torch.Tensor]:
    return [logps_of(model, tree.prompt_ids, ids).sum() for ids in tree.completions]


def log_ratios(trainer: Any, tree: Any) -> list[torch.Tensor]:
    sums = zip(sums_of(trainer.model, tree), sums_of(trainer.reference.model, tree), strict=True)
    return [policy - reference for policy, reference in sums]


def online_dpo(trainer: Any, trees: list[Any]) -> torch.Tensor:
    """mean over pairs of -log sigma(beta ((pi - mu)(better) - (pi - mu)(worse))), without any weight."""
    terms = []
    for tree in trees:
        better, worse = log_ratios(trainer, tree)
        terms.append(softplus(-trainer.args.beta * (better - worse)))
    return torch.stack(terms).mean()


def xpo(trainer: Any, trees: list[Any]) -> torch.Tensor:
    """The same of (y, y~) as the reward has it, plus alpha log pi(y~)."""
    terms = []
    for tree in trees:
        own, other = log_ratios(trainer, tree)
        sign = 1.0 if tree.sampled.policy_wins else -1.0
        terms.append(
            softplus(-trainer.args.beta * sign * (own - other)) + trainer.args.alpha * sums_of(trainer.model, tree)[1]
        )
    return torch.stack(terms).mean()


def gkd(trainer: Any, trees: list[Any]) -> torch.Tensor:
    """beta KL(teacher || M) + (1 - beta) KL(student || M) at the states of the student of then, over their tokens."""
    beta, terms = trainer.args.beta, []
    for tree in trees:
        (ids,), start = tree.completions, len(tree.prompt_ids) - 1
        given = torch.tensor([tree.prompt_ids + ids])
        student = trainer.model(input_ids=given).logits[0, start:-1].log_softmax(-1)
        teacher = trainer.teacher(input_ids=given).logits[0, start:-1].log_softmax(-1)
        mixed = (beta * teacher.exp() + (1 - beta) * student.exp()).log()
        kls = [(p.exp() * (p - mixed)).sum(-1) for p in (teacher, student)]
        terms.append(beta * kls[0] + (1 - beta) * kls[1])
    flat = torch.cat(terms)
    return flat.sum() / len(flat)


@pytest.mark.parametrize(
    ("name", "formula", "settings"),
    [("online-dpo", online_dpo, {}), ("xpo", xpo, {"alpha": 0.01}), ("gkd", gkd, {})],
)
def test_methods_that_need_no_weight_learn_from_older_samples_as_they_are(name, formula, settings, tmp_path):
    trainer = stale(tmp_path, name, Beside, prompts=6, **{**SLOW, **settings})
    hand = ByHand(trainer, formula)
    trainer.train()
    assert len(hand.gaps) == 3 and max(hand.gaps) < 1e-8
    assert [line["staleness/mean"] for line in trainer.state.log_history if "loss" in line] == [0, 1, 1]
