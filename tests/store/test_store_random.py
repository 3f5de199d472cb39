"""The store as a whole under random schedules: real table, real clients, real bytes.

Every object has its own pattern, so an overlap, an early reuse or an early unlink shows as wrong bytes in
somebody's view. Messages of different processes overtake each other, processes die, time jumps.
"""

from __future__ import annotations

import itertools
import tempfile
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from minray.store.client import StoreClient
from minray.store.errors import StoreFull, StoreWouldBlock
from minray.store.holds import Gone, Hold
from minray.store.segments import choose
from tests.store.support import KIB, World, object_id, pattern


class _Object:
    def __init__(
        self, number: int, size: int, writer: StoreClient, owner: StoreClient, location: Any
    ) -> None:
        self.number = number
        self.writer = writer
        self.id = object_id(number, owner._worker_id)
        self.size = size
        self.owner = owner
        self.location = location
        self.reported = False

    def content(self) -> bytes:
        return pattern(self.number, self.size)


class _View:
    """A Hold as a reader uses it: the whole, or parts of it."""

    def __init__(self, what: _Object, hold: Hold) -> None:
        self.what = what
        self.hold = hold
        self.whole: memoryview | None = hold.view
        self.parts: dict[int, tuple[int, memoryview]] = {}

    def check(self) -> None:
        content = self.what.content()
        if self.whole is not None:
            assert self.whole == content
        for start, view in self.parts.values():
            assert view == content[start : start + len(view)]

    def split(self, cuts: list[int]) -> None:
        assert self.whole is not None
        edges = sorted({0, self.what.size, *(cut % (self.what.size + 1) for cut in cuts)})
        spans = list(itertools.pairwise(edges))
        if not spans:
            return
        self.hold.also_parts(spans)
        self.parts = {i: (a, self.whole[a:b]) for i, (a, b) in enumerate(spans)}

    def drop_whole(self) -> None:
        self.whole = None
        self.hold.release()

    def drop_part(self, index: int) -> None:
        del self.parts[index]
        self.hold.release_part(index)


class StoreMachine(RuleBasedStateMachine):
    spills = False
    capacity = 1024 * KIB

    @initialize(seed=st.integers(0, 2**32), grace=st.sampled_from([0.0, 10.0]))
    def start(self, seed: int, grace: float) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.world = World(
            choose("auto", self.folder.name),
            capacity=self.capacity,
            extent_size=128 * KIB,
            grace_s=grace,
            seed=seed,
            spills=self.spills,
        )
        self.clients: list[StoreClient] = []
        self.objects: list[_Object] = []
        self.views: dict[StoreClient, list[_View]] = {}
        self.count = 0
        self.prepare()
        self.spawn()
        self.spawn()

    def prepare(self) -> None:
        """For variants of this machine."""

    def pick(self, data: st.DataObject, items: list[Any]) -> Any:
        return items[data.draw(st.integers(0, len(items) - 1))]

    @precondition(lambda self: len(self.clients) < 4)
    @rule()
    def spawn(self) -> None:
        self.count += 1
        client = self.world.client(f"p{self.count}")
        self.clients.append(client)
        self.views[client] = []

    @rule(data=st.data(), size=st.one_of(st.integers(0, 3000), st.integers(3000, 300_000)))
    def write(self, data: st.DataObject, size: int) -> None:
        self._write(
            self.pick(data, self.clients), self.pick(data, self.clients), size, data.draw(st.booleans())
        )

    def _write(self, writer: StoreClient, owner: StoreClient, size: int, may_wait: bool) -> None:
        self.count += 1
        content = pattern(self.count, size)
        cut = size // 3
        oid = object_id(self.count, owner._worker_id)
        try:
            location = writer.write(size, [(0, content[:cut]), (cut, content[cut:])], oid, may_wait=may_wait)
        except (StoreFull, StoreWouldBlock):
            return
        made = _Object(self.count, size, writer, owner, location)
        if owner is not writer:  # a result: reported before the owner hears of it
            writer.report([(made.id, location)], owner._worker_id)
            made.reported = True
        self.objects.append(made)

    @precondition(lambda self: self.objects)
    @rule(data=st.data())
    def write_again(self, data: st.DataObject) -> None:
        """A retried task writes its result a second time, elsewhere."""
        what = self.pick(data, self.objects)
        writer = self.pick(data, self.clients)
        if not what.reported:
            return
        # A retry follows a death, so the node has read all that the first writer ever sent.
        self.world.flush(what.writer)
        try:
            what.location = writer.write(what.size, [(0, what.content())], what.id)
        except StoreFull:
            return
        what.writer = writer
        writer.report([(what.id, what.location)], what.owner._worker_id)

    @precondition(lambda self: self.objects)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        what = self.pick(data, self.objects)
        reader = self.pick(data, self.clients)
        if reader is not what.owner and not what.reported:
            what.owner.report([(what.id, what.location)])
            what.reported = True
        (held,) = reader.acquire([(what.id, what.location)])
        if isinstance(held, Gone):
            self.missing(what, held)
            return
        view = _View(what, held)
        view.check()
        self.views[reader].append(view)

    def missing(self, what: _Object, gone: Gone) -> None:
        assert what.writer not in self.clients, f"{gone} though its writer and its owner live"

    @precondition(lambda self: any(self.views.values()))
    @rule(data=st.data(), cuts=st.lists(st.integers(0, 300_000), min_size=1, max_size=5), keep=st.booleans())
    def narrow(self, data: st.DataObject, cuts: list[int], keep: bool) -> None:
        view = self.pick(data, [v for views in self.views.values() for v in views])
        if view.whole is not None and not view.parts:
            view.split(cuts)
            if view.parts and not keep:
                view.drop_whole()
                for index in list(view.parts)[1:]:
                    view.drop_part(index)

    @precondition(lambda self: any(self.views.values()))
    @rule(data=st.data())
    def look_away(self, data: st.DataObject) -> None:
        views = self.pick(data, [views for views in self.views.values() if views])
        view = self.pick(data, views)
        if view.whole is not None:
            view.drop_whole()
        elif view.parts:
            view.drop_part(self.pick(data, sorted(view.parts)))
        if view.whole is None and not view.parts:
            views.remove(view)

    @precondition(lambda self: any(self.views.values()))
    @rule(data=st.data(), cuts=st.lists(st.integers(0, 300_000), min_size=1, max_size=5))
    def free_under_a_narrowed_view(self, data: st.DataObject, cuts: list[int]) -> None:
        """What it no longer covers is reused at once."""
        views = [v for views in self.views.values() for v in views if v.what in self.objects]
        if not views:
            return
        view = self.pick(data, views)
        if view.whole is not None and not view.parts:
            view.split(cuts)
            if view.parts:
                view.drop_whole()
        for index in sorted(view.parts)[::2]:
            if len(view.parts) > 1:
                view.drop_part(index)
        self.objects.remove(view.what)
        view.what.owner.free([(view.what.id, view.what.location)])
        self.world.settle()
        for size in (view.what.size // 2, view.what.size // 3, 64, 64):
            if view.what.writer in self.clients:
                self._write(view.what.writer, view.what.writer, size, may_wait=False)

    @precondition(lambda self: self.objects)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        what = self.pick(data, self.objects)
        self.objects.remove(what)
        what.owner.free([(what.id, what.location)])

    @precondition(lambda self: len(self.clients) > 1)
    @rule(data=st.data(), lost=st.integers(0, 3), chance=st.integers(0, 3))
    def kill(self, data: st.DataObject, lost: int, chance: int) -> None:
        if chance == 0:
            self._kill(self.pick(data, self.clients), lost)

    @precondition(lambda self: len(self.clients) > 1)
    @rule(data=st.data(), size=st.integers(100_000, 300_000), lost=st.integers(0, 2), wait=st.booleans())
    def crash_after_a_result(self, data: st.DataObject, size: int, lost: int, wait: bool) -> None:
        """The owner has heard of it, the node perhaps not."""
        before = len(self.objects)
        self.write(data, size)
        if len(self.objects) == before or self.objects[-1].owner is self.objects[-1].writer:
            return
        made = self.objects[-1]
        self._kill(made.writer, lost)
        if wait:
            self.world.advance_to(self.world.clock.monotonic() + 1.0)
        (held,) = made.owner.acquire([(made.id, made.location)])
        assert isinstance(held, Hold), held  # adopted, if need be
        self.views[made.owner].append(_View(made, held))

    def _kill(self, victim: StoreClient, lost: int) -> None:
        self.clients.remove(victim)
        for view in self.views.pop(victim):
            view.check()
        self.objects = [what for what in self.objects if what.owner is not victim]
        self.world.kill(victim, lost)

    @rule(count=st.integers(1, 10))
    def deliver(self, count: int) -> None:
        for _ in range(count):
            self.world.deliver()

    @rule(data=st.data())
    def drain(self, data: st.DataObject) -> None:
        self.pick(data, self.clients).drain()

    @rule(data=st.data(), seconds=st.floats(0.1, 20.0))
    def time_passes(self, data: st.DataObject, seconds: float) -> None:
        self.world.advance_to(self.world.clock.monotonic() + seconds)
        self.pick(data, self.clients).trim_idle()

    @invariant()
    def everything_is_as_it_should_be(self) -> None:
        if not hasattr(self, "world"):
            return
        self.world.check()
        for views in self.views.values():
            for view in views:
                view.check()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self._everything_comes_back()
        finally:
            self.world.close()
            self.folder.cleanup()

    def _everything_comes_back(self) -> None:
        world = self.world
        for views in self.views.values():
            for view in views:
                if view.whole is not None:
                    view.drop_whole()
                for index in list(view.parts):
                    view.drop_part(index)
        for what in self.objects:
            what.owner.free([(what.id, what.location)])
        world.settle()
        world.advance_to(world.clock.monotonic() + 100.0)
        for client in self.clients:
            client.trim_idle()
        world.settle()
        world.check()
        stats = world.table.stats()
        assert (stats.objects, stats.segments, stats.reserved) == (0, 0, 0)
        for client in self.clients:
            left = client.stats()
            assert not any(left.values()), left
        assert world.table.next_deadline() is None
        assert world.segments.list(world.table._prefix) == []


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
