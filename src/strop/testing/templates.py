"""Whether a chat template's conversations are what the template says: played turn by turn, as a rollout plays them.

play(tokenizer, calls=2, thought=True)     # AssertionError where a context is not the template's
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from strop.agents.call_formats import ToolCall
from strop.agents.conversation import Conversation, PastTurns
from strop.agents.environments import Environments
from strop.agents.set_up import make_turns
from strop.agents.spoken import call_message, numbered, thinking_at
from strop.agents.template import ConversationTemplate, Message
from strop.agents.tools import Tools
from strop.data.chat import Unrenderable
from strop.errors import ConfigError

QUESTION: Message = {"role": "user", "content": "What is seven?"}
ROOM = 10**9
Partner = Literal["tool", "step"]


def double(x: int) -> int:
    """Twice a number.

    Args:
        x: The number.
    """
    return 2 * x


class Stepping:
    """An environment that takes turns."""

    def step(self, text: str) -> tuple[str, bool]:
        return "go on", False


def play(
    tokenizer: Any,
    *,
    calls: int = 1,
    thought: bool = False,
    by: Partner = "tool",
    turns: int = 3,
    stop_ids: Iterable[int] = (),
    past: PastTurns = "template",
) -> Conversation:
    """A conversation in which the model says what the template would print of it, and tools or an environment answer.

    Args:
        calls: of tools, in each turn but the last.
        thought: whether each turn begins with thoughts.
        by: who answers.
        turns: of the model.
        stop_ids: ids that end turns beside the tokenizer's own.
        past: what becomes of turns that the template rewrites.

    Raises:
        ConfigError: strop refuses the template for such conversations.
        AssertionError: a turn's context is not, id for id, the template's rendering of the conversation before it.
    """
    partner: dict[str, Any] = {"tools": Tools([double])} if by == "tool" else {"environments": Environments(Stepping)}
    made = make_turns(tokenizer, past=past, stop_ids=stop_ids, **partner)
    template, tools = made.template, list(made.schemas)
    if by == "tool" and calls > 1 and template.one_call and template.prints_calls:
        raise ConfigError("The chat template prints one call in a turn.")
    text = template.render([QUESTION], tools, opened=True)
    talk = Conversation(template, [QUESTION], text, template.prompt_ids(text), tools, past=past)
    for turn in range(turns):
        if past == "template":
            check_context(talk)
        last = turn == turns - 1
        ids = _turn_ids(talk, _message(talk, turn, 0 if last or by == "step" else calls, thought), by)
        said = talk.hear(ids, [0.0] * len(ids), ended=True)
        if not last:
            assert by == "step" or len(said.calls) == calls, f"{len(said.calls)} calls were read in {said.text!r}"
            talk.answer(_answers([call.id for call in said.calls], by), ROOM)
    return talk


def check_context(talk: Conversation) -> None:
    """Raise `AssertionError` unless the next turn follows exactly what the template prints of the conversation."""
    template = talk.template
    wanted = template.prompt_ids(template.render(talk.rendered, talk.tools, opened=True))
    assert talk.context == wanted, (template.text_of(talk.context), template.text_of(wanted))


def _message(talk: Conversation, turn: int, calls: int, thought: bool) -> Message:
    said: Message = {"role": "assistant", "content": "" if calls else f"say {turn}"}
    if thought:
        said |= dict.fromkeys(("reasoning_content", "reasoning", "thinking"), f"think {turn}")
    if calls and not talk.template.prints_calls:
        said["content"] = "".join(
            f'<tool_call>{{"name": "double", "arguments": {{"x": {number}}}}}</tool_call>' for number in range(calls)
        )
    elif calls:
        made = numbered([ToolCall("double", {"x": number}) for number in range(calls)], talk.answered)
        said["tool_calls"] = list(map(call_message, made))
    return said


def _answers(call_ids: list[str], by: Partner) -> list[Message]:
    if by == "step":
        return [{"role": "user", "content": "go on"}]
    return [{"role": "tool", "name": "double", "content": "42", "tool_call_id": name} for name in call_ids]


def _turn_ids(talk: Conversation, message: Message, by: Partner) -> list[int]:
    """The ids of a turn as the template prints it behind the open context, with the token that ends it."""
    template = talk.template
    try:
        closed = template.render([*talk.rendered, message], talk.tools, opened=False)
    except Unrenderable as problem:
        raise ConfigError(f"The chat template refuses a turn ({problem}).") from None
    if not closed.startswith(talk.text):  # it goes on otherwise than it opens
        calls = [call["id"] for call in message.get("tool_calls", [])]
        whole = template.render([*talk.rendered, message, *_answers(calls, by)], talk.tools, opened=True)
        closed = whole if whole.startswith(talk.text) else closed
    body = closed[len(talk.text) :]
    marks = thinking_at(talk.text)
    if not closed.startswith(talk.text):
        before = talk.text.rstrip() if marks is None else talk.text.rstrip().removesuffix(marks[0].strip())
        start = next(i for i in range(len(closed)) if not before.startswith(closed[: i + 1]))
        body = closed[start:]
        if marks is not None:
            body = f"{marks[1]}\n\n{body.replace(marks[0], '').replace(marks[1], '').lstrip()}"
    bare = body.rstrip()
    end = next((end for end in template.ends if end and bare.endswith(end)), "")
    position = len(bare) - len(end)
    if not end:
        end = _header_after(template, bool(message.get("tool_calls")))
    return [*template.ids_of(body[:position]), template.tokenizer.convert_tokens_to_ids(end)]


def _header_after(template: ConversationTemplate, called: bool) -> str:
    """The token that ends a turn where the template prints none: the next turn's header."""
    known = template.tokenizer.get_added_vocab()
    wanted = ["<|observation|>", "<|tool_response>"] if called else ["<|user|>"]
    return next((token for token in wanted if token in known), template.tokenizer.eos_token)
