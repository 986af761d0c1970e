"""A prompt that ends in a begun answer: rewards and judges read the whole answer, and the question without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from strop.rewards import RuleJudge
from strop.testing.cases import make_trainer
from strop.testing.tokenizers import toy_tokenizer

QUESTION = [{"role": "user", "content": "hello"}]
ROWS = [{"prompt": [*QUESTION, {"role": "assistant", "content": "<think>"}]}] * 4


def seen_by(verb: str, folder: Path, ending: str) -> list[tuple[Any, Any]]:
    """What a run's reward, or judge, is asked about."""
    seen: list[tuple[Any, Any]] = []

    def reward(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        seen.extend(zip(prompts, completions, strict=True))
        return [float(i) for i, _ in enumerate(completions)]

    def rule(prompt: Any, first: Any, second: Any) -> int:
        seen.extend([(prompt, first), (prompt, second)])
        return 0

    source = RuleJudge(rule) if ending == "judge" else reward
    options = {"num_generations": 2} if verb in ("grpo", "rloo") else {}
    tokenizer = toy_tokenizer("chatml")
    make_trainer(
        verb, folder, rows=ROWS, tokenizer=tokenizer, trainer={"reward_funcs": source}, max_steps=1, **options
    ).train()
    return seen


@pytest.mark.parametrize("verb", ["grpo", "ppo", "online-dpo"])
def test_a_reward_reads_the_whole_answer(verb: str, tmp_path: Path) -> None:
    seen = seen_by(verb, tmp_path, "reward")
    assert seen and all(prompt == QUESTION for prompt, _ in seen)
    assert all(answer["role"] == "assistant" and answer["content"].startswith("<think>") for _, (answer,) in seen)
    assert any(answer["content"] != "<think>" for _, (answer,) in seen)


@pytest.mark.parametrize("verb", ["online-dpo", "nash-md", "xpo-online"])
def test_a_judge_reads_the_whole_answer(verb: str, tmp_path: Path) -> None:
    seen = seen_by(verb, tmp_path, "judge")
    assert seen and all(prompt == "hello" for prompt, _ in seen)
    assert all(answer.startswith("<think>") for _, answer in seen)
