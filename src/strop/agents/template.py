"""A chat template at the turns of a conversation: where the model's turn ends, and what follows it.

Nothing is assumed of a template but what it prints. Whatever is asked of it is read off renderings of the very
conversation: opened for an answer, closed behind one, and with what came after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from strop.agents.call_formats import ANY, CallFormat, ToolCall, format_of, response_format
from strop.agents.spoken import Spoken, call_message, numbered, read_turn, split_thought, thinking_at
from strop.data.chat import Chat, Unrenderable
from strop.data.encode import Encoder, common_prefix
from strop.errors import ConfigError

Message = dict[str, Any]
MARK, ANSWER, THOUGHT = "stropmark", "stropanswer", "stropthought"
THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""What templates call a model's thoughts."""
QUESTION: Message = {"role": "user", "content": "stropquestion"}
PROBE = ToolCall("stroptool", {"first": MARK, "second": 7})


@dataclass(slots=True)
class Following:
    """What comes after a turn of the model."""

    messages: list[Message]  # the conversation as the template was given it
    text: str  # its rendering, opened for the next turn
    tail: str | None  # what of it follows the turn's sampled ids; None: it cannot be told from this rendering
    how: Literal["exact", "respelled", "rewritten"]
    """exact: the template prints the turn as it was sampled. respelled: with other spelling (spaces, quotes), so that
    the sampled ids stand for what it prints. rewritten: it prints less of the turn, or of what came before it."""


class ConversationTemplate:
    """The chat template of a run.

    Args:
        chat: renders and knows the tokenizer.
        tools: JSON schemas that the template shows.
        kwargs: variables of the template.

    Raises:
        ConfigError: the template cannot show answers of tools, or no reader reads the calls that it prints.
    """

    def __init__(self, chat: Chat, encoder: Encoder, kwargs: Mapping[str, Any] | None = None) -> None:
        self.chat, self.encoder, self.tokenizer = chat, encoder, encoder.tokenizer
        self.kwargs = dict(kwargs or {})
        self.form: CallFormat | None = None
        self.prints_calls = False
        self.one_call = True  # is all that it prints of a turn
        stops = map(self.token_text, encoder.stops)
        plain_end = self._end_of_probe({"role": "assistant", "content": MARK}, None)
        thinking = {"role": "assistant", "content": MARK, **dict.fromkeys(THOUGHT_FIELDS, THOUGHT)}
        self.knows_thoughts = THOUGHT in (self._printed(thinking, None) or "")
        self.ends = tuple(dict.fromkeys([*([plain_end] if plain_end else []), *stops]))

    # ---- text and ids

    def token_text(self, token: int) -> str:
        return self.tokenizer.decode([token], skip_special_tokens=False)

    def text_of(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def ids_of(self, text: str) -> list[int]:
        """The ids of a text that continues another one."""
        return self.encoder.run([self.encoder.continuing([text])])[0][0] if text else []

    def prompt_ids(self, text: str) -> list[int]:
        """The ids of a whole context, as rows get them."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def render(
        self, messages: list[Message], tools: Any, *, opened: bool, kwargs: Mapping[str, Any] | None = None
    ) -> str:
        render = self.chat.render_prompt if opened else self.chat.render
        return render(messages, tools or None, {**self.kwargs, **(kwargs or {})})

    # ---- what is learned of a template before the first rollout

    def learn_calls(self, schemas: Sequence[Mapping[str, Any]]) -> None:
        """Find out how the template prints calls and answers of tools; raises `ConfigError` where it cannot."""
        tools = list(schemas)
        wanted = numbered([PROBE])
        turn = self._called(wanted)
        printed = self._printed(turn, tools)
        self.prints_calls = printed is not None and "stroptool" in printed
        if not self.prints_calls:
            self.form, self.one_call = response_format(self.tokenizer) or ANY, False
        else:
            assert printed is not None
            called_end = self._end_of_probe(turn, tools)
            self.form = format_of(printed, wanted) or format_of(printed.rstrip().removesuffix(called_end), wanted)
            own = None if self.form is not None else response_format(self.tokenizer)
            if own is not None and any(call.name == "stroptool" for call in own.take(printed, "", {})[0]):
                self.form = own
            if self.form is None:
                raise ConfigError(
                    f"The chat template prints a call of a tool as {printed.strip()[:200]!r}, which no reader here "
                    "reads. Give the tokenizer a response_template, or a template of a family that strop reads "
                    "(docs/agents.md), or use rollout_func."
                )
            self.one_call = not self._prints_two(wanted, tools)
            called_end = self._end_of_probe(turn, tools)  # without the format's own closing words, which are known now
            self.ends = tuple(dict.fromkeys([*self.ends, *([called_end] if called_end else [])]))
        self._require_answers(turn if self.prints_calls else {"role": "assistant", "content": MARK}, tools)

    def _called(self, calls: Sequence[ToolCall]) -> Message:
        return {"role": "assistant", "content": "", "tool_calls": list(map(call_message, calls))}

    def _printed(self, turn: Message, tools: Any) -> str | None:
        """What the template prints of a model's turn; None where it refuses."""
        try:
            opened = self.render([QUESTION], tools, opened=True)
            closed = self.render([QUESTION, turn], tools, opened=False)
        except Unrenderable:
            return None
        if not closed.startswith(opened):
            marks = thinking_at(opened)
            opened = opened.rstrip() if marks is None else opened.rstrip().removesuffix(marks[0].strip())
        return closed[common_prefix(opened, closed) :]

    def _prints_two(self, one: list[ToolCall], tools: Any) -> bool:
        """Whether the template prints two calls of a turn; if so, any number."""
        two = numbered([*one, ToolCall("stropsecond", {"first": "b"})])
        printed = self._printed(self._called(two), tools)
        assert self.form is not None
        found = [] if printed is None else self.form.take(printed, "", {})[0]
        return [call.name for call in found] == [call.name for call in two]

    def _require_answers(self, turn: Message, tools: Any) -> None:
        answer = {"role": "tool", "name": "stroptool", "content": ANSWER, "tool_call_id": numbered([PROBE])[0].id}
        try:
            shown = self.render([QUESTION, turn, answer], tools, opened=True)
        except Unrenderable as problem:
            raise ConfigError(
                f"The chat template refuses an answer of a tool ({problem}). Use the template of a model that calls "
                "tools (chat_template_path), or an environment with step(), whose observations are turns of the user."
            ) from None
        if ANSWER not in shown or (self.prints_calls and "stroptool" not in shown):
            raise ConfigError(
                "The chat template prints no answers of tools, so the model would never see one. Use the template of a "
                "model that calls tools (chat_template_path), or an environment with step()."
            )

    def require_step(self) -> None:
        """Raise `ConfigError` if the template cannot go on after an observation."""
        turns = [QUESTION, {"role": "assistant", "content": MARK}, {"role": "user", "content": ANSWER}]
        try:
            shown = self.render(turns, None, opened=True)
        except Unrenderable as problem:
            raise ConfigError(f"The chat template refuses a second turn of the user ({problem}).") from None
        if ANSWER not in shown:
            raise ConfigError("The chat template does not print a second turn of the user.")

    def rewrites(self, tools: Any, *, by: Literal["tool", "user"]) -> bool:
        """Whether an answer makes the template print less of the turn before it (no thoughts, say). It is tried out."""
        probe = numbered([PROBE])
        calls = probe if by == "tool" and self.prints_calls else []
        answer = {"role": by, "content": ANSWER}
        if by == "tool":
            answer |= {"name": "stroptool", "tool_call_id": probe[0].id}
        for thought in (THOUGHT, ""):
            turn = Spoken("", "", thought, words="" if calls else MARK, calls=calls).message()
            turn |= dict.fromkeys(THOUGHT_FIELDS, thought) if thought else {}
            printed = self._printed(turn, tools)
            if printed is None or (thought and THOUGHT not in printed):
                continue
            opened = self.render([QUESTION], tools, opened=True)
            body, end = self._cut_end(printed)
            found = self.follow([QUESTION], opened, self.read(body, end, opened, {}), [answer], tools)
            if found.how == "rewritten":
                return True
        return False

    def _cut_end(self, printed: str) -> tuple[str, str]:
        """A printed turn without the token that ends it, and that token."""
        bare = printed.rstrip()
        end = next((end for end in self.ends if bare.endswith(end)), "")
        return (bare[: len(bare) - len(end)], end) if end else (bare, "")

    def _end_of_probe(self, turn: Message, tools: Any) -> str:
        """The special token that the template prints behind a turn of the model, "" if it prints none."""
        try:
            closed = self.render([QUESTION, turn], tools, opened=False).rstrip()
        except Unrenderable:
            return ""
        special = set(map(str, self.tokenizer.all_special_tokens))
        special |= {str(t.content) for t in self.tokenizer.added_tokens_decoder.values() if t.special}
        closing = self.form.closing if self.form is not None else ()
        found = [text for text in special if text and closed.endswith(text) and text not in closing]
        return max(found, key=len, default="")

    # ---- a turn of the model

    def read(
        self,
        text: str,
        end: str,
        opened: str,
        schemas: Mapping[str, Any],
        calls_before: int = 0,
        *,
        calling: bool = True,
    ) -> Spoken:
        """What the model said in a turn that began after the context `opened`; `calling`: calls are no words."""
        return read_turn(
            text, end, self.form if calling else None, schemas,
            thinking=thinking_at(opened), specials=tuple(map(str, self.tokenizer.all_special_tokens)),
            calls_before=calls_before,
        )  # fmt: skip

    def forms(self, said: Spoken) -> list[Message]:
        """The turn in the forms that templates know, the most telling first."""
        calls = said.message().get("tool_calls", []) if self.prints_calls else []
        raw: Message = {"role": "assistant", "content": said.text}
        if not calls and not said.thought:
            return [raw, {"role": "assistant", "content": said.words}] if said.text != said.words else [raw]
        words = said.words if calls or not said.calls else split_thought(said.text, None)[1].strip()
        forms: list[Message] = [{"role": "assistant", "content": words}]
        if said.thought and self.knows_thoughts:
            forms[0] |= dict.fromkeys(THOUGHT_FIELDS, said.thought)
        elif said.thought:  # to this template, thoughts are words like others
            forms[0]["content"] = said.thinking + words if calls else said.text
        if calls:
            forms = [{**form, "tool_calls": calls} for form in forms]
        broken = any(call.problem is not None for call in said.calls)
        return [raw, *forms] if broken else forms

    def follow(
        self,
        before: list[Message],
        opened: str,
        said: Spoken,
        answers: Sequence[Message],
        tools: Any,
        kwargs: Mapping[str, Any] | None = None,
    ) -> Following:
        """The context after a turn of the model and the answers to it.

        Args:
            before: the conversation up to the turn, as it was rendered.
            opened: that rendering, opened for the turn.
            said: the turn.
            answers: messages of tools or of the user.

        Raises:
            Unrenderable: the template refuses the conversation.
        """
        best: Following | None = None
        problem: Unrenderable | None = None
        for form in self.forms(said):
            messages = [*before, form, *answers]
            try:
                text = self.render(messages, tools, opened=True, kwargs=kwargs)
                if text.startswith(opened + said.text + said.end):
                    return Following(messages, text, text[len(opened + said.text + said.end) :], "exact")
                found = self._located(messages, len(before) + 1, opened, text, said, tools, kwargs)
            except Unrenderable as refused:
                problem = problem or refused
                continue
            if best is None or (best.how == "rewritten" and found.how == "respelled"):
                best = found
        if best is None:
            raise problem or Unrenderable("it prints nothing")
        return best

    def _located(
        self, messages: list[Message], turns: int, opened: str, text: str, said: Spoken, tools: Any, kwargs: Any
    ) -> Following:
        """The end of a turn that is printed otherwise than it was sampled, from the conversation closed behind it."""
        rewritten = Following(messages, text, None, "rewritten")
        if not text.startswith(opened):
            return rewritten
        closed = self.render(messages[:turns], tools, opened=False, kwargs=kwargs)
        bare = closed.rstrip()
        own = next((end for end in (said.end, *self.ends) if end and bare.endswith(end)), "")
        stop = len(bare) if own else len(closed)
        if not text.startswith(closed[:stop]):  # the turn looks another way once it is not the last
            try:
                tail, end = self.stand_in_tail(said, messages[turns:], tools, kwargs)
            except Unrenderable:
                return rewritten
            turn = text[len(opened) : len(text) - len(tail)].removesuffix(end if said.end else "")
            if end not in (said.end, "") or not text.endswith(tail) or not self.is_same(turn, said):
                return rewritten
            return Following(messages, text, tail, "respelled")
        if not self.is_same(closed[len(opened) : stop - len(own)], said):
            return rewritten
        if not said.end:
            return Following(messages, text, text[stop - len(own) :], "respelled")
        if own == said.end:
            return Following(messages, text, text[stop:], "respelled")
        header = text[stop:].lstrip()
        if not own and header.startswith(said.end):  # the header of the next turn ends this one
            return Following(messages, text, header[len(said.end) :], "respelled")
        return rewritten  # it ended in a token that the template does not print there

    def is_same(self, printed: str, said: Spoken) -> bool:
        """Whether a printed turn is the sampled one but for blanks, and for the spelling of its calls."""
        if said.dropped:
            return False
        first, second = self._parts(printed, said.end), self._parts(said.text, said.end)
        return first == second

    def _parts(self, turn: str, end: str) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
        """A turn's calls, and all of its other words without blanks."""
        if self.form is None or not self.prints_calls:
            return "".join(turn.split()), []
        calls, words = self.form.take(turn, end, {})
        return "".join(words.split()), [(call.name, dict(call.arguments)) for call in calls]

    def stand_in_tail(
        self, said: Spoken, answers: Sequence[Message], tools: Any, kwargs: Any = None
    ) -> tuple[str, str]:
        """What follows a turn, read off a conversation with a stand-in turn that makes the same calls; and the token
        that the template ends the turn with.

        For turns that the template rewrites where the sampled ids are to be kept. It begins behind that token, or with
        it where the sampled turn has none.
        """
        turn: Message = {"role": "assistant", "content": MARK}
        if said.calls and self.prints_calls:
            last = replace(said.calls[-1], arguments={"mark": MARK})
            turn = self._called([*said.calls[:-1], last])
        text = self.render([QUESTION, turn, *answers], tools, opened=True, kwargs=kwargs)
        at = text.find(MARK) + len(MARK)
        ends = [(text.find(end, at), end) for end in self.ends if end and text.find(end, at) >= 0]
        if at < len(MARK) or not ends:
            raise Unrenderable("the end of the model's turn cannot be found in it")
        position, end = min(ends)
        return (text[position + len(end) :] if said.end else text[position:]), end
