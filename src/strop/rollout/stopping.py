"""When a completion ends: a stop id, or a stop string in its text.

Ids decide; text is decoded only for the stop strings, only its last few tokens, and never becomes ids again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from strop.errors import ConfigError

_MARGIN = 4  # tokens decoded before the window: a tokenizer may drop a leading space, or start inside a character


class StopRule:
    """Whether a completion's newest token ends it.

    Args:
        stop_ids: ids that end a completion.
        stop_strings: texts that end it.
        tokenizer: needed for stop strings only; its `decode` is called with a few ids.

    Raises:
        ConfigError: stop strings without a tokenizer.
    """

    def __init__(self, stop_ids: Sequence[int], stop_strings: Sequence[str] = (), tokenizer: Any = None) -> None:
        if stop_strings and tokenizer is None:
            raise ConfigError(f"stop_strings={list(stop_strings)} need a tokenizer, and the generator has none.")
        self.stop_ids = frozenset(stop_ids)
        self.stop_strings = tuple(stop_strings)
        self.tokenizer = tokenizer
        # Every token carries at least one byte, so a string of B bytes ends within the last B tokens.
        self._window = max((len(text.encode()) for text in stop_strings), default=0) + _MARGIN

    def reached(self, ids: Sequence[int]) -> bool:
        """Whether the completion `ids` ends with its newest token."""
        if ids[-1] in self.stop_ids:
            return True
        if not self.stop_strings:
            return False
        tail = list(ids[-self._window :])
        text = self.tokenizer.decode(tail, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(stop in text for stop in self.stop_strings)


def default_stop_ids(model: Any, tokenizer: Any = None) -> tuple[int, ...]:
    """The stop ids of a model and its tokenizer, sorted.

    `generation_config.eos_token_id` (one id or several, as Llama 3 has) together with `tokenizer.eos_token_id`;
    `config.eos_token_id` where the model has no generation config.
    """
    found: set[int] = set()
    generation = getattr(model, "generation_config", None)
    source = generation if generation is not None else getattr(model, "config", None)
    for holder in (source, tokenizer):
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None:
            found |= {int(ids)} if isinstance(ids, int) else {int(i) for i in ids}
    return tuple(sorted(found))
