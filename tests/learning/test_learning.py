"""Each of the fifteen methods learns, from where it starts to a stated level, on prompts that it was not trained on.

A world small enough to be learned in seconds: eight letters, and a model of 0.1M parameters made in code. The skill is
to write the last letter of the prompt four times: `gcb>` -> `bbbb`. It cannot be had without reading the prompt, so a
completion that was trained under another prompt shows. No level can be reached with a learning rate of 0, nor by
writing the same letters under every prompt, whose skill is 1/8.
"""

from __future__ import annotations

import copy
import functools
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

from strop.methods.registry import BY_VERB
from strop.rewards import RuleJudge
from strop.rollout import SamplingParams, make_generator

LETTERS = "abcdefgh"
LENGTH = 4
PROMPTS = [f"{x}{y}{z}>" for x in LETTERS for y in LETTERS for z in LETTERS]
random.Random(0).shuffle(PROMPTS)
HELD_OUT, TRAINED = PROMPTS[:64], PROMPTS[64:]

Train = Callable[..., Any]
Beginner = Callable[[], Any]


def target(prompt: str) -> str:
    """The letter to write: the last one before the sign."""
    return prompt[-2]


def skill(prompt: str, completion: str) -> float:
    """Share of the four letters that are right."""
    return sum(letter == target(prompt) for letter in completion[:LENGTH]) / LENGTH


def draw(prompt: str, rng: random.Random, right: float) -> str:
    """A completion whose letters are right with probability `right` each, and any letter else."""
    return "".join(target(prompt) if rng.random() < right else rng.choice(LETTERS) for _ in range(LENGTH))


# ---- rows -----------------------------------------------------------------------------------------------------------


def demonstrations(prompts: list[str], right: float, seed: int = 1) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [{"prompt": prompt, "completion": draw(prompt, rng, right)} for prompt in prompts]


def pairs(prompts: list[str], seed: int = 0) -> list[dict[str, Any]]:
    """The most and the least skilled of six completions for each prompt."""
    rng, rows = random.Random(seed), []
    for prompt in prompts:
        ranked = sorted({draw(prompt, rng, 0.5) for _ in range(6)}, key=lambda text: (skill(prompt, text), text))
        if skill(prompt, ranked[-1]) > skill(prompt, ranked[0]):
            rows.append({"prompt": prompt, "chosen": ranked[-1], "rejected": ranked[0]})
    return rows


def labelled(prompts: list[str], seed: int = 0) -> list[dict[str, Any]]:
    """The two sides of `pairs` as rows of their own."""
    sides = (("chosen", True), ("rejected", False))
    ranked = pairs(prompts, seed)
    return [{"prompt": r["prompt"], "completion": r[side], "label": good} for r in ranked for side, good in sides]


def solutions(prompts: list[str], seed: int = 0) -> list[dict[str, Any]]:
    """Steps that repeat one letter twice; a step is good if the letter is right. About half of them are."""
    rng, rows = random.Random(seed), []
    for prompt in prompts:
        letters = [target(prompt) if rng.random() < 0.5 else rng.choice(LETTERS) for _ in range(4)]
        labels = [letter == target(prompt) for letter in letters]
        rows.append({"prompt": prompt, "completions": [letter * 2 for letter in letters], "labels": labels})
    return rows


PROMPT_ROWS = [{"prompt": prompt} for prompt in TRAINED]

# ---- rewards --------------------------------------------------------------------------------------------------------


def skill_reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [skill(p, c) for p, c in zip(prompts, completions, strict=True)]


def score_reward(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """As `skill_reward`, as wide as the scores of a reward model, for which a difference of 1 is a mild preference."""
    return [4 * value for value in skill_reward(prompts, completions)]


def more_skilled(prompt: str, first: str, second: str) -> int | None:
    a, b = skill(prompt, first), skill(prompt, second)
    return None if a == b else int(b > a)


# ---- models and runs ------------------------------------------------------------------------------------------------


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


def train_with(
    tokenizer: Any, folder: Path, verb: str, model: Any, rows: Any, *, trainer: Any = None, **settings: Any
) -> Any:
    method = BY_VERB[verb]
    fixed = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 20}
    schedule = {"lr_scheduler_type": "constant", "warmup_steps": 5, "per_device_train_batch_size": 32}
    args = method.config()(**{"output_dir": str(folder), **fixed, **schedule, **settings})
    made = method.trainer()(model=model, args=args, train_dataset=rows, processing_class=tokenizer, **(trainer or {}))
    made.train()
    return made


@pytest.fixture
def train(tokenizer: Any, tmp_path: Path) -> Train:
    """`train(verb, model, rows, trainer=..., **settings)` builds a trainer, trains it, and gives it back."""
    return functools.partial(train_with, tokenizer, tmp_path)


@pytest.fixture(scope="session")
def beginner(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Beginner:
    """`beginner()` gives a copy of a model that knows the task and gets half of the letters right."""
    rows, folder = demonstrations(TRAINED * 2, 0.4), tmp_path_factory.mktemp("beginner")
    settings = {"learning_rate": 3e-3, "per_device_train_batch_size": 64, "max_steps": 60}
    model = train_with(tokenizer, folder, "sft", fresh_model(tokenizer), rows, **settings).model
    return lambda: copy.deepcopy(model)


def sampled_skill(model: Any, tokenizer: Any) -> float:
    """Mean skill of four samples for each held-out prompt."""
    ids = [tokenizer(prompt)["input_ids"] for prompt in HELD_OUT]
    drawn = make_generator(model=model, tokenizer=tokenizer).generate(ids, 4, SamplingParams(LENGTH + 1, seed=0))
    texts = [tokenizer.batch_decode(group, skip_special_tokens=True) for group in drawn.completions]
    return sum(skill(p, t) for p, group in zip(HELD_OUT, texts, strict=True) for t in group) / (4 * len(HELD_OUT))


# ---- the fifteen ----------------------------------------------------------------------------------------------------


def test_the_beginner_is_one(beginner: Beginner, tokenizer: Any) -> None:
    assert 0.4 < sampled_skill(beginner(), tokenizer) < 0.55
    assert sampled_skill(fresh_model(tokenizer), tokenizer) < 0.2


def test_sft(train: Train, tokenizer: Any) -> None:
    rows = demonstrations(TRAINED, 1.0)
    trainer = train("sft", fresh_model(tokenizer), rows, learning_rate=3e-3, max_steps=50)
    metrics = trainer.evaluate(eval_dataset=demonstrations(HELD_OUT, 1.0))
    assert metrics["eval_mean_token_accuracy"] > 0.95 and sampled_skill(trainer.model, tokenizer) > 0.9


def test_reward(train: Train, beginner: Beginner) -> None:
    trainer = train("reward", beginner(), pairs(TRAINED), learning_rate=2e-3, max_steps=40)
    assert trainer.evaluate(eval_dataset=pairs(HELD_OUT, 1))["eval_accuracy"] > 0.88


def test_prm(train: Train, beginner: Beginner) -> None:
    trainer = train("prm", beginner(), solutions(TRAINED), learning_rate=2e-3, max_steps=120)
    metrics = trainer.evaluate(eval_dataset=solutions(HELD_OUT, 1))
    assert metrics["eval_accuracy"] > 0.72 and metrics["eval_loss"] < 0.55


@pytest.mark.parametrize("verb", ["dpo", "xpo"])
def test_pairs_against_a_reference(verb: str, train: Train, beginner: Beginner) -> None:
    trainer = train(verb, beginner(), pairs(TRAINED), learning_rate=1e-3, max_steps=20)
    metrics = trainer.evaluate(eval_dataset=pairs(HELD_OUT, 1))
    assert metrics["eval_rewards/accuracies"] > 0.85 and metrics["eval_rewards/margins"] > 0.4


@pytest.mark.parametrize("verb", ["orpo", "cpo"])
def test_pairs_without_a_reference(verb: str, train: Train, tokenizer: Any) -> None:
    """From nothing: the likelihood teaches the task, and the preference what is better."""
    trainer = train(verb, fresh_model(tokenizer), pairs(TRAINED), learning_rate=2e-3, max_steps=40)
    metrics = trainer.evaluate(eval_dataset=pairs(HELD_OUT, 1))
    assert metrics["eval_rewards/accuracies"] > 0.9 and sampled_skill(trainer.model, tokenizer) > 0.45


@pytest.mark.parametrize("verb", ["kto", "bco"])
def test_labelled_completions(verb: str, train: Train, beginner: Beginner) -> None:
    trainer = train(verb, beginner(), labelled(TRAINED), learning_rate=1e-3, max_steps=20)
    assert trainer.evaluate(eval_dataset=labelled(HELD_OUT, 1))["eval_rewards/margins"] > 0.35


REWARDED = {"reward_funcs": skill_reward}
JUDGED = {"judge": RuleJudge(more_skilled)}
ONLINE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "grpo": ("grpo", REWARDED, {"learning_rate": 2e-3, "max_steps": 20, "num_generations": 8}),
    "rloo": ("rloo", REWARDED, {"learning_rate": 1e-3, "max_steps": 25, "num_generations": 8}),
    "ppo": ("ppo", REWARDED, {"learning_rate": 2e-3, "max_steps": 40}),
    "online-dpo": ("online-dpo", REWARDED, {"learning_rate": 1e-3, "max_steps": 20}),
    "nash-md": ("nash-md", {"reward_funcs": score_reward}, {"learning_rate": 1e-3, "max_steps": 30}),
    "xpo": ("xpo", JUDGED, {"learning_rate": 2e-3, "max_steps": 15}),
}
"""Method -> verb, where its rewards come from, and settings."""


@pytest.mark.parametrize("name", ONLINE)
def test_own_completions(name: str, train: Train, beginner: Beginner, tokenizer: Any) -> None:
    verb, rewards, settings = ONLINE[name]
    settings = {"max_completion_length": LENGTH + 1, "temperature": 1.0, **settings}
    trainer = train(verb, beginner(), PROMPT_ROWS, trainer=rewards, **settings)
    assert sampled_skill(trainer.policy, tokenizer) > 0.62


def test_gkd(train: Train, beginner: Beginner, tokenizer: Any) -> None:
    """The divergence to the teacher on held-out rows falls to less than half."""
    student, held_out = fresh_model(tokenizer, seed=1), demonstrations(HELD_OUT, 0.4, seed=2)
    teacher = {"trainer": {"teacher_model": beginner()}, "max_completion_length": LENGTH + 1}
    run = functools.partial(train, "gkd", rows=demonstrations(TRAINED, 0.4), **teacher)
    start = run(model=copy.deepcopy(student), learning_rate=0.0, max_steps=1).evaluate(held_out)
    end = run(model=student, learning_rate=3e-3, max_steps=25).evaluate(held_out)
    assert end["eval_jsd"] < 0.5 * start["eval_jsd"] and start["eval_jsd"] > 0.1
