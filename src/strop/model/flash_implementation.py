"""FlashAttention 3 and 4 behind PyTorch's own flash operators, where a model asks for them by transformers' names.

PyTorch puts them in the place of its operators on CUDA (`torch.nn.attention.activate_flash_attention_impl`), so that
the calls of `attention_cuda` stay what they are, and so does the start-up test that they must pass. The replacement
holds for the whole process, so it is made only where a model was loaded with `attn_implementation="flash_attention_3"`
(or 4). What is not installed, or fails the test, costs speed and a line: PyTorch's own operators are back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.attention

from strop.plain_text import first_line

logger = logging.getLogger(__name__)

NAMES = {"flash_attention_3": "FA3", "flash-attn3": "FA3", "flash_attention_4": "FA4", "flash-attn4": "FA4"}
"""What the name of an attention holds -> PyTorch's name of the implementation."""

_refused: set[str] = set()
_taken: set[str] = set()


def active() -> str | None:
    """What stands in the place of PyTorch's own flash operators; None where nothing does."""
    current = getattr(torch.nn.attention, "current_flash_attention_impl", None)  # absent in older PyTorch
    return None if current is None else current()


def ask_for(attentions: Iterable[Any]) -> None:
    """Take the implementation that one of these names of attentions means, if any; safe to call again."""
    asked = next((NAMES[part] for name in attentions for part in NAMES if isinstance(name, str) and part in name), None)
    if asked is None or asked in _refused or active() is not None:
        return
    try:
        torch.nn.attention.activate_flash_attention_impl(asked)
        _taken.add(asked)
    except Exception as error:  # a package that is absent, or too old, raises what it likes
        give_back(asked, first_line(error))


def give_back(name: str, why: str) -> bool:
    """Return to PyTorch's own operators, unless it was the user who replaced them; whether they are back."""
    if active() == name and name not in _taken:
        return False
    if active() == name:
        torch.nn.attention.restore_flash_attention_impl()
    _refused.add(name)
    logger.warning("%s was asked for and is not used (%s); PyTorch's own flash attention is", name, why)
    return True
