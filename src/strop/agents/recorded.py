"""The conversations of one agent's trajectory: each request is matched to what the model has said before.

A request that resends a conversation and goes on with it has the recorded ids for a context. One that begins at an
earlier point of it branches there, on the recorded ids too. All else is a conversation of its own; where it has turns
of the model in it, they are rendered anew, which is counted.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from strop.agents.chat_api import ChatReply, ChatRequest, Refused, read_text, reply_message
from strop.agents.conversation import Conversation, PastTurns, TurnRecord
from strop.agents.template import ConversationTemplate, Message
from strop.data.chat import Unrenderable

Key = tuple[Any, ...]


def key_of(message: Message) -> Key:
    """What two messages have in common where they are the same one, sent twice.

    Blanks around a turn of the model count for nothing, as do its thoughts, which most agents do not send back; nor
    does the name of a tool beside the id of its call.
    """
    role, text = message["role"], message.get("content") or ""
    calls = tuple(
        (call.get("id"), call["function"]["name"], json.dumps(read_text(call["function"]["arguments"]), sort_keys=True))
        for call in message.get("tool_calls") or ()
    )
    name = message.get("tool_call_id") if role == "tool" else message.get("name")
    return role, text.strip() if role == "assistant" else text, calls, name


@dataclass(eq=False)
class Point:
    """Where a conversation stood when the model had spoken."""

    said: list[Key]  # the messages of the request, and the reply
    frame: str  # tools, and variables of the template
    talk: Conversation
    as_it_was: Conversation | None = None  # once `talk` has gone on


@dataclass(eq=False)
class Asked:
    """A request with the conversation that it goes on with, and what became of it."""

    request: ChatRequest
    talk: Conversation
    limit: int  # most tokens of the answer
    keys: list[Key]
    frame: str
    undo: Callable[[], None] | None  # the conversations as they were before it; None once the agent has its answer
    turn: TurnRecord | None = None  # of the model, once it is answered
    point: Point | None = None  # where the conversation stood then
    calls: int = 0  # of tools
    broken: int = 0  # of those, such as could not be read, and were words to the agent
    is_cut: bool = False  # a limit of the run ended the turn
    number: int = 0  # of the request, among those of all agents: random numbers follow from it
    call: Any = None  # that waits for the answer


Begun = tuple[Conversation, Callable[[], None]]
"""A conversation at a request, and what undoes that."""


@dataclass
class Recorded:
    """What an agent and the model have said to each other.

    Args:
        template: of the run.
        past: what becomes of turns that the template rewrites.
        budget: most tokens of all turns and answers together.
        positions: tokens that the model can read; None: no end.
        kwargs: the row's variables of the template.
    """

    template: ConversationTemplate
    past: PastTurns
    budget: int
    positions: int | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    talks: list[Conversation] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)  # in their order
    refused: bool = False  # a request, by a limit of the run

    @property
    def heard(self) -> list[TurnRecord]:
        """The turns of the model, in the order of the requests."""
        return [asked.turn for asked in self.asked if asked.turn is not None]

    @property
    def calls(self) -> int:
        """Calls of tools."""
        return sum(asked.calls for asked in self.asked)

    @property
    def broken(self) -> int:
        """Calls that could not be read, and were words to the agent."""
        return sum(asked.broken for asked in self.asked)

    @property
    def is_cut(self) -> bool:
        """Whether a limit of the run ended a turn, or refused one."""
        return self.refused or any(asked.is_cut for asked in self.asked)

    def open(self, request: ChatRequest) -> Asked:
        """The conversation that a request goes on with, the new messages written to it. Raises `Refused`."""
        keys = [key_of(message) for message in request.messages]
        kwargs = {**self.kwargs, **request.kwargs}
        frame = json.dumps([request.tools, kwargs], sort_keys=True, default=str)
        fits = [p for p in reversed(self.points) if p.frame == frame and p.said == keys[: len(p.said)] != keys]
        point = max(fits, key=lambda p: (len(p.said), p.as_it_was is None), default=None)
        try:
            if point is None:
                talk, undo = self._begin(request, keys, kwargs)
            else:
                talk, undo = self._go_on(point, request.messages[len(point.said) :])
        except Unrenderable as problem:
            raise Refused(f"The chat template refuses the conversation: {problem}.") from None
        asked = Asked(request, talk, min(self._room(talk), request.max_tokens or self.budget), keys, frame, undo)
        self.asked.append(asked)
        return asked

    def take_back(self, asked: Asked) -> None:
        """Forget a request, and its answer if there is one: the agent has not seen it."""
        assert asked.undo is not None
        asked.undo()
        self.asked = [other for other in self.asked if other is not asked]
        self.points = [point for point in self.points if point is not asked.point]

    def _begin(self, request: ChatRequest, keys: list[Key], kwargs: Mapping[str, Any]) -> Begun:
        messages = request.messages
        text = self.template.render(messages, request.tools, opened=True, kwargs=kwargs)
        ids = self.template.prompt_ids(text)
        talk = Conversation(self.template, messages, text, ids, list(request.tools), kwargs, self.past)
        self._require(self._room(talk) > 0)
        known = {key for point in self.points for key in point.said} | {k for asked in self.asked for k in asked.keys}
        if self.talks:
            talk.turns = [
                TurnRecord(dict(m), 0)
                for m, key in zip(messages, keys, strict=True)
                if m["role"] != "assistant" and key not in known
            ]
        replies = {point.said[-1] for point in self.points}
        talk.rewritten = int(
            any(key in replies for key in keys)
            or any(len(keys) >= len(p.said) and keys[: len(p.said) - 1] == p.said[:-1] for p in self.points)
        )
        self.talks.append(talk)
        return talk, lambda: self._drop(talk)

    def _go_on(self, point: Point, answers: Sequence[Message]) -> Begun:
        branches = point.as_it_was is not None
        talk = point.as_it_was.branch() if point.as_it_was is not None else point.talk
        before, back = point.as_it_was or talk.branch(), talk.way_back()
        known = len(talk.turns)
        self._require(talk.answer(answers, self._room(talk) - 1))
        told = [turn for turn in talk.turns[known:] if turn.message["role"] != "assistant"]
        talk.rewritten += len(told) < len(answers)  # the agent put words into the model's mouth
        talk.turns[known:] = told
        if branches:
            self.talks.append(talk)
        point.as_it_was = before

        def undo() -> None:
            back()
            point.as_it_was = None

        return talk, (lambda: self._drop(talk)) if branches else undo

    def _drop(self, talk: Conversation) -> None:
        self.talks = [other for other in self.talks if other is not talk]

    def _room(self, talk: Conversation) -> int:
        left = self.budget - sum(max(t.used, 0) for t in self.talks)
        return left if self.positions is None else min(left, self.positions - len(talk.context))

    def _require(self, fits: bool) -> None:
        if not fits:
            self.refused = True
            raise Refused(
                f"The run's max_completion_length of {self.budget} tokens, or the model's positions, are used up.",
                code="context_length_exceeded",
            )

    def hear(
        self, asked: Asked, ids: Sequence[int], logps: Sequence[float], *, stopped: bool, stop_ids: Sequence[int]
    ) -> ChatReply:
        """The model's turn, as the agent sees it; one that a limit broke off has no calls. Raises `Refused`.

        Args:
            stopped: a token of `stop_ids` or a stop string ended it, and no limit.
        """
        talk, request, left = asked.talk, asked.request, self._room(asked.talk)
        self._require(left > 0)  # calls of one trajectory that were answered together share what is left
        limit = min(asked.limit, left)
        before, stopped, ids = len(talk.context), stopped and len(ids) <= limit, ids[:limit]
        said = talk.hear(
            ids, logps[:limit], ended=stopped and ids[-1] in stop_ids, calling=request.calling and stopped
        )  # fmt: skip
        asked.turn, asked.is_cut = talk.turns[-1], not stopped and limit == left
        asked.calls, asked.broken = len(said.calls), sum(call.problem is not None for call in said.calls)
        message = reply_message(said, request)
        asked.point = Point([*asked.keys, key_of(message)], asked.frame, talk)
        self.points.append(asked.point)
        finish = "length" if not stopped else "tool_calls" if "tool_calls" in message else "stop"
        tokens = [(self.template.token_text(token), logp) for token, logp in zip(ids, logps, strict=False)]
        return ChatReply(message, finish, before, tokens)

    def rewards_in_order(self, rewards: Sequence[float]) -> list[float]:
        """Rewards of the model's turns by request as those of the turns of `whole`; none: zeros.

        Credit by turn takes what stands behind a turn for what may follow from it. Where conversations alternate, a
        reward is therefore moved behind all turns that were sampled before it.
        """
        record = self.whole()
        spoken = [id(turn) for turn in record.turns if turn.message["role"] == "assistant"] if record else []
        in_order = [0.0] * len(spoken)
        places = accumulate((spoken.index(id(turn)) for turn in self.heard), max)
        for place, reward in zip(places, rewards or in_order, strict=True):
            in_order[place] += reward
        return in_order

    def whole(self) -> Conversation | None:
        """All conversations as one record, one behind the other; None where the model said nothing."""
        spoken = [talk for talk in self.talks if any(any(stretch.mask) for stretch in talk.stretches)]
        if not spoken:
            return None
        record = copy.copy(spoken[0])
        record.turns = [turn for talk in spoken for turn in talk.turns]
        record.stretches = [stretch for talk in spoken for stretch in talk.stretches if any(stretch.mask)]
        record.respelled = sum(talk.respelled for talk in spoken)
        record.rewritten = sum(talk.rewritten for talk in spoken)
        return record
