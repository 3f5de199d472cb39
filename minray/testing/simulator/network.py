"""Messages in flight between simulated processes: in order per pair, in any order between pairs.

Owned by the world; the scheduler chooses the pair whose next message arrives. A process that dies loses what
was sent to it, and perhaps the end of what it had sent. A link between two machines may be *cut* in one direction
or in both: what is in flight there waits until it is healed, or until one of the machines counts as dead.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from typing import Any

from minray.wire.messages import BORROWS, CALLS, FETCH, RELEASES, RESULTS, TASKS, VALUES, Message, Request, unpack

GCS_ID = b"g" * 28
EOF = ("eof",)  # the connection of a dead process, after what it had sent

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
    """What it is, for counting: the name of a message, or of a request."""
    if isinstance(message, Request):
        return message.method
    if isinstance(message, Message):
        return type(message).__name__
    if type(message[0]) is str:
        return message[0]  # the simulation's own: eof, exited
    raw = message[1]  # between core workers, behind the sender's address
    return HOT.get(raw[0]) or type(unpack(raw)).__name__


class Network:
    """One queue per ordered pair of processes; empty ones vanish."""

    def __init__(self) -> None:
        self.queues: dict[Pair, deque[Any]] = {}
        self.arrived: Counter[str] = Counter()  # messages of each kind
        self.cuts: dict[Pair, None] = {}  # machines: from, to
        self.machine_of: dict[bytes, bytes] = {}  # process → its machine
        self._sure: dict[Pair, int] = {}  # so many of the next messages arrive though their sender should die

    def send(self, source: bytes, target: bytes, message: Any) -> None:
        """Queue one message."""
        pair = (source, target)
        queue = self.queues.get(pair)
        if queue is None:
            queue = self.queues[pair] = deque()
        queue.append(message)

    def busy(self) -> list[Pair]:
        """Pairs with something in flight that can arrive."""
        if not self.cuts:
            return list(self.queues)
        return [pair for pair in self.queues if not self.is_cut(*pair)]

    def is_cut(self, source: bytes, target: bytes) -> bool:
        """Whether nothing gets from the one process to the other."""
        return (self.machine_of.get(source), self.machine_of.get(target)) in self.cuts

    def take(self, pair: Pair) -> Any:
        """The next message of that pair."""
        queue = self.queues[pair]
        message = queue.popleft()
        if not queue:
            del self.queues[pair]
        if pair in self._sure:
            self._sure[pair] -= 1
            if not self._sure[pair]:
                del self._sure[pair]
        self.arrived[kind_of(message)] += 1
        return message

    def forget(self, pair: Pair) -> list[Any]:
        """What was in flight there is lost."""
        self._sure.pop(pair, None)
        return list(self.queues.pop(pair, ()))

    def is_sure(self, pair: Pair) -> None:
        """The kernel has what is in flight there: see worker.link.reach_node."""
        if pair in self.queues:
            self._sure[pair] = len(self.queues[pair])

    def die(self, process: bytes, rng: random.Random, *, loses: bool) -> list[tuple[bytes, Any]]:
        """What was sent to it is lost, and, with ``loses``, the end of what it had sent. Returns the lost, each
        with its target."""
        lost: list[tuple[bytes, Any]] = []
        for pair in list(self.queues):
            if pair[1] == process:
                lost += [(process, message) for message in self.forget(pair)]
            elif pair[0] == process and loses:
                queue, sure = self.queues[pair], self._sure.get(pair, 0)
                while len(queue) > sure and queue[-1] is not EOF and rng.random() < 0.3:
                    lost.append((pair[1], queue.pop()))
                if not queue:
                    del self.queues[pair]
        return lost
