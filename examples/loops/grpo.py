"""GRPO by hand: sample a group for each prompt, compare its rewards, and make what was better likelier.

python -m examples.loops.grpo
"""

from __future__ import annotations

import torch

from strop.losses import group_advantages, policy_loss_flat
from strop.model import score
from strop.records import Example
from strop.rollout import SamplingParams, make_generator
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

PROMPTS = ["ant", "bee"]
GROUP, TOKENS, STEPS = 16, 6, 40


def reward(ids: list[int]) -> float:
    """The share of even ids: something that a random model can get better at in seconds."""
    return sum(token % 2 == 0 for token in ids) / len(ids)


def main() -> list[float]:
    """Train for some steps; the mean reward of each."""
    torch.manual_seed(0)
    tokenizer = toy_tokenizer()
    policy = tiny_model("llama", vocab_size=len(tokenizer))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    generator = make_generator(model=policy, tokenizer=tokenizer)
    prompts, means = [tokenizer.encode(prompt) for prompt in PROMPTS], []

    for step in range(1, STEPS + 1):
        sampling = SamplingParams(max_new_tokens=TOKENS, temperature=1.0, seed=step)
        groups = generator.generate(prompts, GROUP, sampling).completions  # [prompt][sample] ids
        rewards = torch.tensor([reward(ids) for group in groups for ids in group])
        advantages = group_advantages(rewards, num_generations=GROUP)

        scores = score(policy, [Example(prompt, group) for prompt, group in zip(prompts, groups, strict=True)])
        # One step on what was just sampled: the old log-probs are the policy's own, so None.
        tokens = policy_loss_flat(
            scores.logps, None, advantages[scores.segment], scores.segment, scores.num_completions
        )
        loss = tokens.sum() / len(tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        means.append(rewards.mean().item())
        print(f"step {step:2d}  reward {means[-1]:.3f}")
    return means


if __name__ == "__main__":
    main()
