"""Samples of the demonstration's models, through strop's own rollout engine and its own scorer."""

from __future__ import annotations

from typing import Any

import torch

from strop.demo.task import Sampler
from strop.model import score
from strop.records import Example, Want
from strop.rollout import SamplingParams, make_generator

MAX_NEW_TOKENS = 12
"""A space, six letters, the end token, and room to go wrong."""


def sampler_of(model: Any, tokenizer: Any, *, temperature: float = 1.0, seed: int = 0) -> Sampler:
    """`sample(prompts, n)` for a model; temperature 0 is greedy. The texts come without the end token."""
    generator = make_generator("auto", model=model, tokenizer=tokenizer)
    sampling = SamplingParams(max_new_tokens=MAX_NEW_TOKENS, temperature=temperature, seed=seed)

    def sample(prompts: list[str], n: int) -> list[list[str]]:
        ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        rollout = generator.generate(ids, n, sampling)
        return [[text_of(tokenizer, completion) for completion in group] for group in rollout.completions]

    return sample


def text_of(tokenizer: Any, ids: list[int]) -> str:
    """A completion as text: the end token is dropped, any other special token stays visible."""
    if ids and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return tokenizer.decode(ids, skip_special_tokens=False)


@torch.no_grad()
def best_by_reward(model: Any, tokenizer: Any, prompts: list[str], samples: list[list[str]]) -> list[str]:
    """For each prompt the completion that a reward model scores highest (the first one on a tie)."""
    best = []
    for prompt, texts in zip(prompts, samples, strict=True):
        completions = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
        scores = score(model, [Example(tokenizer(prompt)["input_ids"], completions)], want=Want.SCORE).scores
        assert scores is not None
        best.append(texts[int(scores.argmax())])
    return best
