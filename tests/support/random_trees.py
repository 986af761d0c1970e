"""Random trees: a prompt and the completions below it, of ids that mean nothing."""

from __future__ import annotations

import random

from strop.records import Example
from strop.testing.tiny import VOCAB


def random_examples(
    seed: int,
    vocab: int = VOCAB,
    *,
    trees: int = 3,
    completions: tuple[int, int] = (1, 3),
    prompt: tuple[int, int] = (1, 6),
    length: tuple[int, int] = (1, 6),
    masked: bool = False,
) -> list[Example]:
    """Random trees.

    Args:
        seed: the same seed gives the same examples.
        vocab: ids are drawn from 0..vocab-1, pad and end ids among them.
        trees: how many.
        completions, prompt, length: smallest and largest number of completions, prompt tokens, completion tokens.
        masked: draw random loss masks, all-zero ones among them; otherwise every token is scored.
    """
    draw = random.Random(seed)

    def ids(bounds: tuple[int, int]) -> list[int]:
        return [draw.randrange(vocab) for _ in range(draw.randint(*bounds))]

    examples = []
    for row in range(trees):
        prompt_ids = ids(prompt)
        answers = [ids(length) for _ in range(draw.randint(*completions))]
        masks = [[int(draw.random() < 0.6) for _ in answer] for answer in answers] if masked else None
        examples.append(Example(prompt_ids, answers, loss_mask=masks, row=row))
    return examples
