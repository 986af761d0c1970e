"""One trajectory, kept as messages and as ids.

The ids that were sampled are the ids that are trained on. Between turns the context is what the chat template makes of
the conversation; where the template prints past turns otherwise than they were sampled (it leaves thoughts out), the
turn after it begins a `Stretch` of its own, on the context as it really was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from strop.agents.spoken import Spoken
from strop.agents.template import ConversationTemplate, Message
from strop.data.chat import Unrenderable
from strop.records import Stretch

PastTurns = Literal["template", "sampled"]


@dataclass(slots=True)
class TurnRecord:
    """One turn of the conversation, for rewards and people."""

    message: Message
    tokens: int  # of the model's ids, or of the ids of an answer with what the template puts around it


@dataclass
class Conversation:
    """A trajectory in the making.

    Args:
        template: of the run.
        messages: the prompt.
        text: the prompt's rendering, opened for an answer.
        prompt_ids: its ids.
        tools: JSON schemas that the template shows.
        kwargs: the row's variables of the template.
        past: what becomes of turns that the template rewrites: "template" forks, "sampled" keeps the ids.
    """

    template: ConversationTemplate
    messages: list[Message]
    text: str
    prompt_ids: list[int]
    tools: list[Any] = field(default_factory=list)
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    past: PastTurns = "template"
    turns: list[TurnRecord] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)
    answered: int = 0  # calls so far
    respelled: int = 0  # turns
    rewritten: int = 0

    def __post_init__(self) -> None:
        self.rendered, self._begun = list(self.messages), ""
        if self.messages and self.messages[-1]["role"] == "assistant":  # the first turn goes on with it
            opened = self.template.render(self.messages[:-1], self.tools, opened=True, kwargs=self.kwargs)
            if self.text.startswith(opened):
                self.rendered, self.text, self._begun = self.messages[:-1], opened, self.text[len(opened) :]
        self.stretches = [Stretch(list(self.prompt_ids), [], [], [])]
        self._said: Spoken | None = None

    @property
    def context(self) -> list[int]:
        """The ids that the next turn follows."""
        return self.stretches[-1].prompt_ids + self.stretches[-1].ids

    @property
    def used(self) -> int:
        """Tokens of all turns and answers together."""
        return len(self.context) - len(self.prompt_ids)

    def way_back(self) -> Callable[[], None]:
        """What makes the conversation again what it is now."""
        kept, turns, lengths = dict(vars(self)), len(self.turns), [len(stretch.ids) for stretch in self.stretches]

        def back() -> None:
            vars(self).update(kept)
            del self.turns[turns:], self.stretches[len(lengths) :]
            for stretch, length in zip(self.stretches, lengths, strict=True):
                del stretch.ids[length:], stretch.mask[length:], stretch.logps[length:]

        return back

    def branch(self) -> Conversation:
        """The same conversation, to be gone on with another way: the ids so far are its prompt."""
        other = copy.copy(self)
        other.prompt_ids = self.context
        other.stretches = [Stretch(list(other.prompt_ids), [], [], [])]
        other.turns, other.respelled, other.rewritten = [], 0, 0
        return other

    def hear(self, ids: Sequence[int], logps: Sequence[float], *, ended: bool, calling: bool = True) -> Spoken:
        """The model's next turn; `ended`: its last id is a token that ends turns; `calling`: whether calls are read."""
        self.stretches[-1].write(ids, logps)
        end = self.template.token_text(ids[-1]) if ended else ""
        text, self._begun = self._begun + self.template.text_of(ids[:-1] if ended else ids), ""
        schemas = {tool["function"]["name"]: tool["function"] for tool in self.tools}
        said = self.template.read(text, end, self.text, schemas, self.answered, calling=calling)
        if self.template.one_call and len(said.calls) > 1:
            said.dropped = len(said.calls) - 1
            said.calls = said.calls[:1]
        self.answered += len(said.calls)
        self.turns.append(TurnRecord(said.message(), len(ids)))
        self._said = said
        return said

    def answer(self, answers: Sequence[Message], room: int) -> bool:
        """Go on with answers to the last turn. False, and nothing changed, where they need more than `room` tokens.

        Raises:
            Unrenderable: the template refuses them.
        """
        assert self._said is not None
        given = self._said
        found = self.template.follow(self.rendered, self.text, given, answers, self.tools, self.kwargs)
        tail = found.tail
        if found.how == "rewritten" and self.past == "sampled":
            tail, _ = self.template.stand_in_tail(given, answers, self.tools, self.kwargs)
        forks = tail is None
        new = self.template.prompt_ids(found.text) if tail is None else self.template.ids_of(tail)
        before = len(self.context)
        if (len(new) - before if forks else len(new)) > room:
            return False
        if forks:
            self.stretches.append(Stretch(new, [], [], []))
        else:
            self.stretches[-1].write(new)
        self.respelled += found.how == "respelled"
        self.rewritten += found.how == "rewritten"
        self.rendered, self.text = found.messages, found.text
        share, rest = divmod(max(len(self.context) - before, 0), max(len(answers), 1))
        self.turns += [TurnRecord(dict(m), share + (rest if i == 0 else 0)) for i, m in enumerate(answers)]
        return True


class PlainConversation(Conversation):
    """A prompt of plain text, to which turns and observations are appended as they are."""

    def hear(self, ids: Sequence[int], logps: Sequence[float], *, ended: bool, calling: bool = True) -> Spoken:
        self.stretches[-1].write(ids, logps)
        text = self.template.text_of(ids[:-1] if ended else ids)
        self.turns.append(TurnRecord({"role": "assistant", "content": text}, len(ids)))
        return Spoken(text, "", words=text, bare=text)

    def answer(self, answers: Sequence[Message], room: int) -> bool:
        new = self.template.ids_of("".join(str(message["content"]) for message in answers))
        if len(new) > room:
            return False
        self.stretches[-1].write(new)
        self.turns += [TurnRecord(dict(message), len(new) // len(answers)) for message in answers]
        return True


__all__ = ["Conversation", "PastTurns", "PlainConversation", "TurnRecord", "Unrenderable"]
