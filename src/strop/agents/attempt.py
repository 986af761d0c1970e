"""One agent's attempt at a row: what it has asked, and the answers on their way to it.

Answers that it did not receive are no part of its trajectory. A client whose time is over closes its connection and
asks again. What it never saw is taken back: it is not learned from, it uses up nothing of what the run allows in
tokens, and the next request has its random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from strop.agents.chat_api import ChatReply, Refused
from strop.agents.chat_server import Call
from strop.agents.recorded import Asked, Recorded
from strop.agents.running import AgentAtWork, Ended
from strop.records import Example

SETTLE_SECONDS = 1.0
"""How long an answer that was given is waited for; one that is still being sent then has reached the agent."""


@dataclass
class Attempt:
    """One completion in the making.

    Args:
        number: among those of the batch.
        example: the prompt.
        recorded: what has been said.
        most: requests that the model answers, those that are taken back among them.
        next_request: number of the next request, among those of all; random numbers follow from it.
    """

    number: int
    example: Example
    recorded: Recorded
    most: int
    next_request: int = 0
    work: AgentAtWork | None = None
    key: str = ""
    deadline: float = float("inf")
    shown: list[Any] = field(default_factory=list)  # tools of its requests
    ended: Ended | None = None
    asked: int = 0  # requests
    unseen: int = 0  # of those, such as were taken back as their client was gone
    _free: list[int] = field(default_factory=list)  # numbers of requests that were taken back
    _sent: list[Asked] = field(default_factory=list)

    def open(self, call: Call) -> Asked:
        """A request written into its conversation. Raises `Refused`."""
        self.settle()
        if self.asked >= self.most:
            self.recorded.refused = True
            raise Refused(f"An agent may ask {self.most} times (most_calls).", code="too_many_calls")
        asked = self.recorded.open(call.request)
        asked.call = call
        self.asked += 1
        if self._free:
            asked.number = self._free.pop(0)
        else:
            asked.number, self.next_request = self.next_request, self.next_request + 1
        return asked

    def give(self, asked: Asked, reply: ChatReply) -> None:
        self._sent.append(asked)
        asked.call.give(reply)

    def take_back(self, asked: Asked, why: Refused | None = None) -> None:
        """Forget a request, whose answer the agent does not have; without `why`, because its client is gone."""
        self.recorded.take_back(asked)
        self._free = sorted([*self._free, asked.number])
        self.unseen += why is None
        asked.call.give(why or nobody_waits())

    def settle(self) -> None:
        """Take back what was sent and did not arrive."""
        sent, self._sent = self._sent, []
        for asked in reversed(sent):
            if not asked.call.settled.wait(SETTLE_SECONDS):
                self._sent.insert(0, asked)
            elif asked.call.lost:
                self.take_back(asked)
            else:
                asked.undo = None


def nobody_waits() -> Refused:
    """The answer to a client that is gone, made anew for each: an exception holds all that it was raised through."""
    return Refused("The client has closed the connection.", 408)
