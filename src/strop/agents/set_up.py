"""From what a trainer is given (tools, environments, a tokenizer) to the turns of its rollouts, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from strop.agents.conversation import PastTurns
from strop.agents.environments import Environments
from strop.agents.template import ConversationTemplate
from strop.agents.tools import Tools
from strop.agents.turns import Turns
from strop.data.chat import Chat
from strop.data.encode import Encoder
from strop.data.options import TokenizeOptions
from strop.errors import ConfigError

PLACEHOLDERS = 1024
"""Rows without a prompt, for environments that bring their own tasks."""


def make_turns(
    tokenizer: Any,
    options: TokenizeOptions | None = None,
    *,
    tools: Tools | None = None,
    environments: Environments | None = None,
    rounds: int | None = None,
    seconds: float | None = None,
    past: PastTurns = "template",
    can_fork: bool = True,
    stop_ids: Iterable[int] = (),
    positions: int | None = None,
    at_once: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> Turns:
    """Turns for a run; what the chat template can do is found out here.

    Args:
        tokenizer: with a chat template where there are tools.
        options: of the rows' tokenisation.
        tools, environments, rounds, seconds, past, positions, at_once: see `Turns`.
        can_fork: whether the method learns from trajectories of several stretches.
        stop_ids: that end a turn; those that the template ends turns with are added.
        say: told what the user should know.

    Raises:
        ConfigError: the template cannot hold such conversations, or rewrites past turns where nothing can be done.
    """
    options = options or TokenizeOptions()
    encoder = Encoder(tokenizer, options)
    encoder.stops = frozenset({*encoder.stops, *stop_ids})
    template = ConversationTemplate(Chat(encoder), encoder, options.chat_template_kwargs)
    turns = Turns(template, tools or Tools(), environments, rounds, seconds, past, positions=positions, at_once=at_once)
    has_template = bool(options.template() or getattr(tokenizer, "chat_template", None))
    if turns.schemas and not has_template:
        raise ConfigError("Tools need a tokenizer with a chat template, which shows them to the model.")
    if has_template:
        learn_template(template, turns, can_fork=can_fork, say=say)
    own = (tokenizer.convert_tokens_to_ids(end) for end in template.ends)
    turns.stop_ids = tuple(sorted({*encoder.stops, *(token for token in own if isinstance(token, int))}))
    return turns


def learn_template(template: ConversationTemplate, turns: Turns, *, can_fork: bool, say: Callable[[str], None]) -> None:
    """Ask the template what it does with calls, answers and past turns."""
    schemas = turns.schemas
    by: list[Any] = []
    if schemas:
        template.learn_calls(schemas)
        by.append("tool")
        shown = template.render([{"role": "user", "content": "?"}], schemas, opened=True)
        names = [schema["function"]["name"] for schema in schemas]
        if not any(name in shown for name in names):
            say(
                "The chat template does not show tools to the model: describe them, and how to call them "
                '(<tool_call>{"name": ..., "arguments": {...}}</tool_call>), in the prompts.'
            )
    if turns.environments is not None and turns.environments.takes_turns:
        template.require_step()
        by.append("user")
    rewritten = [role for role in by if template.rewrites(schemas, by=role)]
    if not rewritten or turns.past == "sampled":
        return
    if not can_fork:
        raise ConfigError(
            "The chat template prints past turns of the model otherwise than they were sampled (it leaves thoughts "
            "out), so a trajectory has several contexts, and this method learns from one. Set past_turns='sampled' to "
            "keep the ids as they were sampled, or use GRPO, RLOO, PPO or GKD."
        )
    say(
        "The chat template prints past turns of the model otherwise than they were sampled (it leaves thoughts out): "
        "where it does, the next turn is learned on its own context, as the model will meet it in use "
        "(past_turns='template'; 'sampled' keeps the ids)."
    )


def tool_schemas(tools: Tools | None, environments: Environments | None) -> list[Any]:
    """What prompts show where a row names no tools itself."""
    return [*(tools.schemas if tools is not None else []), *(environments.schemas if environments is not None else [])]


def environment_rows(rows: Any, steps: int, *, several: bool) -> Any:
    """Rows with a prompt: empty ones where `reset()` brings the task.

    Raises:
        ConfigError: there are no rows, and nothing says which environment, or how many steps, there are to be.
    """
    empty: list[Mapping[str, Any]] = [{"role": "user", "content": ""}]
    if rows is None:
        if several or not steps:
            need = "a column 'environment'" if several else "max_steps, as nothing else says how long to train"
            raise ConfigError(f"There is no train_dataset; an environment that brings its own tasks needs {need}.")
        return [{"prompt": empty} for _ in range(PLACEHOLDERS)]
    if hasattr(rows, "column_names"):
        lacks = rows.column_names is not None and "prompt" not in rows.column_names
        return rows.add_column("prompt", [empty] * len(rows)) if lacks and hasattr(rows, "add_column") else rows
    if isinstance(rows, Sequence) and rows and isinstance(rows[0], Mapping) and "prompt" not in rows[0]:
        return [{**row, "prompt": empty} for row in rows]
    return rows


def check_prompts_are_conversations(rows: Any, tools: Tools | None, environments: Environments | None) -> None:
    """Raise `ConfigError` if the prompts are plain text and there are tools, which only a chat template can show."""
    if not tool_schemas(tools, environments) or not hasattr(rows, "__len__") or not len(rows):
        return
    if not isinstance(rows[0].extras.get("prompt"), list):
        raise ConfigError(
            "Tools are shown to the model by its chat template, and the prompts are plain text: write them as "
            "messages, [{'role': 'user', 'content': ...}]."
        )
