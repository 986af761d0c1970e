"""Stop ids: which tokens end a completion, and whether one does. Ids are compared, never their text."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any


def stop_ids(tokenizer: Any, generation_eos: int | Iterable[int] | None = None) -> frozenset[int]:
    """The ids that end a completion: the tokenizer's EOS and the model's `generation_config.eos_token_id` (rule R4)."""
    own = getattr(tokenizer, "eos_token_id", None)
    given = [generation_eos] if isinstance(generation_eos, int) else list(generation_eos or ())
    return frozenset(given if own is None else [own, *given])


def ends_in_stop(completion: list[int], stops: Collection[int]) -> bool:
    """Whether a completion's last id is a stop id. Give the completion only: prompts hold stop ids too (rule R4)."""
    return bool(completion) and completion[-1] in stops


def cut_after_stop(completion: list[int], stops: Collection[int]) -> tuple[list[int], bool]:
    """A sampled completion up to its first stop id inclusive, and whether there is one (rule R13).

    Without one the completion was truncated: it is returned whole and has no EOS.
    """
    for position, token in enumerate(completion):
        if token in stops:
            return completion[: position + 1], True
    return completion, False
