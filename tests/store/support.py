"""A node's store and its clients in one thread: messages travel when the test says so.

``World`` holds one ``StoreAuthority`` and any number of ``StoreClient``s over real segments. What they send
waits in a queue per direction and client, in order, until ``deliver`` (one message) or ``settle`` (all).
A client that waits lets the world go on; if nothing is under way, time jumps to the next deadline, and if
there is none, the wait would be endless: the test fails.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from minray._base.clock import ManualClock
from minray.store.authority import StoreAuthority
from minray.store.client import Room, StoreClient
from minray.store.errors import SegmentGone
from minray.store.extents import ExtentTable
from minray.store.segments import Segments
from minray.wire.messages import LeftBehind, Message

NODE = b"n" * 28
KIB, MIB = 1 << 10, 1 << 20


class _Waits:
    def __init__(self, world: World) -> None:
        self.world = world

    def make(self) -> list[bool]:
        return [False]

    def notify(self, waiter: list[bool]) -> None:
        waiter[0] = True

    def wait(self, waiter: list[bool], timeout: float | None) -> bool:
        deadline = None if timeout is None else self.world.clock.monotonic() + timeout
        while not waiter[0]:
            if self.world.deliver():
                continue
            moment = self.world.authority.next_deadline()
            if deadline is not None and (moment is None or moment > deadline):
                self.world.advance_to(deadline)
                return waiter[0]
            assert moment is not None, "this wait would never end"
            self.world.advance_to(moment)
        return True


class World:
    """See the module."""

    def __init__(
        self,
        segments: Segments,
        *,
        capacity: int = 16 * MIB,
        extent_size: int = MIB,
        grace_s: float = 10.0,
        seed: int | None = None,
        spills: bool = False,
        disk: type[SimDisk] | None = None,
    ) -> None:
        self.clock = ManualClock(1000.0)
        self.segments = segments
        self.table = ExtentTable(
            capacity,
            node_id=NODE,
            prefix=f"mrt{os.urandom(4).hex()}-",
            extent_size=extent_size,
            grace_s=grace_s,
        )
        self.authority = StoreAuthority(self.table, segments, self._to_client)
        self.clients: dict[bytes, StoreClient] = {}
        self.to_node: dict[bytes, deque[Message]] = {}
        self.to_client: dict[bytes, deque[Message]] = {}
        self.log: list[tuple[str, Message]] = []
        self._random = None if seed is None else random.Random(seed)
        self.disk = (disk or SimDisk)(self) if spills else None

    def client(self, name: str, **options: Any) -> StoreClient:
        """A new process."""
        return self._client(name.encode().ljust(28, b"."), **options)

    def _client(self, worker_id: bytes, **options: Any) -> StoreClient:
        self.to_node[worker_id] = deque()
        self.to_client[worker_id] = deque()
        made = StoreClient(
            self.segments,
            node_id=NODE,
            worker_id=worker_id,
            send=lambda message: self.to_node[worker_id].append(message),
            waits=_Waits(self),
            clock=self.clock.monotonic,
            **options,
        )
        self.clients[worker_id] = made
        return made

    def kill(self, client: StoreClient, lost: int = 0) -> None:
        """The process dies; what it sent still arrives, but for the last ``lost`` messages."""
        worker_id = client._worker_id
        for _ in range(min(lost, len(self.to_node[worker_id]))):
            self.to_node[worker_id].pop()
        self.flush(client)
        del self.clients[worker_id], self.to_node[worker_id], self.to_client[worker_id]
        self.authority.process_died(worker_id, self.clock.monotonic())
        client.close()

    def flush(self, client: StoreClient) -> None:
        """What this client has sent arrives."""
        while self.to_node.get(client._worker_id):
            self._deliver_to_node(client._worker_id)

    def deliver(self) -> bool:
        """One message, of a random queue if there is a seed, arrives; False if there is none."""
        queues = [(w, True) for w, q in self.to_node.items() if q]
        queues += [(w, False) for w, q in self.to_client.items() if q]
        if self.disk is not None and self.disk.is_ready():
            queues.append((b"disk", False))
        if not queues:
            return False
        worker_id, to_node = queues[0] if self._random is None else self._random.choice(queues)
        if worker_id == b"disk":
            assert self.disk is not None
            self.disk.step()
        elif to_node:
            self._deliver_to_node(worker_id)
        else:
            self.clients[worker_id].on_message(self.to_client[worker_id].popleft())
        return True

    def settle(self) -> None:
        """All messages arrive."""
        for client in list(self.clients.values()):
            client.drain()
        while self.deliver():
            for client in list(self.clients.values()):
                client.drain()

    def advance_to(self, moment: float) -> None:
        """Time passes."""
        self.clock.advance_to(max(moment, self.clock.monotonic()))
        self.authority.tick(self.clock.monotonic())

    def check(self) -> None:
        """All invariants."""
        self.table.check_invariants()
        for client in self.clients.values():
            client.check_invariants()

    def close(self) -> None:
        """The session ends."""
        if self.disk is not None:
            self.disk.closed = True
        self.authority.shutdown()
        for client in self.clients.values():
            client.close()

    def _deliver_to_node(self, worker_id: bytes) -> None:
        message = self.to_node[worker_id].popleft()
        self.log.append(("node", message))
        self.authority.on_message(worker_id, message, self.clock.monotonic())

    def _to_client(self, worker_id: bytes, message: Message) -> None:
        self.log.append(("client", message))
        if worker_id in self.to_client and not isinstance(message, LeftBehind):  # that is for its owner: worker.strays
            self.to_client[worker_id].append(message)


class SimDisk:
    """What ``store.disk`` does, with dicts for files. Each step waits in ``todo`` until the world lets it happen.

    ``broken``: a reason for which writing fails; ``lost``: a reason for which reading does.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.table = world.table
        self.files: dict[int, bytes] = {}
        self.todo: deque[Callable[[], None]] = deque()
        self.broken = self.lost = ""
        self.closed = False
        self.writes: list[list[bytes]] = []  # the objects of each file that was written
        restorer = self.table.restorer_id
        self.restorer = world._client(restorer)
        world.authority.attach_disk(self.perform, lambda message: world._to_client(restorer, message))

    def perform(self, effect: Any) -> None:
        kind, *rest = effect
        if kind == "unspill":
            del self.files[rest[0]]
        else:
            self.later(partial(self._write if kind == "spill" else self._reserve, *rest))

    def later(self, job: Callable[[], None]) -> None:
        """When the world lets it happen."""
        self.todo.append(job)

    def is_ready(self) -> bool:
        """Whether there is something to do now."""
        return bool(self.todo)

    def step(self) -> None:
        """Do one thing."""
        self.todo.popleft()()

    def _write(self, number: int, objects: list[tuple[Any, ...]]) -> None:
        now = self.world.clock.monotonic()
        if self.broken:
            self.world.authority.do(self.table.spill_failed(number, self.broken, now), now)
            return
        data = b""
        for _, name, size, offset, length in objects:
            try:
                segment = self.world.segments.open(name, size)
            except SegmentGone:  # what was there is freed
                data += bytes(length)
                continue
            data += bytes(segment.view(offset, length))
            segment.close()
        self.files[number] = data
        self.writes.append([one[0] for one in objects])
        self.world.authority.do(self.table.spilled(number, now), now)

    def _reserve(self, oid: bytes, place: tuple[int, int], length: int) -> None:
        self.restorer.reserve(length, lambda room, error: self._reserved(oid, place, room, error))

    def _reserved(self, oid: bytes, place: tuple[int, int], room: Room | None, error: Exception | None) -> None:
        if self.closed:
            return
        if room is None:
            now = self.world.clock.monotonic()
            self.world.authority.do(self.table.restore_failed(oid, str(error), "full", now), now)
        else:
            self.table.read_began()
            self.later(lambda: self._read(oid, place, room))

    def _read(self, oid: bytes, place: tuple[int, int], room: Room) -> None:
        self.table.read_ended(self.world.clock.monotonic())
        if not self.table.is_read_from(oid, place):
            self.restorer.cancel(room)
        elif self.lost:
            self.restorer.cancel(room)
            now = self.world.clock.monotonic()
            self.world.authority.do(self.table.restore_failed(oid, self.lost, "lost", now), now)
        else:
            number, offset = place
            room.map.write(room.offset, self.files[number][offset : offset + room.size])
            self.restorer.fill(room, oid, b"")


def object_id(number: int, owner: bytes = b"o" * 28, job: int = 1) -> bytes:
    """A well-formed id of an object of ``owner`` (a worker id)."""
    return owner[:12] + number.to_bytes(8, "big") + job.to_bytes(4, "big") + bytes(4)


def pattern(number: int, size: int) -> bytes:
    """What object ``number`` contains."""
    unit = (number * 2654435761 % (1 << 32)).to_bytes(4, "big") + number.to_bytes(4, "big")
    return (unit * (size // 8 + 1))[:size]
