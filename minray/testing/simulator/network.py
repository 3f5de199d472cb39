"""Messages in flight between simulated processes: in order per pair, in any order between pairs.

Owned by the simulation, which chooses the pair whose next message arrives. A process that dies loses what
was sent to it, and perhaps the end of what it had sent.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any

Pair = tuple[bytes, bytes]


class Network:
    """One queue per ordered pair of processes; empty ones vanish."""

    def __init__(self) -> None:
        self.queues: dict[Pair, deque[Any]] = {}

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
        return message

    def forget(self, pair: Pair) -> list[Any]:
        """What was in flight there is lost."""
        return list(self.queues.pop(pair, ()))

    def die(self, process: bytes, rng: random.Random, *, loses: bool) -> list[Any]:
        """What was sent to it is lost, and, with ``loses``, the end of what it had sent. Returns the lost."""
        lost: list[Any] = []
        for pair in list(self.queues):
            if pair[1] == process:
                lost += self.forget(pair)
            elif pair[0] == process and loses:
                queue = self.queues[pair]
                while queue and rng.random() < 0.3:
                    lost.append(queue.pop())
                if not queue:
                    del self.queues[pair]
        return lost
