"""Cutting a tree to length (rules R5, R6). EOS is set before and never set again: what is cut has no end to learn.

`keep_start` cuts the end of the completions. `keep_end` cuts the start of the prompt, once for all completions of a
tree, so that chosen and rejected keep the same context; only if a completion alone is too long is its end cut too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from strop.data.options import TokenizeOptions


@dataclass(slots=True)
class Tokenized:
    """A tree as ids, or the reason why there is none."""

    prompt_ids: list[int]
    completions: list[list[int]]
    masks: list[list[int]] | None = None  # like completions, 0 or 1; None: all 1
    labels: list[float] | None = None  # stepwise: one per mask entry of 1
    flags: tuple[str, ...] = ()  # "truncated", "split", or a key of findings.FLAGS
    left_out: tuple[str, str] | None = None  # reason (a key of findings.REASONS), detail
    uncut: int = 0  # tokens of the longest branch before anything was cut

    @classmethod
    def without(cls, reason: str, detail: str, uncut: int = 0) -> Tokenized:
        """No tree, because of `reason`."""
        return cls([], [], left_out=(reason, detail), uncut=uncut)

    def flag(self, name: str) -> None:
        """Note something about this tree, once."""
        if name not in self.flags:
            self.flags = (*self.flags, name)

    @property
    def longest(self) -> int:
        """Tokens of the longest completion."""
        return max(map(len, self.completions), default=0)

    @property
    def branch(self) -> int:
        """Tokens of the longest branch: the prompt and one completion."""
        return len(self.prompt_ids) + self.longest

    def flag_split(self, options: TokenizeOptions) -> None:
        """Note that a tree is longer than a pack, where packing is going to split it."""
        if options.split_overlong and options.max_length is not None and self.branch > options.max_length:
            self.flag("split")

    def mask(self, index: int) -> list[int]:
        """The 0/1 mask of a completion, (C_i,)."""
        return [1] * len(self.completions[index]) if self.masks is None else self.masks[index]

    def cut_completion(self, index: int, size: int) -> None:
        """Keep the first `size` tokens of a completion."""
        if len(self.completions[index]) > size:
            self.completions[index] = self.completions[index][:size]
            if self.masks is not None:
                self.masks[index] = self.masks[index][:size]
            self.flag("truncated")


def overlong(tree: Tokenized, options: TokenizeOptions) -> str | None:
    """Which limit a tree exceeds, as a sentence; None if it fits."""
    for name, size, setting in (
        ("prompt", len(tree.prompt_ids), "max_prompt_length"),
        ("completion", tree.longest, "max_completion_length"),
        ("prompt and completion" if tree.completions else "prompt", tree.branch, "max_length"),
    ):
        limit = getattr(options, setting)
        if limit is not None and size > limit:
            return f"{name}: {size} tokens, {setting} is {limit}"
    return None


def cut_prompt(prompt: list[int], room: int, header: int, bos: int) -> list[int]:
    """The end of a prompt that fits into `room` tokens, after its header (after BOS where the header is too long)."""
    if len(prompt) <= room:
        return prompt
    kept = header if header < room else min(bos, max(room, 0))
    return prompt[:kept] + prompt[len(prompt) - max(room - kept, 0) :]


def truncate(tree: Tokenized, options: TokenizeOptions, header: int, bos: int) -> Tokenized:
    """Cut a tree to the limits of the options, or leave it out.

    Args:
        header: leading prompt tokens that belong to BOS and the system header.
        bos: leading prompt tokens that are BOS.
    """
    if options.max_prompt_length is not None and len(tree.prompt_ids) > options.max_prompt_length:
        tree.prompt_ids = cut_prompt(tree.prompt_ids, options.max_prompt_length, header, bos)
        tree.flag("truncated")
    if options.max_completion_length is not None:
        for index in range(len(tree.completions)):
            tree.cut_completion(index, options.max_completion_length)
    limit = options.max_length
    if limit is None or options.split_overlong:
        tree.flag_split(options)
        return tree
    if options.truncation_mode == "keep_end" and tree.branch > limit:
        room = max(limit - tree.longest, bos if bos < limit else 0)
        tree.prompt_ids = cut_prompt(tree.prompt_ids, room, header, bos)
        tree.flag("truncated")
    room = limit - len(tree.prompt_ids)
    if room <= 0:
        return Tokenized.without("prompt_too_long", f"prompt: {len(tree.prompt_ids)} tokens, max_length is {limit}")
    for index in range(len(tree.completions)):
        tree.cut_completion(index, room)
    return tree


def cut_flat(ids: list[int], mask: list[int], options: TokenizeOptions, bos: int) -> tuple[list[int], list[int], bool]:
    """Cut one whole text or conversation: its end (`keep_start`) or its start after BOS (`keep_end`)."""
    max_length = None if options.split_overlong else options.max_length
    limits = [limit for limit in (max_length, options.max_completion_length) if limit is not None]
    limit = min(limits, default=len(ids))
    if len(ids) <= limit:
        return ids, mask, False
    if options.truncation_mode == "keep_start":
        return ids[:limit], mask[:limit], True
    kept = bos if bos < limit else 0
    start = len(ids) - (limit - kept)
    return ids[:kept] + ids[start:], mask[:kept] + mask[start:], True


def scored(prompt: Sequence[int], mask: Sequence[int]) -> int:
    """How many tokens of a completion are scored: the first one is not, if no token stands before it."""
    return sum(mask) - (1 if not prompt and mask and mask[0] else 0)
