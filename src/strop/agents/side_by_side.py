"""Work of several completions side by side: threads for those that wait, a bounded number of them.

The calls of one completion keep their order: each begins when the one before it has been answered. Those of different
completions have none. A call that does not end in time is left behind with its thread, which cannot be ended, and the
completion's next call has a new one.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from strop.agents.left_behind import LeftBehind

T = TypeVar("T")


def side_by_side(
    chains: Sequence[Sequence[Callable[[], T]]],
    at_once: int,
    seconds: float | None,
    late: T,
    left_behind: LeftBehind | None = None,
) -> list[list[T]]:
    """What the calls of each completion return, in their order.

    Args:
        chains: the calls, by completion; they raise nothing.
        at_once: most completions that are worked for at a time, >= 1.
        seconds: time limit of each call; None: none.
        late: stands for what a call returns that does not end in time.
        left_behind: takes the threads of those.
    """
    found: list[list[T]] = [[] for _ in chains]
    ended: queue.SimpleQueue[tuple[int, int, T]] = queue.SimpleQueue()  # completion, place of the call, its result
    waiting = deque(number for number, chain in enumerate(chains) if chain)
    due: dict[int, float] = {}  # of those that are worked for, the end of the call's time
    threads: dict[int, threading.Thread] = {}
    left = LeftBehind() if left_behind is None else left_behind
    while waiting or due:
        while waiting and len(due) < at_once:
            number = waiting.popleft()
            due[number] = math.inf if seconds is None else time.monotonic() + seconds
            threads[number] = _begin(chains[number][len(found[number])], number, len(found[number]), ended)
        first = min(due.values())
        try:
            news = [ended.get(timeout=None if first == math.inf else max(0.0, first - time.monotonic()))]
        except queue.Empty:
            now = time.monotonic()
            news = [(number, len(found[number]), late) for number, end in due.items() if end <= now]
            for number, _, _ in news:
                left.add(threads[number])
        for number, place, result in news:
            if number not in due or place != len(found[number]):
                continue  # of a call that was left behind
            del due[number]
            found[number].append(result)
            if len(found[number]) < len(chains[number]):
                waiting.appendleft(number)
    return found


def _begin(
    work: Callable[[], T], number: int, place: int, ended: queue.SimpleQueue[tuple[int, int, T]]
) -> threading.Thread:
    thread = threading.Thread(target=lambda: ended.put((number, place, work())), name="strop-tool", daemon=True)
    thread.start()
    return thread
