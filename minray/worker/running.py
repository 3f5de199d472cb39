"""What runs where in a worker: one Running per call in progress, found by a context variable.

Threads that user code starts have an empty context; for them the process's latest call stands in.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from minray.wire.messages import Address


class Running:
    """One call in progress."""

    __slots__ = (
        "attempt",
        "blocked_threads",
        "cancelled",
        "consumed",
        "extra",
        "meta",
        "method",
        "owner",
        "seq",
        "task",
        "waiter",
    )

    def __init__(
        self, owner: Address, seq: int, attempt: int, meta: dict[str, Any], method: str, extra: Any
    ) -> None:
        self.owner = owner
        self.seq = seq
        self.attempt = attempt
        self.meta = meta  # of the function; of the actor for its calls
        self.method = method  # "" for a task
        self.extra: dict[str, Any] = extra or {}
        self.cancelled = False
        self.blocked_threads = 0  # of a task: how many of its threads wait inside the runtime
        self.task: Any = None  # the asyncio task, in asyncio actors
        self.consumed = 0  # of a streaming generator with backpressure
        self.waiter: Any = None  # whoever waits for ``consumed`` to grow

    @property
    def num_returns(self) -> int:
        """1, n, STREAMING or DYNAMIC."""
        if self.method:
            return int(self.extra.get("n", 1))
        return int(self.meta["n"])


RUNNING: ContextVar[Running | None] = ContextVar("minray_running", default=None)
