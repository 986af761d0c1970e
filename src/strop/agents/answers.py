"""Answers on their way to one agent: those that it did not receive are no part of its trajectory.

A client whose time is over closes its connection and asks again. What it never saw is taken back: it is not learned
from, it uses up nothing of what the run allows in tokens, and the next request has its random numbers.
"""

from __future__ import annotations

from strop.agents.chat_api import ChatReply, Refused
from strop.agents.chat_server import Call
from strop.agents.recorded import Asked, Recorded

SETTLE_SECONDS = 1.0
"""How long an answer that was given is waited for; one that is still being sent then has reached the agent."""


class Answers:
    """The requests of one trajectory, from the model's side.

    Args:
        recorded: what has been said.
        first: number of the trajectory's first request, among those of all; random numbers follow from it.
        most: requests that the model answers, those that are taken back among them.
    """

    def __init__(self, recorded: Recorded, first: int, most: int) -> None:
        self.recorded, self.most = recorded, most
        self.asked, self.unseen = 0, 0
        self._next, self._free = first, list[int]()
        self._sent: list[tuple[Call, Asked, int]] = []

    def open(self, call: Call) -> tuple[Asked, int]:
        """A request written into its conversation, and its number. Raises `Refused`."""
        self.settle()
        if self.asked >= self.most:
            self.recorded.refused = True
            raise Refused(f"An agent may ask {self.most} times (most_calls).", code="too_many_calls")
        asked = self.recorded.open(call.request)
        self.asked += 1
        if self._free:
            return asked, self._free.pop(0)
        self._next += 1
        return asked, self._next - 1

    def give(self, call: Call, asked: Asked, number: int, reply: ChatReply) -> None:
        self._sent.append((call, asked, number))
        call.give(reply)

    def take_back(self, call: Call, asked: Asked, number: int, why: Refused | None = None) -> None:
        """Forget a request, whose answer the agent does not have; without `why`, because its client is gone."""
        self.recorded.take_back(asked)
        self._free = sorted([*self._free, number])
        self.unseen += why is None
        call.give(why or nobody_waits())

    def settle(self) -> None:
        """Take back what was sent and did not arrive."""
        sent, self._sent = self._sent, []
        for call, asked, number in reversed(sent):
            if not call.settled.wait(SETTLE_SECONDS):
                self._sent.insert(0, (call, asked, number))
            elif call.lost:
                self.take_back(call, asked, number)
            else:
                asked.undo = None


def nobody_waits() -> Refused:
    """The answer to a client that is gone, made anew for each: an exception holds all that it was raised through."""
    return Refused("The client has closed the connection.", 408)
