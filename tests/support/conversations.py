"""A stub of a rollout engine that says what it is told, and rows that go with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from strop.records import Example, Rollout
from strop.testing.cases import make_trainer
from strop.testing.tiny import tiny_model
from tests.support.templates import KINDS, tokenizer_with

QUESTION = [{"role": "user", "content": "ask"}]


class Script:
    """Says `say(context as text, number of the completion in its call)`, and keeps the contexts that it was given."""

    name, reason = "script", ""

    def __init__(self, tokenizer: Any, say: Callable[[str, int], str] | list[str], end: str | None = "") -> None:
        self.tokenizer, self.say, self.seen = tokenizer, say, []
        self.end = tokenizer.eos_token if end == "" else end

    def sync(self, model: Any = None) -> None: ...

    def close(self) -> None: ...

    def words(self, context: list[int], place: int) -> str:
        turn = len(self.seen) - 1
        return self.say[turn] if isinstance(self.say, list) else self.say(self.tokenizer.decode(context), place)

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def generate(self, prompts: list[list[int]], n: int, sampling: Any, *, mixture: Any = None) -> Rollout:
        self.seen.append([list(prompt) for prompt in prompts])
        said, reasons = [], []
        for place, prompt in enumerate(prompts):
            ids = [*self.ids(self.words(prompt, place)), *(self.ids(self.end) if self.end else [])]
            reasons.append(["stop" if len(ids) <= sampling.max_new_tokens else "length"])
            said.append([ids[: sampling.max_new_tokens]])
        return Rollout(prompts, said, [[[-0.5] * len(ids) for ids in group] for group in said], reasons)


class Letters(Script):
    """Spells letter by letter, as a model may and the tokenizer never does."""

    def ids(self, text: str) -> list[int]:
        return (
            super().ids(text) if text == self.end else [i for letter in text for i in super(Letters, self).ids(letter)]
        )


def asked(tokenizer: Any, tools: Any = None, **columns: Any) -> Example:
    """A prompt as the rows of a run have it."""
    ids = tokenizer.apply_chat_template(QUESTION, tools=tools, add_generation_prompt=True)["input_ids"]
    return Example(ids, [], extras={"prompt": QUESTION, "columns": columns, **({"tools": tools} if tools else {})})


def trained(folder: Path, say: Any, rows: list[Any], **trainer: Any) -> Any:
    """A trainer after two steps of GRPO on what `say` says, which have changed the weights."""
    tokenizer, _ = tokenizer_with(KINDS["gathered"])
    made = make_trainer(
        "grpo", folder, rows=rows, model=tiny_model("llama", dtype=torch.float64, vocab_size=len(tokenizer)),
        tokenizer=tokenizer, trainer={"reward_funcs": None, **trainer}, num_generations=2, max_length=None,
        max_completion_length=400, max_steps=2, logging_steps=1,
    )  # fmt: skip
    made._generator = Script(tokenizer, say)
    before = [weight.clone() for weight in made.model.parameters()]
    made.train()
    assert any(not torch.equal(old, new) for old, new in zip(before, made.model.parameters(), strict=True))
    return made


def sampler_logps_of(trees: list[Example]) -> list[float]:
    """What the sampler said of each token that is learned, in the order of the trees."""
    return [
        logp
        for tree in trees
        for index, logps in enumerate(tree.sampled.sampler_logps)
        for logp, on in zip(logps, tree.mask(index), strict=True)
        if on
    ]
