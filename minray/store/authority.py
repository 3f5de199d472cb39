"""The effects side of ``ExtentTable``: creates and unlinks segments, sends messages. For ``node.service``.

One per node, on the reactor's thread. The service forwards to it the store messages of its core workers and
their deaths, and calls ``tick`` at ``next_deadline()``. Effects are performed in order. When a segment
cannot be made, its requester gets an ExtentRefused instead of the grant that would have followed.

Invariant: no grant leaves before its segment exists.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from minray.store.extents import Effect, ExtentTable, StoreStats
from minray.store.segments import Segments
from minray.wire.messages import ExtentGrant, Message

Send = Callable[[bytes, Message], None]


class StoreAuthority:
    """``send(worker_id, message)`` must drop what is for a process that is gone."""

    def __init__(self, table: ExtentTable, segments: Segments, send: Send) -> None:
        self.table = table
        self._segments = segments
        self._send = send

    def on_message(self, worker: bytes, message: Message, now: float) -> None:
        """A store message of a core worker. ProtocolError if it breaks the rules: close its connection."""
        self._perform(self.table.handle(worker, message, now), now)

    def process_died(self, worker: bytes, now: float) -> None:
        """A core worker (or driver) is gone."""
        self._perform(self.table.process_died(worker, now), now)

    def tick(self, now: float) -> float | None:
        """Do what is due; returns when to call again, or None."""
        deadline = self.table.next_deadline()
        if deadline is not None and deadline <= now:
            self._perform(self.table.tick(now), now)
        return self.table.next_deadline()

    def next_deadline(self) -> float | None:
        """When ``tick`` wants to be called; ask after every call of the others."""
        return self.table.next_deadline()

    def stats(self) -> StoreStats:
        """How full, and with what."""
        return self.table.stats()

    def shutdown(self) -> None:
        """Unlink every segment and close the journal. Mappings of other processes stay valid."""
        self._perform(self.table.shutdown(), 0.0)
        self._segments.close()

    def _perform(self, effects: list[Effect], now: float) -> None:
        todo = deque(effects)
        failed: set[int] = set()
        while todo:
            effect = todo.popleft()
            kind = effect[0]
            if kind == "send":
                message = effect[2]
                if not (isinstance(message, ExtentGrant) and message.segment_id in failed):
                    self._send(effect[1], message)
            elif kind == "create":
                try:
                    self._segments.create(effect[2], effect[3])
                except OSError as error:
                    failed.add(effect[1])
                    todo.extend(self.table.create_failed(effect[1], str(error), now))
            elif kind == "unlink":
                self._segments.unlink(effect[2])
            else:
                raise AssertionError(f"unknown effect {effect!r}")
