"""An agent written for OpenAI's API, trained as it is: it asks for a price, multiplies it, says the product.

    python -m examples.openai_agent --output_dir runs/openai_agent          # pip install openai

The task, its model and its rewards are those of `examples.two_calls`. There the trainer calls the tools; here the agent
does, in a loop of its own, as it would with a model behind any such API. It knows nothing of training but an address
and a key.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

from examples.two_calls import Row, Shop, main, times
from strop.agents import AgentProgram, Endpoint
from strop.agents.tools import describe_tool

TOOLS: Any = [describe_tool(tool) for tool in (times, Shop().price)]
MOST_TURNS = 4


@functools.cache
def shared_client() -> Any:
    """What all agents' clients are copies of: a new one costs 50 ms of processor time, a copy next to none."""
    from openai import OpenAI

    return OpenAI(base_url="http://127.0.0.1", api_key="each trajectory has its own")


def agent(endpoint: Endpoint, row: Row) -> dict[str, Any]:
    """Talk to the model until it calls no tool; what it said last is a column for rewards."""
    shop = Shop()
    shop.reset(row["good"], row["price"])
    functions: dict[str, Callable[..., Any]] = {"price": shop.price, "times": times}
    messages = list(row["prompt"])
    client = shared_client().with_options(base_url=endpoint.base_url, api_key=endpoint.api_key)
    for _ in range(MOST_TURNS):
        reply = client.chat.completions.create(model="policy", messages=messages, tools=TOOLS)
        said: Any = reply.choices[0].message
        messages.append(said)
        if not said.tool_calls:
            break
        for call in said.tool_calls:
            told = answered(functions, call.function.name, call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": told})
    return {"answer": said.content}


def answered(functions: dict[str, Callable[..., Any]], name: str, arguments: str) -> str:
    """What a tool says to a call; a wrong call is answered too, since the model is to learn from it."""
    try:
        return str(functions[name](**json.loads(arguments)))
    except Exception as problem:
        return f"Error: {type(problem).__name__}"


if __name__ == "__main__":
    main(rollout_func=AgentProgram(agent))
