"""A world small enough to be learned in seconds: eight letters, and a model of 0.1M parameters made in code.

The skill is to write the last letter of the prompt four times: `gcb>` -> `bbbb`. It cannot be had without reading the
prompt, so a completion that was trained under another prompt shows. All rows to test on have prompts never trained on.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from strop.trainers.registry import BY_VERB

LETTERS = "abcdefgh"
LENGTH = 4
PROMPTS = [f"{x}{y}{z}>" for x in LETTERS for y in LETTERS for z in LETTERS]
random.Random(0).shuffle(PROMPTS)
HELD_OUT, TRAINED = PROMPTS[:64], PROMPTS[64:]

Train = Callable[..., Any]


def target(prompt: str) -> str:
    """The letter to write: the last one before the sign."""
    return prompt[-2]


def noisy(prompt: str, rng: random.Random, right: float) -> str:
    """A completion whose letters are right with probability `right` each."""
    return "".join(target(prompt) if rng.random() < right else rng.choice(LETTERS) for _ in range(LENGTH))


def skill(prompt: str, completion: str) -> float:
    """Share of the four letters that are right."""
    return sum(letter == target(prompt) for letter in completion[:LENGTH]) / LENGTH


def skill_reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [skill(p, c) for p, c in zip(prompts, completions, strict=True)]


skill_reward.cannot_hang = True  # type: ignore[attr-defined]  # so that no worker process is started for it


def pairs(prompts: list[str], seed: int = 0) -> list[dict[str, str]]:
    """A more and a less skilled completion for each prompt."""
    rng, rows = random.Random(seed), []
    for prompt in prompts:
        drawn = sorted({noisy(prompt, rng, 0.5) for _ in range(6)}, key=lambda text: skill(prompt, text))
        if skill(prompt, drawn[-1]) > skill(prompt, drawn[0]):
            rows.append({"prompt": prompt, "chosen": drawn[-1], "rejected": drawn[0]})
    return rows


def labelled(prompts: list[str], seed: int = 0) -> list[dict[str, Any]]:
    """The two sides of `pairs` as rows of their own."""
    sides = (("chosen", True), ("rejected", False))
    return [
        {"prompt": r["prompt"], "completion": r[s], "label": good} for r in pairs(prompts, seed) for s, good in sides
    ]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(("<pad>", "</s>", *LETTERS, ">", "\n"))}
    made = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    made.pre_tokenizer, made.decoder = Split(Regex(r"[\s\S]"), "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>")


def fresh_model(tokenizer: Any, seed: int = 0) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=32, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


@pytest.fixture
def train(tokenizer: Any, tmp_path: Path) -> Train:
    """`train(verb, model, rows, steps=..., ...)` builds the trainer, trains it, and gives it back."""

    def run(
        verb: str, model: Any, rows: list[dict[str, Any]], *, trainer: dict[str, Any] | None = None, **settings: Any
    ) -> Any:
        return trained(verb, model, rows, tokenizer, tmp_path, trainer or {}, settings)

    return run


def trained(
    verb: str, model: Any, rows: Any, tokenizer: Any, folder: Path, trainer: dict[str, Any], settings: dict[str, Any]
) -> Any:
    method = BY_VERB[verb]
    fixed = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 20}
    args = method.config()(
        **{"output_dir": str(folder), "lr_scheduler_type": "constant", "warmup_steps": 5, **fixed, **settings}
    )
    made = method.trainer()(model=model, args=args, train_dataset=rows, processing_class=tokenizer, **trainer)
    made.train()
    return made


@pytest.fixture(scope="session")
def beginner(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    """`beginner()` gives a copy of a model that knows the task and gets half of the letters right."""
    rng = random.Random(1)
    rows = [{"prompt": p, "completion": noisy(p, rng, 0.4)} for p in TRAINED for _ in range(2)]
    settings = {"learning_rate": 3e-3, "per_device_train_batch_size": 64, "max_steps": 60}
    model = trained(
        "sft", fresh_model(tokenizer), rows, tokenizer, tmp_path_factory.mktemp("beginner"), {}, settings
    ).model
    return lambda: copy.deepcopy(model)
