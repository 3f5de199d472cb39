"""The store that moves objects to disk, on walks of a seed: nobody waits for anybody, all is under way at once.

Where ``test_spilling_random`` does one thing after the other, here every wait is a callback: several readers and
writers are in the middle of something while others die, objects are freed while they are written or read, requests are
parked. The disk takes seconds for a step, in any order; it is full for a while, and forgets.

After every step: the invariants of table and clients, every view's bytes, every file's bytes, nothing that is read was
moved. At rest: nobody waits, nothing is lost but what the disk has forgotten, nothing is left.
"""

from __future__ import annotations

import collections
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from minray.store.admission import DISK_AGAIN_S
from minray.store.client import Room, StoreClient
from minray.store.errors import StoreClosed, StoreFull, StoreWouldBlock
from minray.store.holds import Gone, Hold
from minray.store.segments import choose
from tests.store.support import KIB, SimDisk, World, object_id
from tests.store.test_store_random import _Object, _View

SEEDS = max(60, int(os.environ.get("MINRAY_TEST_SEEDS", "60")) // 10)  # one costs 0.2 s: its objects have real bytes
STEPS = int(os.environ.get("MINRAY_TEST_STEPS", "200"))
PARTS = 4  # of the seeds, a test each
CAPACITY = 640 * KIB
PATIENCE = 3000  # moments until whoever still waits is stuck


class SlowDisk(SimDisk):
    """``pace``: seconds that a step takes at most."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.pace = 0.0
        self.random = random.Random(0)
        self.under_way: list[tuple[float, Callable[[], None]]] = []
        self.forgot: set[bytes] = set()

    def later(self, job: Callable[[], None]) -> None:
        self.under_way.append((self.world.clock.monotonic() + self.random.uniform(0, self.pace), job))

    def is_ready(self) -> bool:
        return any(due <= self.world.clock.monotonic() for due, _ in self.under_way)

    def step(self) -> None:
        ready = [one for one in self.under_way if one[0] <= self.world.clock.monotonic()]
        chosen = self.random.choice(ready)
        self.under_way.remove(chosen)
        chosen[1]()

    def next_moment(self) -> float | None:
        """When something may be ready."""
        return min((due for due, _ in self.under_way), default=None)

    def _read(self, oid: bytes, place: tuple[int, int], room: Room) -> None:
        if self.lost and self.table.is_read_from(oid, place):
            self.forgot.add(oid)
        super()._read(oid, place, room)


class Walk:
    """One seed. ``seen`` counts what happened, over all of them."""

    def __init__(self, seed: int, folder: str, seen: collections.Counter[str]) -> None:
        self.random = random.Random(seed)
        self.seen = seen
        self.world = World(
            choose("auto", folder),
            capacity=CAPACITY,
            extent_size=128 * KIB,
            grace_s=self.random.choice([0.0, 1.0, 10.0]),
            seed=seed,
            spills=True,
            disk=SlowDisk,
        )
        assert isinstance(self.world.disk, SlowDisk)
        self.disk = self.world.disk
        self.hasty = self.random.random() < 0.3
        self.disk.random = self.random
        self.table = self.world.table
        self._watch_refusals()
        self.clients: list[StoreClient] = []
        self.objects: list[_Object] = []
        self.views: list[tuple[StoreClient, _View]] = []
        self.rooms: list[tuple[StoreClient, Room, _Object]] = []  # granted, not filled yet
        self.waiting = 0
        self.count = 0
        self.ending = False
        self.spawn()
        self.spawn()

    # --- what may be said -------------------------------------------------------------------------------

    def _watch_refusals(self) -> None:
        table, refuse = self.table, self.table._refuse

        def checked(request: Any, now: float) -> None:
            """Not while something can go, or while the disk is at it."""
            self.seen["refused"] += 1
            if table._book.least(request.size) <= table.capacity:
                assert not table._spills.writing and not table._spills.reads
                assert not list(table._catalog.evictable())
                assert table._disk_error or not list(table._catalog.spillable())
            refuse(request, now)

        table._refuse = checked  # type: ignore[method-assign]

    def missing(self, what: _Object, gone: Gone) -> None:
        self.seen["gone: " + gone.kind] += 1
        if gone.kind == "lost":
            assert what.id in self.disk.forgot, gone
        elif gone.kind == "full":
            assert not self.ending, f"{gone} though nobody reads and the disk is well"
        else:
            late = self.hasty and "never reported" in gone.reason  # its writer froze
            assert what not in self.objects or what.writer not in self.clients or late, gone

    # --- steps ------------------------------------------------------------------------------------------

    def step(self) -> None:
        kinds = [
            (self.make, 16), (self.put, 8), (self.finish, 16), (self.make_again, 2), (self.want, 16),
            (self.look_away, 24), (self.narrow, 2), (self.free, 5), (self.spawn, 2), (self.kill, 0.7),
            (self.disk_changes, 2), (self.time_passes, 10), (self.deliver, 40), (self.tidy, 6),
        ]  # fmt: skip
        (chosen,) = self.random.choices([kind for kind, _ in kinds], [weight for _, weight in kinds])
        chosen()
        self.check()

    def spawn(self) -> None:
        if len(self.clients) < 4:
            self.count += 1
            self.clients.append(self.world.client(f"p{self.count}"))

    def _size(self) -> int:
        some = self.random.randrange(1, 220_000)
        return self.random.choice([1, 100, 3000, 60 * KIB, 100 * KIB, 150 * KIB, 200 * KIB, some])

    def _new(self, writer: StoreClient, owner: StoreClient, size: int) -> _Object:
        self.count += 1
        made = _Object(self.count, size, writer, owner, None)
        made.id = object_id(self.count, owner._worker_id)
        return made

    def make(self) -> None:
        """Room is asked for; its bytes come later (see ``finish``)."""
        writer = self.random.choice(self.clients)
        self._reserve(writer, self._new(writer, self.random.choice(self.clients), self._size()))

    def _reserve(self, writer: StoreClient, what: _Object) -> None:
        def done(room: Room | None, error: Exception | None) -> None:
            self.waiting -= 1
            if room is not None:
                self.rooms.append((writer, room, what))
            else:
                assert isinstance(error, StoreFull | StoreClosed), error

        self.waiting += 1
        writer.reserve(what.size, done)

    def finish(self) -> None:
        """Write into a room and report it, or give it up."""
        if not self.rooms:
            return
        writer, room, what = self.rooms.pop(self.random.randrange(len(self.rooms)))
        again = what.location is not None
        if what.owner not in self.clients or (again and what not in self.objects) or self.random.random() < 0.1:
            writer.cancel(room)
            return
        if again:
            self.world.flush(what.writer)  # a retry follows a death: the node has read all that it ever sent
            what.writer = writer
        else:
            self.objects.append(what)
        room.map.write(room.offset, what.content())
        what.location = writer.fill(room, what.id, what.owner._worker_id)
        what.reported = True

    def put(self) -> None:
        """A private object, in what the writer has at hand."""
        writer = self.random.choice(self.clients)
        what = self._new(writer, writer, self._size())
        try:
            what.location = writer.write(what.size, [(0, what.content())], what.id, may_wait=False)
        except StoreWouldBlock:
            return
        self.objects.append(what)

    def make_again(self) -> None:
        """A retried task makes it a second time."""
        known = [what for what in self.objects if what.reported]
        if known:
            self._reserve(self.random.choice(self.clients), self.random.choice(known))

    def want(self) -> None:
        """Some at once, in one question."""
        reader = self.random.choice(self.clients)
        wanted = self.random.sample(self.objects, min(len(self.objects), self.random.choice([1, 2, 3, 4, 5])))
        for what in wanted:
            if reader is not what.owner and not what.reported:
                what.owner.report([(what.id, what.location)])
                what.reported = True
        if wanted:
            self._ask(reader, wanted)

    def _ask(self, reader: StoreClient, wanted: list[_Object]) -> None:
        def done(held: list[Any], error: Exception | None) -> None:
            self.waiting -= 1
            assert error is None or isinstance(error, StoreClosed), error
            for what, one in zip(wanted, held, strict=False):
                if isinstance(one, Hold):
                    self.views.append((reader, _View(what, one)))
                else:
                    self.missing(what, one)

        self.waiting += 1
        reader.acquire_async([(what.id, what.location) for what in wanted], done)

    def look_away(self) -> None:
        if self.views:
            _, view = self.views.pop(self.random.randrange(len(self.views)))
            drop(view)

    def narrow(self) -> None:
        """Keep a part of it."""
        if self.views:
            _, view = self.random.choice(self.views)
            if view.whole is not None and not view.parts and view.what.size:
                view.split([self.random.randrange(220_000)])
                view.drop_whole()
                if len(view.parts) > 1:
                    view.drop_part(0)

    def free(self) -> None:
        if self.objects:
            self._free(self.objects.pop(self.random.randrange(len(self.objects))))

    def _free(self, what: _Object) -> None:
        known = self.table._catalog.get(what.id)
        if known is not None:
            self.seen["freed " + known.state] += 1
        what.owner.free([(what.id, what.location)])

    def kill(self) -> None:
        if len(self.clients) < 2:
            return
        victim = self.random.choice(self.clients)
        self.seen["killed with room"] += any(writer is victim for writer, _, _ in self.rooms)
        self.seen["killed while it waits"] += bool(victim.stats()["pending"])
        self.clients.remove(victim)
        self.views = [(reader, view) for reader, view in self.views if reader is not victim]
        self.rooms = [entry for entry in self.rooms if entry[0] is not victim]
        self.objects = [what for what in self.objects if what.owner is not victim]
        self.world.kill(victim, self.random.randrange(3))

    def disk_changes(self) -> None:
        self.disk.broken = self.random.choice(["", "", "no space left"])
        self.disk.lost = "bad block" if self.random.random() < 0.15 else ""
        self.disk.pace = self.random.choice([0.0, 0.0, 0.01, 1.0, 20.0])

    def time_passes(self) -> None:
        """Messages travel in less than that, unless processes freeze."""
        if not self.hasty or self.random.random() < 0.5:
            self.world.settle()
        self.world.advance_to(self.world.clock.monotonic() + self.random.choice([0.01, 0.3, 1.0, 5.0]))

    def deliver(self) -> None:
        for _ in range(self.random.randrange(1, 12)):
            self.world.deliver()

    def tidy(self) -> None:
        client = self.random.choice(self.clients)
        client.drain()
        client.trim_idle()

    # --- what must be -----------------------------------------------------------------------------------

    def check(self) -> None:
        self.world.check()
        table = self.table
        for reader, view in self.views:
            view.check()
            if not view.hold._entry.mine:
                known = table._catalog.objects[view.what.id]
                assert known.pins[reader._worker_id] >= 1
                assert view.hold.place in [copy[:2] for copy in known.copies], "what is read was moved"
        files = {number: file for number, file in table._spills.files.items() if not file.writing}
        assert set(files) == set(self.disk.files)
        numbers = {what.id: what for what in self.objects}
        for number, file in files.items():
            for oid, (offset, length) in file.objects.items():
                if oid in numbers:
                    assert self.disk.files[number][offset : offset + length] == numbers[oid].content()
        self.seen["parked"] += any(waiting.parked for waiting in table._pin_requests)
        self.seen["read while others read"] += table._spills.reads > 1

    def run(self) -> None:
        for _ in range(STEPS):
            self.step()
        self.rest()

    def rest(self) -> None:
        """The disk is well again, and nobody wants more."""
        self.disk.broken = self.disk.lost = ""
        self.disk.pace = 0.0
        self._until_nobody_waits()
        self.world.advance_to(self.world.clock.monotonic() + DISK_AGAIN_S)
        self.ending = True
        for what in self.objects:
            if not what.reported:
                what.owner.report([(what.id, what.location)])
            self._ask(self.random.choice(self.clients), [what])
            self._until_nobody_waits()
        stats = self.table.stats()
        self.seen["spilled"] += stats.spilled_objects
        self.seen["restored"] += stats.restored_objects
        for what in self.objects:
            self._free(what)
        self._until_nobody_waits()
        self.world.advance_to(self.world.clock.monotonic() + 100.0)
        for client in [*self.clients, self.disk.restorer]:
            client.trim_idle()
        self.world.settle()
        self.check()
        left = self.table.stats()
        assert (left.objects, left.segments, left.reserved, left.on_disk, left.waiting) == (0, 0, 0, 0, 0)
        assert self.disk.files == {} and not self.disk.under_way
        assert not self.table._spills.writing and not self.table._spills.reads and not self.table._early_frees
        for client in [*self.clients, self.disk.restorer]:
            assert not any(client.stats().values()), client
        assert self.table.next_deadline() is None and not self.table._pin_requests
        assert self.world.segments.list(self.table._prefix) == []

    def _until_nobody_waits(self) -> None:
        for _ in range(PATIENCE):
            self._let_go()
            self.world.settle()
            if not (self.waiting or self.views or self.rooms or self.disk.under_way):
                return
            moments = [self.world.authority.next_deadline(), self.disk.next_moment()]
            moment = min((one for one in moments if one is not None), default=None)
            if moment is not None:
                self.world.advance_to(moment)
        raise AssertionError(f"{self.waiting} wait for ever: {self.table._requests} {self.table._pin_requests}")

    def _let_go(self) -> None:
        for _, view in self.views:
            view.check()
            drop(view)
        self.views = []
        for writer, room, _ in self.rooms:
            writer.cancel(room)
        self.rooms = []


def drop(view: _View) -> None:
    """All of it."""
    if view.whole is not None:
        view.drop_whole()
    for index in list(view.parts):
        view.drop_part(index)


@contextmanager
def seeded(seed: int, seen: collections.Counter[str]) -> Iterator[Walk]:
    with tempfile.TemporaryDirectory() as folder:
        walk = Walk(seed, folder, seen)
        try:
            yield walk
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        finally:
            walk.world.close()


def walks(seeds: range) -> collections.Counter[str]:
    """Run them; what happened."""
    seen: collections.Counter[str] = collections.Counter()
    for seed in seeds:
        with seeded(seed, seen) as walk:
            walk.run()
    return seen


@pytest.mark.sim
@pytest.mark.parametrize("part", range(PARTS))
def test_walks(part: int) -> None:
    seen = walks(range(part, SEEDS, PARTS))
    assert seen["spilled"] and seen["restored"]


def test_what_the_walks_meet() -> None:
    """A walk that never comes to the dark corners shows nothing."""
    seen = walks(range(10_000, 10_040))
    corners = [
        "refused", "parked", "read while others read", "gone: lost", "gone: full", "killed with room",
        "killed while it waits", "freed being read", "freed being written", "freed on disk",
        "freed in memory and on disk",
    ]  # fmt: skip
    assert all(seen[corner] for corner in corners), seen
