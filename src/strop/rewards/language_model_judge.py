"""A local causal language model as a judge: no text is sampled, its preference for "A" over "B" is read off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from strop.errors import ConfigError
from strop.model import layout_of, load_model, score
from strop.records import Example
from strop.rewards.judges import JUDGE_INSTRUCTION, AskingJudge
from strop.rewards.reading import TextReader, default_device, tokenizer_of


class LanguageModelJudge(AskingJudge, TextReader):
    """A causal language model that is asked which answer is better, with both orders averaged.

    P(A) = p("A") / (p("A") + p("B")) of the next token after the question;
    P(first wins) = (P(A | first shown as A) + 1 - P(A | first shown as B)) / 2.

    Args:
        model: a causal language model, or an id or directory of one.
        processing_class: its tokenizer; None loads the one saved beside it. With a chat template the question is a
            user message, without one it is plain text.
        instruction: what makes an answer better.
        max_tokens: tokens of one forward pass, padding included.
        max_length: questions with more tokens get no verdict. Default: the model's positions.
        device: where a model given by id is put.

    Raises:
        ConfigError: there is no tokenizer, or it cannot tell "A" from "B".
        SetupError: the model cannot be loaded.
    """

    name = "language_model_judge"

    def __init__(
        self,
        model: Any,
        processing_class: Any = None,
        *,
        instruction: str = JUDGE_INSTRUCTION,
        max_tokens: int = 16384,
        max_length: int | None = None,
        device: Any = None,
    ) -> None:
        if isinstance(model, str):
            path = model
            model = load_model(path, trainable=False, dtype="auto").to(device or default_device())
            processing_class = tokenizer_of(path, processing_class)  # an adapter's own, and not its base's
        TextReader.__init__(self, model, processing_class, max_tokens=max_tokens, max_length=max_length)
        self.instruction = instruction
        self._letters = [_letter_ids(self.tokenizer, letter) for letter in "AB"]
        if not all(self._letters) or set(self._letters[0]) & set(self._letters[1]):
            raise ConfigError("The judge's tokenizer has no tokens of their own for 'A' and 'B'. Use another model.")

    def _ids(self, text: str) -> list[int]:
        if getattr(self.tokenizer, "chat_template", None):
            rendered = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
            return list(self.tokenizer(rendered, add_special_tokens=False)["input_ids"])
        return list(self.tokenizer(f"{text}\nBetter answer:")["input_ids"])

    def probabilities_of_a(self, questions: Sequence[str]) -> list[float | None]:
        tokenized = [self._ids(text) for text in questions]
        readable = [ids if 0 < len(ids) <= self.max_length else None for ids in tokenized]
        # Padded rows copy the question for every letter.
        copies = sum(map(len, self._letters)) if layout_of(self.model).name == "padded" else 1
        return self.in_batches(self._read, readable, lambda ids: copies * len(ids))

    def _read(self, questions: Sequence[list[int]]) -> list[float]:
        """P(A) of the next token after each question, (S,)."""
        a, b = self._letters
        answers = [[token] for token in (*a, *b)]
        logps = score(self.model, [Example(ids, answers) for ids in questions]).sum()  # (S * letters,)
        logps = logps.view(len(questions), len(answers))
        return torch.sigmoid(logps[:, : len(a)].logsumexp(1) - logps[:, len(a) :].logsumexp(1)).tolist()


def _letter_ids(tokenizer: Any, letter: str) -> tuple[int, ...]:
    """The single tokens that an answer may begin with: the letter with and without a blank before it."""
    found = []
    for text in (letter, f" {letter}"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) == 1:
            found.append(int(ids[0]))
    return tuple(dict.fromkeys(found))
