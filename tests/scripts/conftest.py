"""Tiny models on disk in the place of the ids that scripts name, and a way to run a script's text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from strop.scripts.alias import Asked, serve_trl
from strop.testing.tiny import tiny_model
from strop.testing.tokenizers import toy_tokenizer

PLACES = {
    "Qwen/Qwen2-0.5B": ("causal", 0),
    "model_id": ("causal", 1),
    "small_model": ("causal", 2),
    "large_aligned_model": ("causal", 3),
    "reward_model_id": ("score", 4),
}
"""Model ids that scripts name -> task and seed of the tiny model that stands there."""

Script = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Model id -> folder with a tiny Llama, and a tokenizer with a chat template.

    The models end a text at any of 29 ids, so that a completion has about ten tokens and not the 512 of a default.
    """
    root, tokenizer = tmp_path_factory.mktemp("models"), toy_tokenizer("chatml")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    folders = {}
    for name, (task, seed) in PLACES.items():
        folders[name] = str(root / name.replace("/", "-"))
        model = tiny_model("llama", dtype=torch.float32, seed=seed, task=task, vocab_size=len(tokenizer), **ids)
        if task == "causal":
            model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(8, len(tokenizer), 10)]
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture
def run_script(models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """`run_script(text, **names)` executes a script in an empty folder, model ids replaced by folders, and returns its
    variables. `names` are what the script takes for granted: its data."""
    monkeypatch.chdir(tmp_path)

    def run(text: str, **names: Any) -> dict[str, Any]:
        for name, folder in models.items():
            text = text.replace(f'"{name}"', repr(folder))
        scope: dict[str, Any] = {"__name__": "__main__", **names}
        exec(compile(text, "script.py", "exec"), scope)
        return scope

    return run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    """strop under the name `trl`, for one test."""
    before = dict(sys.modules)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    yield serve_trl()
    for name in [name for name in sys.modules if name == "trl" or name.startswith("trl.")]:
        del sys.modules[name]
    sys.modules.update({name: module for name, module in before.items() if name.split(".")[0] == "trl"})
