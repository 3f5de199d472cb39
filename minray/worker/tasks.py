"""The records behind tasks: what a submitter knows of its functions, tasks, leases and keys.

Owned by worker.owner (ordinary tasks) and worker.actor_calls (calls of actors). Slotted, because a
driver may have a million of them outstanding.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from minray.wire.messages import Address, Resources

# result statuses on the wire (see messages.RESULTS); 1 to 3 equal the object statuses of references
INLINE, STORED, ERROR, MULTI, RETRY, ITEM, END = 1, 2, 3, 4, 5, 6, 7

CHAIN_TOLD = 8  # so many of the tasks that failed one after the other are named in an error

STREAMING = -1  # num_returns of a streaming generator
DYNAMIC = -2


class Function:
    """One exported function under one set of options, as its owner submits it."""

    __slots__ = (
        "backpressure",
        "blob",
        "function_id",
        "key",
        "max_calls",
        "max_retries",
        "meta",
        "name",
        "num_returns",
        "options",
    )

    def __init__(
        self,
        function_id: int,
        blob: bytes,
        name: str,
        key: SchedulingKey,
        *,
        num_returns: int,
        max_retries: int,
        max_calls: int,
        meta: dict[str, Any],
        options: Any = None,
    ) -> None:
        self.function_id = function_id
        self.blob = blob
        self.name = name
        self.key = key
        self.num_returns = num_returns
        self.max_retries = max_retries
        self.max_calls = max_calls
        self.meta = meta  # built-ins; travels beside the blob
        self.options = options  # what was written, for who submits it elsewhere

    def under(self, key: SchedulingKey) -> Function:
        """The same function, for tasks of another key."""
        return Function(
            self.function_id, self.blob, self.name, key,
            num_returns=self.num_returns, max_retries=self.max_retries, max_calls=self.max_calls, meta=self.meta,
            options=self.options,
        )  # fmt: skip


class Task:
    """One submitted call, until its results are there."""

    __slots__ = (
        "actor",
        "attempt",
        "cancelled",
        "error",
        "extra",
        "function",
        "lease",
        "nested",
        "num_returns",
        "parent",
        "payload",
        "retries",
        "seq",
        "stream",
        "top",
        "unresolved",
    )

    def __init__(
        self,
        seq: int,
        function: Any,
        payload: Any,
        extra: dict[str, Any] | None,
        num_returns: int,
        retries: int,
    ) -> None:
        self.seq = seq
        self.attempt = 0
        self.function = function  # Function, or the method's name
        self.payload = payload
        self.extra = extra
        self.num_returns = num_returns
        self.retries = retries  # left; -1: for ever
        self.nested: tuple[bytes, ...] = ()  # held until the reply
        self.top: list[Any] | None = None  # top-level references: (position or name, id)
        self.unresolved = 0
        self.error: Any = None  # of a dependency: the body never runs
        self.lease: Lease | None = None
        self.actor: Any = None
        self.cancelled = False
        self.stream: Stream | None = None
        self.parent: Any = None  # the Running that submitted it, in a worker

    @property
    def name(self) -> str:
        """What messages and log lines call it."""
        function = self.function
        return function if isinstance(function, str) else str(function.name)

    def spec(self) -> tuple[Any, ...]:
        """As it travels in TASKS and CALLS."""
        function = self.function
        wire_name = function if isinstance(function, str) else function.function_id
        return (self.seq, self.attempt, wire_name, self.payload, self.extra)


def failed_dependency(name: str, cause: Any) -> Any:
    """The error value of a task whose argument failed for ``cause``. Of a long chain it names the last tasks and
    the first cause: a value as deep as the chain could neither be sent nor be raised."""
    names = [name]
    while cause[0] == "dependency":
        names.append(cause[1])
        cause = cause[2]
    for one in reversed(names[:CHAIN_TOLD]):
        cause = ("dependency", one, cause)
    return cause


class Stream:
    """A streaming generator at its owner: how far it is, and who waits for the next item."""

    __slots__ = ("abandoned", "consumed", "outcome", "produced", "seq", "total", "waiters")

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.produced = 0  # items that have arrived, in order
        self.consumed = 0  # items handed to the user
        self.total: int | None = None  # known at the end
        self.outcome: tuple[int, Any] | None = None  # status and value of ``completed()``, at the end
        self.waiters: list[Any] = []
        self.abandoned = False  # its ObjectRefGenerator is gone

    def ended(self) -> bool:
        """Whether the user has seen all there is."""
        return self.total is not None and self.consumed >= self.total


Death = tuple[tuple[int, int] | None, dict[str, Any]]  # (seq, attempt) that ran last, or unknown; the cause


class Lease:
    """A worker that serves this owner, for one scheduling key."""

    __slots__ = (
        "broken",
        "closed",
        "death",
        "doomed",
        "doubted_since",
        "idle_since",
        "inflight",
        "key",
        "lease_no",
        "stealing",
        "warned",
        "worker",
    )

    def __init__(self, lease_no: int, worker: Address, key: SchedulingKey, now: float) -> None:
        self.lease_no = lease_no
        self.worker = worker
        self.key = key
        self.inflight: dict[int, Task] = {}  # in the order of dispatch
        self.closed = False  # the worker waits inside the runtime, or is to end: send nothing
        self.broken = False  # its connection is gone; Died will follow
        self.death: Death | None = None  # it is dead
        self.doubted_since: float | None = None  # since when broken without death, or dead but not broken
        self.warned = False  # its node was asked to end the worker, because we cannot reach it
        self.doomed: set[int] | None = None  # to be killed for, as soon as they are the first in flight
        self.stealing = False
        self.idle_since = now


class Elsewhere:
    """What another node was asked for, for one key."""

    __slots__ = ("asked", "declined", "hold")

    def __init__(self) -> None:
        self.asked = 0  # workers wanted there, as the last LeaseDemand said, less what it has declined since
        self.declined = 0  # in all, as far as we have heard
        self.hold = False  # to be queued there


class SchedulingKey:
    """Tasks that may share workers: equal resources, strategy, environment and depth."""

    __slots__ = (
        "again",
        "ask_timer",
        "asking",
        "avg_ns",
        "depth",
        "description",
        "elsewhere",
        "env_vars",
        "idle_timer",
        "leases",
        "number",
        "pause",
        "pipelined",
        "queue",
        "resources",
        "resting",
        "retires",
        "spilled",
        "steal_timer",
        "strategy",
        "told",
        "unfinished",
    )

    def __init__(
        self,
        number: int,
        resources: Resources,
        strategy: Any,
        env_vars: dict[str, str],
        depth: int,
        description: str,
        *,
        pipelined: bool,
        retires: bool = False,
        again: bool = True,
    ) -> None:
        self.number = number
        self.resources = resources
        self.strategy = strategy
        self.env_vars = env_vars
        self.depth = depth
        self.description = description
        self.pipelined = pipelined  # not for max_calls and GPU tasks
        self.retires = retires  # max_calls: a worker that ends its lease is done for good
        self.again = again  # its tasks have retries
        self.queue: deque[Task] = deque()
        self.leases: dict[int, Lease] = {}
        self.unfinished = 0  # queued here or in flight
        self.told = 0  # what the last LeaseDemand said; -1: to be said again
        self.spilled = 0  # workers, in all, that our node does not count because of its LeaseSpills
        self.elsewhere: dict[bytes, Elsewhere] = {}  # by node
        self.asking: dict[bytes, Elsewhere] = {}  # those that were asked for workers, and have not refused all
        self.avg_ns = -1.0  # running time of these tasks, smoothed; -1: unknown
        self.resting = 0  # workers that were declined, and are not asked for before ``ask_timer``
        self.pause = 0.0  # how long that takes
        self.ask_timer = False
        self.idle_timer = False
        self.steal_timer = False

    def under(self, number: int, strategy: Any) -> SchedulingKey:
        """A key for the same kind of tasks, but with another strategy."""
        return SchedulingKey(
            number, self.resources, strategy, self.env_vars, self.depth, self.description,
            pipelined=self.pipelined, retires=self.retires, again=self.again,
        )  # fmt: skip

    def pipeline(self, limit: int) -> int:
        """How many tasks a worker may have: about two milliseconds' worth."""
        if not self.pipelined or self.avg_ns < 0:
            return 1
        return max(1, min(limit, int(2e6 / (self.avg_ns + 1.0))))
