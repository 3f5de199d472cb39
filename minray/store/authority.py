"""The effects side of ``ExtentTable``: creates and unlinks segments, sends messages. For ``node.service``.

One per node, on the reactor's thread. The service forwards to it the store messages of its core workers and
their deaths, and calls ``tick`` at ``next_deadline()``. Effects are performed in order. When a segment
cannot be made, its requester gets an ExtentRefused instead of the grant that would have followed.

Where there are other nodes, ``attach`` adds who moves objects between them: the node's own client, a process
like the others but for its messages, which need no connection; and ``moves``, which takes the effects that are
about other nodes. Both are called when a step's effects have been performed, and may call back. In the same way
``attach_disk`` adds who moves objects to disk and back (``disk.Disk``): it takes the effects about files, and the
messages for the restorer, its client.

Invariants: no grant leaves before its segment exists; while somebody waits for memory, neither the own client
keeps an empty extent nor is there a guest that nobody reads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from minray.store.extents import Effect, ExtentTable, StoreStats
from minray.store.segments import Segments
from minray.wire.messages import ExtentGrant, Message, Trim, Trimmed

Send = Callable[[bytes, Message], None]


class StoreAuthority:
    """``send(worker_id, message)`` must drop what is for a process that is gone."""

    def __init__(self, table: ExtentTable, segments: Segments, send: Send) -> None:
        self.table = table
        self.segments = segments
        self._send = send
        self._own = b""  # the id of the node's own client
        self._to_own: Callable[[Message], None] = lambda message: None
        self._moves: Callable[[Effect], None] = lambda effect: None
        self._disk: Callable[[Effect], None] = lambda effect: None
        self._to_restorer: Callable[[Message], None] = lambda message: None
        self._later: deque[Callable[[], None]] = deque()
        self._busy = False

    def attach(
        self, own: bytes, to_own: Callable[[Message], None], moves: Callable[[Effect], None]
    ) -> None:
        """There may be other nodes. ``own``: the node's id; ``to_own``: takes messages for its own client."""
        self.table.others = True
        self._own, self._to_own, self._moves = own, to_own, moves

    def attach_disk(self, disk: Callable[[Effect], None], to_restorer: Callable[[Message], None]) -> None:
        """What does not fit into memory may go to files."""
        self.table.spills = True
        self._disk, self._to_restorer = disk, to_restorer

    def on_message(self, worker: bytes, message: Message, now: float) -> None:
        """A store message of a core worker. ProtocolError if it breaks the rules: close its connection."""
        effects = self.table.handle(worker, message, now)
        if worker == self._own and isinstance(message, Trimmed):  # to the Trim that ``do`` has sent it
            self._perform(effects, now)
            if not self._busy:
                self._follow_up()
        else:
            self.do(effects, now)

    def process_died(self, worker: bytes, now: float) -> None:
        """A core worker (or driver) is gone."""
        self.do(self.table.process_died(worker, now), now)

    def tick(self, now: float) -> float | None:
        """Do what is due; returns when to call again, or None."""
        deadline = self.table.next_deadline()
        if deadline is not None and deadline <= now:
            self.do(self.table.tick(now), now)
        return self.table.next_deadline()

    def next_deadline(self) -> float | None:
        """When ``tick`` wants to be called; ask after every call of the others."""
        return self.table.next_deadline()

    @property
    def reserved(self) -> int:
        """Bytes of objects, and of the room that writers have borrowed for more."""
        return self.table.reserved

    def stats(self) -> StoreStats:
        """How full, and with what."""
        return self.table.stats()

    def shutdown(self) -> None:
        """Unlink every segment and close the journal. Mappings of other processes stay valid."""
        self._perform(self.table.shutdown(), 0.0)
        self._later.clear()
        self.segments.close()

    def do(self, effects: list[Effect], now: float) -> None:
        """Perform what the table wants, and what follows from it."""
        self._perform(effects, now)
        if self._busy:
            return
        self._busy = True
        try:
            self._follow_up()
            while self._own and self.table.is_short:
                self._to_own(Trim())
                self._follow_up()
                evicted = self.table.evict(now)
                if not evicted:
                    break
                self._perform(evicted, now)
                self._follow_up()
        finally:
            self._busy = False

    def _follow_up(self) -> None:
        while self._later:
            self._later.popleft()()

    def _perform(self, effects: list[Effect], now: float) -> None:
        todo = deque(effects)
        failed: set[int] = set()
        while todo:
            effect = todo.popleft()
            kind = effect[0]
            if kind == "send":
                message = effect[2]
                if not (isinstance(message, ExtentGrant) and message.segment_id in failed):
                    self._deliver(effect[1], message)
            elif kind == "create":
                try:
                    self.segments.create(effect[2], effect[3])
                except OSError as error:
                    failed.add(effect[1])
                    todo.extend(self.table.create_failed(effect[1], str(error), now))
            elif kind == "unlink":
                self.segments.unlink(effect[2])
            else:
                perform = self._disk if kind in ("spill", "restore", "unspill") else self._moves
                self._later.append(partial(perform, effect))

    def _deliver(self, worker: bytes, message: Message) -> None:
        if self._own and worker == self._own:
            self._later.append(partial(self._to_own, message))
        elif worker == self.table.restorer_id:
            self._later.append(partial(self._to_restorer, message))
        else:
            self._send(worker, message)
