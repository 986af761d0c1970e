"""An agent with a calculator: the model is rewarded for an answer that two calls of a tool lead to.

    python -m examples.calculator --model_name_or_path Qwen/Qwen3-0.6B --output_dir runs/calculator

Rows ask for (a + b) * c. The reward reads the conversation: 0.25 for each tool that was called with the right numbers,
0.5 for the right number at the end.
"""

from __future__ import annotations

import random
import re
from typing import Any

from strop import GRPOConfig, GRPOTrainer, ModelConfig, TrlParser


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


def multiply(a: int, b: int) -> int:
    """Multiply two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a * b


def make_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions with the numbers in them and the answer."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        a, b, c = (rng.randint(2, 30) for _ in range(3))
        text = f"What is ({a} + {b}) * {c}? Use the tools, then say the number alone."
        rows.append({"prompt": [{"role": "user", "content": text}], "numbers": [a, b, c], "answer": (a + b) * c})
    return rows


def calculator_reward(
    completions: list[list[dict[str, Any]]], numbers: list[list[int]], answer: list[int], **columns: Any
) -> list[float]:
    """Parts for each right call, and for the right answer after them; in [0, 1]."""
    rewards = []
    for conversation, (a, b, c), wanted in zip(completions, numbers, answer, strict=True):
        calls = [call["function"] for message in conversation for call in message.get("tool_calls", ())]
        made = {(call["name"], *sorted(map(str, call["arguments"].values()))) for call in calls}
        added = ("add", *sorted(map(str, (a, b)))) in made
        multiplied = ("multiply", *sorted(map(str, (a + b, c)))) in made
        said = re.findall(r"-?\d+", conversation[-1]["content"] or "")
        right = bool(said) and int(said[-1]) == wanted and conversation[-1]["role"] == "assistant"
        rewards.append(0.25 * added + 0.25 * multiplied + 0.5 * right)
    return rewards


def main(argv: list[str] | None = None) -> GRPOTrainer:
    parser = TrlParser((GRPOConfig, ModelConfig))
    args, model = parser.parse_args_and_config(argv)
    trainer = GRPOTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=make_rows(512),
        reward_funcs=calculator_reward,
        tools=[add, multiply],
    )
    trainer.train()
    return trainer


if __name__ == "__main__":
    main()
