"""An agent written for OpenAI's API, trained as it is: it lets the model look up what a good costs, until it says so.

    python -m examples.openai_agent --output_dir runs/openai_agent          # pip install openai

It has a loop of its own, as with a model behind any such API, and knows nothing of training but an address and a key.
The model, made in code, has seen scripted conversations, of which half look the price up: the others guess. GRPO
learns from whether the number at the end was right.
"""

from __future__ import annotations

import functools
import json
import random
import re
from typing import Any

from examples.two_calls import (
    Message,
    Row,
    Shop,
    TaskConfig,
    call,
    character_model,
    make_rows,
    solved_before_and_after,
)
from strop import GRPOConfig, GRPOTrainer, TrlParser
from strop.agents import AgentProgram, Endpoint
from strop.agents.tools import describe_tool
from strop.demo.words import held_out_words, train_words

QUESTION = "What does a {good} cost?"
TOOLS: Any = [describe_tool(Shop().price)]
MOST_TURNS = 3


@functools.cache
def shared_client() -> Any:
    """What all agents' clients are copies of: a new one costs 50 ms of processor time, a copy next to none."""
    from openai import OpenAI

    return OpenAI(base_url="http://127.0.0.1", api_key="each trajectory has its own")


def agent(endpoint: Endpoint, row: Row) -> dict[str, Any]:
    """Talk to the model until it calls no tool; what it said last is a column for rewards."""
    shop = Shop()
    shop.reset(row["good"], row["price"])
    messages = list(row["prompt"])
    client = shared_client().with_options(base_url=endpoint.base_url, api_key=endpoint.api_key)
    for _ in range(MOST_TURNS):
        reply = client.chat.completions.create(model="policy", messages=messages, tools=TOOLS)
        said: Any = reply.choices[0].message
        messages.append(said)
        if not said.tool_calls:
            break
        for made in said.tool_calls:
            told = answered(shop, made.function.arguments)
            messages.append({"role": "tool", "tool_call_id": made.id, "content": told})
    return {"answer": said.content}


def answered(shop: Shop, arguments: str) -> str:
    """What the shop says to a call; a wrong call is answered too, since the model is to learn from it."""
    try:
        return str(shop.price(**json.loads(arguments)))
    except Exception as problem:
        return f"Error: {type(problem).__name__}"


def script(row: Row, rng: random.Random) -> list[Message]:
    """A conversation about a row; with probability 1/2 a guess."""
    if rng.random() < 0.5:
        return [*row["prompt"], {"role": "assistant", "content": str(rng.randint(11, 99))}]
    price = str(row["price"])
    told = {"role": "tool", "name": "price", "content": price}
    return [*row["prompt"], call("price", good=row["good"]), told, {"role": "assistant", "content": price}]


def solved(answer: list[str | None], price: list[int], **columns: Any) -> list[float]:
    """1 where the agent's answer is the price, else 0."""
    said = [re.findall(r"\d+", text or "")[-1:] for text in answer]
    return [float(numbers == [str(cost)]) for numbers, cost in zip(said, price, strict=True)]


def main(argv: list[str] | None = None) -> tuple[float, float]:
    """Train; the shares of held-out questions that are solved before GRPO and after it."""
    parser = TrlParser((GRPOConfig, TaskConfig))
    parser.set_defaults(
        learning_rate=5e-4, per_device_train_batch_size=64, num_generations=8, max_completion_length=64,
        per_device_eval_batch_size=100, num_generations_eval=1, num_train_epochs=1, gradient_checkpointing=False,
        logging_steps=2, save_strategy="no", report_to="none", demonstrations=12_800, prompts=160, held_out=100,
    )  # fmt: skip
    args, task = parser.parse_args_and_config(argv)
    model, tokenizer = character_model(args, task, script, [Shop().price], QUESTION)
    trainer = GRPOTrainer(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=make_rows(train_words(), task.prompts, args.seed + 1, question=QUESTION),
        eval_dataset=make_rows(held_out_words(), task.held_out, args.seed + 2, question=QUESTION),
        reward_funcs=solved,
        rollout_func=AgentProgram(agent, columns=["answer"]),
    )
    return solved_before_and_after(trainer)


if __name__ == "__main__":
    main()
