"""The store that moves objects to disk, under the random schedules of ``test_store_random``, and under more pressure.

The disk takes its time, fails now and then, and forgets. Objects have their own patterns, so bytes of the wrong
object, or of memory that was reused, show.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from minray.store.holds import Gone, Hold
from tests.store.support import KIB
from tests.store.test_store_random import StoreMachine, _Object, _View


class SpillMachine(StoreMachine):
    spills = True
    capacity = 640 * KIB

    def prepare(self) -> None:
        table = self.world.table
        refuse = table._refuse

        def checked(request: Any, now: float) -> None:
            """Nobody is refused while something can go, unless the disk takes nothing."""
            if table._book.least(request.size) <= table.capacity and not table._disk_error:
                assert not list(table._catalog.spillable()) and not list(table._catalog.evictable())
                assert not table._spills.writing
            refuse(request, now)

        table._refuse = checked  # type: ignore[method-assign]
        self.lost: set[bytes] = set()

    def missing(self, what: _Object, gone: Gone) -> None:
        disk = self.world.disk
        assert disk is not None
        if gone.kind == "lost":
            assert disk.lost or what.id in self.lost
            self.lost.add(what.id)
        elif gone.kind != "full":
            super().missing(what, gone)

    @precondition(lambda self: len(self.objects) > 1)
    @rule(data=st.data(), count=st.integers(2, 5))
    def read_several(self, data: st.DataObject, count: int) -> None:
        """At once: they must fit together, or somebody hears that they do not."""
        reader = self.pick(data, self.clients)
        wanted = [self.pick(data, self.objects) for _ in range(count)]
        for what in wanted:
            if reader is not what.owner and not what.reported:
                what.owner.report([(what.id, what.location)])
                what.reported = True
        for what, held in zip(wanted, reader.acquire([(w.id, w.location) for w in wanted]), strict=True):
            if isinstance(held, Hold):
                view = _View(what, held)
                view.check()
                self.views[reader].append(view)
            else:
                self.missing(what, held)

    @rule(data=st.data(), count=st.integers(2, 8), size=st.integers(50_000, 150_000))
    def write_many(self, data: st.DataObject, count: int, size: int) -> None:
        """More than fits."""
        writer = self.pick(data, self.clients)
        for _ in range(count):
            self._write(writer, writer, size, may_wait=True)

    @rule(broken=st.sampled_from(["", "", "", "no space left"]), lost=st.sampled_from(["", "", "", "bad block"]))
    def disk_changes(self, broken: str, lost: str) -> None:
        assert self.world.disk is not None
        self.world.disk.broken, self.world.disk.lost = broken, lost

    def teardown(self) -> None:
        disk = self.world.disk if hasattr(self, "world") else None
        super().teardown()
        if disk is not None:
            assert disk.files == {} and not disk.todo
            assert not any(disk.restorer.stats().values())

    def _everything_comes_back(self) -> None:
        restorer = self.world.disk.restorer if self.world.disk is not None else None
        assert restorer is not None
        self.clients.append(restorer)
        super()._everything_comes_back()


TestSpillMachine = SpillMachine.TestCase
TestSpillMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
