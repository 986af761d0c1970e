"""Text -> ids: one door to the tokenizer, with BOS, EOS and stop ids settled once, and many texts in one call.

The code that builds a tree is a generator: it yields an `Ask` (texts whose ids it needs) and is sent the answers.
`run` advances many such generators together, so that one tokenizer call serves a whole block of rows.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

from strop.data.options import TokenizeOptions
from strop.data.stops import stop_ids
from strop.errors import ConfigError, did_you_mean

ANCHOR = "\n"
"""A text that merges with no word after it."""
Offsets = list[tuple[int, int]]
Result = TypeVar("Result")


@dataclass(slots=True)
class Ask:
    """A request for the ids of some texts; no special tokens are added. With `offsets`, character spans come too."""

    texts: list[str]
    offsets: bool = False


@dataclass(slots=True)
class Encoded:
    """The ids of one text, and the span of characters of each id if it was asked for."""

    ids: list[int]
    offsets: Offsets | None = None


Job = Generator[Ask, list[Encoded], Result]


class Encoder:
    """A tokenizer and what it adds to texts."""

    def __init__(self, tokenizer: Any, options: TokenizeOptions) -> None:
        self.tokenizer, self.options = tokenizer, options
        self.eos_id = self._find_eos()
        named = () if self.eos_id is None else (self.eos_id,)
        self.stops = stop_ids(tokenizer, (*options.stop_token_ids, *named))

    def _find_eos(self) -> int | None:
        name = self.options.eos_token
        if name is None:
            return getattr(self.tokenizer, "eos_token_id", None)
        found = self.tokenizer.convert_tokens_to_ids(name)
        if found is None or found == getattr(self.tokenizer, "unk_token_id", None):
            known = [str(token) for token in self.tokenizer.get_added_vocab()]
            raise ConfigError(
                f"eos_token is {name!r}, which is not a token of this tokenizer.{did_you_mean(name, known)}"
            )
        return found

    @property
    def is_fast(self) -> bool:
        """Whether the tokenizer can tell which characters a token stands for."""
        return bool(getattr(self.tokenizer, "is_fast", False))

    @property
    def vocabulary(self) -> int | None:
        """How many ids the tokenizer has, None if it does not say."""
        return len(self.tokenizer) if hasattr(self.tokenizer, "__len__") else None

    @cached_property
    def prefix(self) -> list[int]:
        """The ids that the tokenizer puts before a text by itself (BOS, or nothing).

        What it puts after a text is not used: EOS is set once, by `append_eos` or by the chat template (rule R3).
        """
        bare = list(self.tokenizer("a", add_special_tokens=False)["input_ids"])
        full = list(self.tokenizer("a", add_special_tokens=True)["input_ids"])
        starts = [k for k in range(len(full) - len(bare) + 1) if full[k : k + len(bare)] == bare]
        return full[: starts[0]] if starts else []

    @cached_property
    def adds_space(self) -> bool:
        """Whether the tokenizer puts a space before every text, as SentencePiece vocabularies do."""
        after_anchor, anchor, alone = (
            list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (f"{ANCHOR}a", ANCHOR, "a")
        )
        return after_anchor[: len(anchor)] == anchor and after_anchor[len(anchor) :] != alone

    def continuing(self, texts: list[str]) -> Job[list[list[int]]]:
        """The ids of texts that continue another text, each tokenised by itself.

        Where the tokenizer puts a space before every text, they are tokenised behind a line break, which is then cut
        off: a space that nobody wrote must not be learned.
        """
        if not self.adds_space:
            return [found.ids for found in (yield Ask(texts))]
        anchor, *behind = yield Ask([ANCHOR, *(ANCHOR + text for text in texts)])
        alone = yield Ask(texts)
        size = len(anchor.ids)
        return [
            joint.ids[size:] if joint.ids[:size] == anchor.ids else found.ids
            for joint, found in zip(behind, alone, strict=True)
        ]

    def with_prefix(self, ids: list[int]) -> list[int]:
        """`ids` with BOS before them, once: a text that brings its own BOS gets no second one (rule R2)."""
        size = len(self.prefix)
        return ids if ids[:size] == self.prefix else self.prefix + ids

    def with_eos(self, ids: list[int]) -> list[int]:
        """`ids` of plain text ended by EOS, once: judged by the last id, not by the text (rule R3)."""
        if not self.options.append_eos or self.eos_id is None or (ids and ids[-1] in self.stops):
            return ids
        return [*ids, self.eos_id]

    def encode(self, asks: Sequence[Ask]) -> list[list[Encoded]]:
        """The answers to some asks, with at most two tokenizer calls."""
        texts = {kind: [text for ask in asks if ask.offsets is kind for text in ask.texts] for kind in (False, True)}
        found = {kind: iter(self._encode_texts(some, kind)) for kind, some in texts.items()}
        return [list(islice(found[ask.offsets], len(ask.texts))) for ask in asks]

    def _encode_texts(self, texts: list[str], offsets: bool) -> list[Encoded]:
        if not texts:
            return []
        wanted = {"return_offsets_mapping": True} if offsets else {}
        found = self.tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **wanted,
        )
        spans = found["offset_mapping"] if offsets else [None] * len(texts)
        return [Encoded(list(ids), span) for ids, span in zip(found["input_ids"], spans, strict=True)]

    def run(self, jobs: Iterable[Job[Result]]) -> list[Result]:
        """Run tree-building generators to their end, side by side, and return their results in order."""
        running, results = dict(enumerate(jobs)), {}
        answers: dict[int, Any] = dict.fromkeys(running)  # the first thing that a generator is sent is None
        while answers:
            asks = {}
            for number, answer in answers.items():
                try:
                    asks[number] = running[number].send(answer)
                except StopIteration as end:
                    results[number] = end.value
            answers = dict(zip(asks, self.encode(list(asks.values())), strict=True))
        return [results[number] for number in running]


def common_prefix(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many leading entries two lists, or texts, share."""
    alike, most = 0, min(len(first), len(second))
    while alike < most:  # halves are compared as slices: one by one this is a large part of laying rows out
        middle = (alike + most + 1) // 2
        if first[alike:middle] == second[alike:middle]:
            alike = middle
        else:
            most = middle - 1
    return alike
