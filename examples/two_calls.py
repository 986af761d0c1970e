"""A task of two calls: ask for a price with one tool, multiply with another, say the result.

    python -m examples.two_calls --output_dir runs/two_calls

A character model of 0.8M parameters, made in code, is first shown scripted conversations, of which two of five are
right: the others say the price alone, or multiply by a wrong number. GRPO then learns from the outcome. Prices are
drawn for each row and known to the shop alone, so that a right answer needs what both tools said; the goods of the
evaluation are words that no conversation of the training has. `--model_name_or_path` takes another model to the same
task, without the scripted conversations.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from strop import GRPOConfig, GRPOTrainer, ModelConfig, SFTConfig, SFTTrainer, TrlParser
from strop.agents.tools import describe_tool
from strop.demo.model import build_model, build_tokenizer
from strop.demo.words import held_out_words, train_words

Row = dict[str, Any]
Message = dict[str, Any]
CONTEXT_TOKENS = 160
QUESTION = "What do {pieces} {good} cost?"
MARKS = ("<|tools|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|tool_call_start|>", "<|tool_call_end|>")
TEMPLATE = (
    "{% if tools %}{{ '<|tools|>' + tools | map(attribute='function.name') | join(' ') + eos_token }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% for call in m.tool_calls or [] %}"
    "{{ '<|tool_call_start|>[' + call.function.name + '(' }}{% for name, value in call.function.arguments.items() %}"
    "{{ name + '=' + value | tojson }}{{ '' if loop.last else ', ' }}{% endfor %}{{ ')]<|tool_call_end|>' }}"
    "{% endfor %}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""A chat template of few characters: the names of the tools, calls as a Python list."""
DESCRIPTION = (
    "You can call two tools: price(good), and times(a, b). A call is written as "
    '<tool_call>{"name": "price", "arguments": {"good": "stone"}}</tool_call>. '
    "Ask for the price, multiply it by the number of pieces, then say the product alone."
)
"""For models whose chat template does not show tools."""


class Shop:
    """Knows what one good costs."""

    def reset(self, good: str, price: int) -> None:
        self._good, self._price = good, price

    def price(self, good: str) -> int:
        """What a piece of a good costs.

        Args:
            good: Its name.
        """
        if good != self._good:
            raise LookupError(f"no {good}")
        return self._price


def times(a: int, b: int) -> int:
    """Multiply two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a * b


@dataclass
class TaskConfig:
    """How much of everything."""

    demonstrations: int = 12_800
    prompts: int = 640
    held_out: int = 200


def make_rows(goods: list[str], count: int, seed: int, description: str = "", question: str = QUESTION) -> list[Row]:
    """`count` questions; each with a price of its own."""
    rng = random.Random(seed)
    system = [{"role": "system", "content": description}] if description else []
    rows = []
    for _ in range(count):
        good, price, pieces = rng.choice(goods), rng.randint(11, 99), rng.randint(2, 9)
        asked = {"role": "user", "content": question.format(pieces=pieces, good=good)}
        rows.append({"prompt": [*system, asked], "good": good, "price": price, "pieces": pieces})
    return rows


def call(name: str, **arguments: Any) -> Message:
    made = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [made]}


def script(row: Row, rng: random.Random) -> list[Message]:
    """A conversation about a row; right with probability 0.4."""
    price, pieces = row["price"], row["pieces"]
    asked = [*row["prompt"], call("price", good=row["good"]), {"role": "tool", "name": "price", "content": str(price)}]
    draw = rng.random()
    if draw < 0.3:
        return [*asked, {"role": "assistant", "content": str(price)}]
    by = pieces if draw >= 0.6 else rng.choice([n for n in range(2, 10) if n != pieces])
    product = str(times(price, by))
    answer = {"role": "tool", "name": "times", "content": product}
    return [*asked, call("times", a=price, b=by), answer, {"role": "assistant", "content": product}]


def right_steps(completions: list[list[Message]], good: list[str], price: list[int], pieces: list[int],
                **columns: Any) -> list[float]:  # fmt: skip
    """A quarter for each right call, a half for the right number at the end; in [0, 1]."""
    rewards = []
    for conversation, what, cost, number in zip(completions, good, price, pieces, strict=True):
        made = [c["function"] for message in conversation for c in message.get("tool_calls", ())]
        asked = {"name": "price", "arguments": {"good": what}} in made
        wanted = sorted((cost, number))
        multiplied = any(c["name"] == "times" and list(c["arguments"].values()) in (wanted, wanted[::-1]) for c in made)
        last = conversation[-1]
        right = last["role"] == "assistant" and re.findall(r"\d+", last["content"])[-1:] == [str(cost * number)]
        rewards.append(0.25 * asked + 0.25 * multiplied + 0.5 * right)
    return rewards


def solved(completions: list[list[Message]], **columns: Any) -> list[float]:
    """1 where both calls and the number are right, else 0. Shown, and not learned from."""
    return [float(reward == 1.0) for reward in right_steps(completions, **columns)]


def character_tokenizer() -> Any:
    """The demonstration's, with the template and its tokens."""
    tokenizer = build_tokenizer(CONTEXT_TOKENS)
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def character_model(
    args: GRPOConfig,
    task: TaskConfig,
    script: Callable[[Row, random.Random], list[Message]],
    tools: Sequence[Callable[..., Any]] = (times, Shop().price),
    question: str = QUESTION,
) -> tuple[Any, Any]:
    """The model after the scripted conversations, and its tokenizer."""
    tokenizer = character_tokenizer()
    rng = random.Random(args.seed)
    shown = [describe_tool(tool) for tool in tools]
    asked = make_rows(train_words(), task.demonstrations, args.seed, question=question)
    rows = [{"messages": script(row, rng), "tools": shown} for row in asked]
    settings = SFTConfig(
        output_dir=f"{args.output_dir}/scripted", learning_rate=3e-3, lr_scheduler_type="linear", warmup_steps=10,
        num_train_epochs=1, per_device_train_batch_size=64, assistant_only_loss=True, max_length=CONTEXT_TOKENS,
        gradient_checkpointing=False, logging_steps=20, save_strategy="no", report_to="none", seed=args.seed,
        use_cpu=args.use_cpu,
    )  # fmt: skip
    trainer = SFTTrainer(build_model(tokenizer, args.seed), args=settings, train_dataset=rows,
                         processing_class=tokenizer)  # fmt: skip
    trainer.train()
    return trainer.model, tokenizer


def main(argv: list[str] | None = None) -> tuple[float, float]:
    """Train; the shares of held-out questions that are solved before GRPO and after it."""
    parser = TrlParser((GRPOConfig, ModelConfig, TaskConfig))
    parser.set_defaults(
        learning_rate=2e-4, per_device_train_batch_size=128, num_generations=8, max_completion_length=96,
        per_device_eval_batch_size=200, num_generations_eval=1, num_train_epochs=1, gradient_checkpointing=False,
        reward_weights=[1.0, 0.0], logging_steps=2, save_strategy="no", report_to="none",
    )  # fmt: skip
    args, named, task = parser.parse_args_and_config(argv)
    model, tokenizer = named.model_name_or_path, None
    if model is None:
        model, tokenizer = character_model(args, task, script)
    description = DESCRIPTION if tokenizer is None else ""
    trainer = GRPOTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=make_rows(train_words(), task.prompts, args.seed + 1, description),
        eval_dataset=make_rows(held_out_words(), task.held_out, args.seed + 2, description),
        reward_funcs=[right_steps, solved],
        tools=[times],
        environment_factory=Shop,
    )
    return solved_before_and_after(trainer)


def solved_before_and_after(trainer: GRPOTrainer) -> tuple[float, float]:
    """Train; the shares of held-out questions that are solved before it and after it."""
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    shares = [float(found["eval_rewards/solved/mean"]) for found in (before, after)]
    print(f"held-out questions solved: {shares[0]:.1%} before GRPO, {shares[1]:.1%} after")
    return shares[0], shares[1]


if __name__ == "__main__":
    main()
