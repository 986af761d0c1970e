"""Surroundings of several turns: environments that never end or think for a moment, a tool that says where it runs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from strop.testing.tokenizers import toy_tokenizer
from tests.support.conversations import Script
from tests.support.environments import Endless, Homesick, Slow
from tests.support.option_scenes import conversations, length_reward
from tests.support.templates import KINDS, tokenizer_with


def endless(verb: str, folder: Path) -> dict[str, Any]:
    made = {**conversations(verb, folder), "tokenizer": toy_tokenizer("chatml")}
    return {**made, "trainer": {"reward_funcs": length_reward, "environment_factory": Endless}}


def slow(verb: str, folder: Path) -> dict[str, Any]:
    made = endless(verb, folder)
    return {**made, "trainer": {**made["trainer"], "environment_factory": Slow}}


def where() -> str:
    """Say which thread this is."""
    return threading.current_thread().name


def threaded(verb: str, folder: Path) -> dict[str, Any]:
    """A tool that says in which thread it runs."""
    made = {**conversations(verb, folder), "tokenizer": tokenizer_with(KINDS["gathered"])[0]}
    return {**made, "trainer": {"reward_funcs": length_reward, "tools": [where]}}


def calling(trainer: Any) -> None:
    """The model calls that tool, and stops when it is answered."""
    call = '<tool_call>\n{"name": "where", "arguments": {}}\n</tool_call>'
    trainer._generator = Script(trainer.processing_class, lambda text, place: "so" if "<r>" in text else call)


def homesick(verb: str, folder: Path) -> dict[str, Any]:
    made = endless(verb, folder)
    return {**made, "trainer": {**made["trainer"], "environment_factory": Homesick}}


def rewritten(verb: str, folder: Path) -> dict[str, Any]:
    """A chat template that leaves out thoughts that are not the last, and opens them."""
    return {**endless(verb, folder), "tokenizer": tokenizer_with(KINDS["opened"])[0]}
