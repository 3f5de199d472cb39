"""The object store of a simulated machine: production's tables and clients, on memory and a disk that are ours.

    user code ── ProcessStore ── StoreClient ──▶ network ──▶ NodeService ── StoreAuthority ── ExtentTable
                     │ writes, reads                                             │ spill, restore, unspill
                     ▼                                                           ▼
                  Memory: segments as bytearrays                       SlowDisk: files as bytes, in simulated time

A world of one machine may have one, with so little memory that objects go to disk and come back. The disk is slow as
the dice say; it may be *full* for a while (nothing can be written), or *bad* (what is read then is lost). Every object
is filled with its own id: whoever reads something else has been given memory that is not the object's.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from minray.store.authority import StoreAuthority
from minray.store.client import Room, StoreClient
from minray.store.errors import SegmentGone
from minray.store.extents import ExtentTable
from minray.store.holds import Entry, Gone, Hold
from minray.testing.simulator.ledger import SimulationError
from minray.wire.messages import Location, Message

if TYPE_CHECKING:
    from minray.testing.simulator.node import Node
    from minray.testing.simulator.process import Process
    from minray.testing.simulator.user import Frame

KIB = 1 << 10
SIZES = (30_000, 60_000, 90_000, 140_000)
GRACE_S = 30.0  # of a pin, and of who waits for memory
DISK_S = (0.0, 0.0, 0.01, 0.3, 2.0)  # what one step of the disk may take
FINE, FULL, BAD = "fine", "full", "bad"


def filled_with(object_id: bytes, size: int) -> bytes:
    """What an object of that id and size contains."""
    return (object_id * (size // len(object_id) + 1))[:size]


class _Map:
    """One process's mapping of a segment: here everybody sees the same bytes."""

    def __init__(self, name: str, data: bytearray) -> None:
        self.name = name
        self.size = len(data)
        self._data = data

    def view(self, offset: int, length: int) -> memoryview:
        """See store.mapping."""
        return memoryview(self._data)[offset : offset + length].toreadonly()

    def write(self, offset: int, data: bytes) -> int:
        """See store.mapping."""
        self._data[offset : offset + len(data)] = data
        return len(data)

    def close(self) -> bool:
        """See store.mapping."""
        return True


class Memory:
    """Segments, by name: see store.segments."""

    spec = "simulated"

    def __init__(self) -> None:
        self._segments: dict[str, bytearray] = {}

    def create(self, name: str, size: int) -> None:
        """Make one."""
        assert name not in self._segments
        self._segments[name] = bytearray(size)

    def open(self, name: str, size: int, *, writable: bool = False) -> _Map:
        """Map it."""
        data = self._segments.get(name)
        if data is None:
            raise SegmentGone(f"{name} is gone")
        assert len(data) == size
        return _Map(name, data)

    def unlink(self, name: str) -> bool:
        """Its name is gone."""
        return self._segments.pop(name, None) is not None

    def list(self, prefix: str) -> list[str]:
        """All of them."""
        return sorted(name for name in self._segments if name.startswith(prefix))

    def free_bytes(self) -> None:
        """Nobody can tell."""

    def close(self) -> None:
        """Nothing is open."""


class Table(ExtentTable):
    """Production's; looks at each refusal."""

    def _refuse(self, request: Any, now: float) -> None:
        possible = self._book.least(request.size) <= self.capacity
        if possible and not self._disk_error:
            movable = [*self._catalog.spillable(), *self._catalog.evictable()]
            if movable or self._spills.writing:
                raise SimulationError(f"a store refuses {request.size} bytes while {len(movable)} objects can go")
        super()._refuse(request, now)


class SlowDisk:
    """What store.disk does, without threads: each step takes simulated time."""

    def __init__(self, node: Node, store: StoreAuthority) -> None:
        self.state = FINE
        self.files: dict[int, bytes] = {}
        self._node = node
        self._store = store
        self._table = store.table
        restorer = store.table.restorer_id
        self.restorer = StoreClient(
            cast(Any, store.segments),
            node_id=node.node_id,
            worker_id=restorer,
            send=lambda message: store.on_message(restorer, message, node.now()),
            clock=node.now,
        )
        store.attach_disk(self._perform, self.restorer.on_message)

    def _perform(self, effect: tuple[Any, ...]) -> None:
        kind, *rest = effect
        if kind == "unspill":
            del self.files[rest[0]]
        else:
            self._later(partial(self._write if kind == "spill" else self._reserve, *rest))

    def _later(self, step: Callable[[], None]) -> None:
        node = self._node

        def happen() -> None:
            step()
            self.restorer.drain()
            node.settle()

        node.sim.clock.later(node.sim.rng.choice(DISK_S), node.node_id, happen)

    def _write(self, number: int, objects: list[tuple[Any, ...]]) -> None:
        now, seen = self._node.now(), self._node.sim.ledger.seen
        if self.state == FULL:
            seen["disk full"] += 1
            self._store.do(self._table.spill_failed(number, "no space left on device", now), now)
            return
        data = b""
        for _, name, size, offset, length in objects:
            try:
                data += bytes(self._store.segments.open(name, size).view(offset, length))
            except SegmentGone:  # what was there is freed
                data += bytes(length)
        seen["spilled"] += len(objects)
        self.files[number] = data
        self._store.do(self._table.spilled(number, now), now)

    def _reserve(self, object_id: bytes, place: tuple[int, int], length: int) -> None:
        self.restorer.reserve(length, partial(self._reserved, object_id, place))

    def _reserved(self, object_id: bytes, place: tuple[int, int], room: Room | None, error: Exception | None) -> None:
        if room is None:
            self._failed(object_id, str(error), "full")
        else:
            self._table.read_began()
            self._later(partial(self._read, object_id, place, room))

    def _read(self, object_id: bytes, place: tuple[int, int], room: Room) -> None:
        self._table.read_ended(self._node.now())
        if not self._table.is_read_from(object_id, place):
            self.restorer.cancel(room)
        elif self.state == BAD:
            self._node.sim.ledger.seen["lost on disk"] += 1
            self.restorer.cancel(room)
            self._failed(object_id, "a bad block", "lost")
        else:
            number, offset = place
            room.map.write(room.offset, self.files[number][offset : offset + room.size])
            self._node.sim.ledger.seen["restored"] += 1
            self.restorer.fill(room, object_id, b"")

    def _failed(self, object_id: bytes, reason: str, kind: str) -> None:
        now = self._node.now()
        self._store.do(self._table.restore_failed(object_id, reason, kind, now), now)


class NodeStore(StoreAuthority):
    """A machine's store of so many bytes, with its disk."""

    def __init__(self, node: Node, capacity: int) -> None:
        table = Table(
            capacity,
            node_id=node.node_id,
            prefix=f"sim{node.name}-",
            extent_size=256 * KIB,
            grace_s=GRACE_S,
        )
        super().__init__(table, cast(Any, Memory()), node.send)
        self.disk = SlowDisk(node, self)

    def check_rest(self) -> None:
        """Nobody has objects: nothing is left of any, here and on disk."""
        left = list(self.table._catalog.objects.values())
        stats = self.table.stats()
        if left or stats.pinned_bytes or stats.waiting or self.disk.files:
            raise SimulationError(f"the store has something left: {left[:1]}, {stats}, files {list(self.disk.files)}")


class ProcessStore:
    """A process's end of it: a real client, and what user code does with it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._sim = process.sim
        node_id = process.node.node_id
        self.client = StoreClient(
            cast(Any, process.node.store.segments),
            node_id=node_id,
            worker_id=process.worker_id,
            send=lambda message: self._sim.network.send(process.worker_id, node_id, message),
            clock=lambda: self._sim.clock.now,
        )

    def takes(self, message: Message) -> bool:
        """Whether it is for the client; then it has it."""
        if not isinstance(message, self.client.messages):
            return False
        self.client.on_message(message)
        return True

    def write(self, frame: Frame, object_id: bytes) -> Generator[None, None, Location | None]:
        """A new object, private to this process. None: there is no room for it."""
        size = frame.rng.choice(SIZES)
        room = yield from self._room(frame, size)
        if room is None:
            self._sim.ledger.seen["store full"] += 1
            return None
        room.map.write(room.offset, filled_with(object_id, size))
        self._sim.ledger.made(object_id, size)
        entry = Entry(object_id, (room.segment_id, room.offset, size), room.map, mine=True)
        self.client._written[room.segment_id, room.offset] = entry  # what StoreClient.write does in one go
        return (self._process.node.node_id, room.segment_id, room.offset, size)

    def _room(self, frame: Frame, size: int) -> Generator[None, None, Room | None]:
        answer: list[Room | None] = []
        wanted = [True]

        def done(room: Room | None, error: Exception | None) -> None:
            answer.append(room)
            if room is not None and not (wanted[0] and frame.open):
                self.client.cancel(room)

        self.client.reserve(size, done)
        try:
            yield from frame.until_memory(lambda: bool(answer))
        except Exception:  # it is cancelled
            wanted[0] = False
            if answer and answer[0] is not None:
                self.client.cancel(answer[0])
            raise
        return answer[0]

    def read(self, frame: Frame, object_id: bytes, location: Location) -> Generator[None, None, bool]:
        """Look at an object, and keep the view; False: it cannot be had."""
        answer: list[Hold | Gone] = []
        wanted = [True]

        def done(held: list[Hold | Gone], error: Exception | None) -> None:
            answer.extend(held)
            if isinstance(held[0], Hold):
                if wanted[0] and frame.open:
                    frame.views.append(held[0])
                else:
                    held[0].release()

        self.client.acquire_async([(object_id, location)], done)
        try:
            yield from frame.until_memory(lambda: bool(answer))
        finally:
            wanted[0] = False
        hold = answer[0]
        if isinstance(hold, Gone):
            self._sim.judge.unreadable(self._process, object_id, hold)
            return False
        if hold.view is not None:
            size = len(hold.view)  # perhaps of a later making than the owner's
            if size not in self._sim.ledger.makings[object_id] or hold.view != filled_with(object_id, size):
                raise SimulationError(f"{self._process} reads something else where {object_id.hex()} should be")
        return True

    def check_invariants(self) -> None:
        """The client's books agree."""
        self.client.check_invariants()
