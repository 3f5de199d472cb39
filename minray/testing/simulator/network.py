"""Messages in flight between simulated processes: in order per pair, in any order between pairs.

Owned by the simulation, which chooses the pair whose next message arrives. A process that dies loses what
was sent to it, and perhaps the end of what it had sent.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from typing import Any

from minray.wire.messages import BORROWS, CALLS, FETCH, RELEASES, RESULTS, TASKS, VALUES, Message, unpack

Pair = tuple[bytes, bytes]
HOT = {
    TASKS: "TASKS",
    CALLS: "CALLS",
    RESULTS: "RESULTS",
    RELEASES: "RELEASES",
    BORROWS: "BORROWS",
    FETCH: "FETCH",
    VALUES: "VALUES",
}


def kind_of(message: Any) -> str:
    """What it is, for counting: the name of a message, or of a request to the GCS."""
    if isinstance(message, Message):
        return type(message).__name__
    first = message[0]
    if type(first) is str:
        return first  # the simulation's own: eof, register, exited, created
    if type(first) is int:
        return str(message[1])
    raw = message[1]  # between core workers, behind the sender's address
    return HOT.get(raw[0]) or type(unpack(raw)).__name__


class Network:
    """One queue per ordered pair of processes; empty ones vanish."""

    def __init__(self) -> None:
        self.queues: dict[Pair, deque[Any]] = {}
        self.arrived: Counter[str] = Counter()  # messages of each kind

    def send(self, source: bytes, target: bytes, message: Any) -> None:
        """Queue one message."""
        self.queues.setdefault((source, target), deque()).append(message)

    def busy(self) -> list[Pair]:
        """Pairs with something in flight."""
        return list(self.queues)

    def take(self, pair: Pair) -> Any:
        """The next message of that pair."""
        queue = self.queues[pair]
        message = queue.popleft()
        if not queue:
            del self.queues[pair]
        self.arrived[kind_of(message)] += 1
        return message

    def forget(self, pair: Pair) -> list[Any]:
        """What was in flight there is lost."""
        return list(self.queues.pop(pair, ()))

    def die(self, process: bytes, rng: random.Random, *, loses: bool) -> list[tuple[bytes, Any]]:
        """What was sent to it is lost, and, with ``loses``, the end of what it had sent. Returns the lost, each
        with its target."""
        lost: list[tuple[bytes, Any]] = []
        for pair in list(self.queues):
            if pair[1] == process:
                lost += [(process, message) for message in self.forget(pair)]
            elif pair[0] == process and loses:
                queue = self.queues[pair]
                while queue and rng.random() < 0.3:
                    lost.append((pair[1], queue.pop()))
                if not queue:
                    del self.queues[pair]
        return lost
