"""The task: spell a word backward. `stone backward:` is the prompt, ` enots` the completion.

The demonstrations are of mixed quality on purpose: two of five are right, the others repeat the word as it stands. A
model fitted to them can spell backward and mostly does not; post-training is what brings such a latent skill out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from strop.demo.words import train_words

RIGHT_SHARE = 0.4
"""Share of right answers among the demonstrations."""
SUFFIX = " backward:"

Sampler = Callable[[list[str], int], list[list[str]]]
"""`sample(prompts, n)` gives n completions, as text without the end token, for each prompt."""


def prompt_of(word: str) -> str:
    """`"stone"` -> `"stone backward:"`."""
    return word + SUFFIX


def answer_of(word: str) -> str:
    """`"stone"` -> `" enots"`, the right completion."""
    return " " + word[::-1]


def spells_backward(prompt: str, completion: str) -> bool:
    """The verifier: whether the completion is the prompt's word backward, white space around it aside."""
    return completion.strip() == prompt.removesuffix(SUFFIX)[::-1]


def sft_rows(n: int, seed: int = 0) -> list[dict[str, str]]:
    """`n` demonstrations drawn with replacement; `RIGHT_SHARE` of them are right, the rest copies the word."""
    rng = random.Random(seed)
    words = train_words()
    rows = []
    for _ in range(n):
        word = rng.choice(words)
        completion = answer_of(word) if rng.random() < RIGHT_SHARE else " " + word
        rows.append({"prompt": prompt_of(word), "completion": completion})
    return rows


def sampled_pairs(
    prompts: Sequence[str],
    completions: Sequence[Sequence[str]],
    *,
    seed: int = 0,
    per_prompt: int = 1,
    answer_if_none: bool = False,
) -> list[dict[str, str]]:
    """Preference pairs out of sampled completions: a right one against up to `per_prompt` different wrong ones.

    Prompts whose samples are all right or all wrong have nothing to compare and make no pair; with `answer_if_none`
    the right answer itself is the chosen one where no sample is right.
    """
    rng = random.Random(seed)
    rows = []
    for prompt, samples in zip(prompts, completions, strict=True):
        right = [c for c in samples if spells_backward(prompt, c)]
        wrong = sorted({c for c in samples if not spells_backward(prompt, c)} - {""})
        rng.shuffle(wrong)
        if answer_if_none and not right:
            right = [answer_of(prompt.removesuffix(SUFFIX))]
        if right:
            rows += [{"prompt": prompt, "chosen": right[0], "rejected": bad} for bad in wrong[:per_prompt]]
    return rows


def pair_rows(words: Sequence[str], sample: Sampler, *, n: int = 8, **options: Any) -> list[dict[str, str]]:
    """Sample `n` completions for each word and make pairs of them (`options` as for `sampled_pairs`)."""
    prompts = [prompt_of(word) for word in words]
    return sampled_pairs(prompts, sample(prompts, n), **options)


def accuracy(words: Sequence[str], sample: Sampler, n: int = 1) -> float:
    """Share of right completions among `n` samples for each word."""
    prompts = [prompt_of(word) for word in words]
    groups = zip(prompts, sample(prompts, n), strict=True)
    checks = [spells_backward(prompt, text) for prompt, texts in groups for text in texts]
    return sum(checks) / max(len(checks), 1)
