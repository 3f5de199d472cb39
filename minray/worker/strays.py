"""Copies of results that do not count: when an owner frees them. Pure.

::

    an answer to an attempt that was given up ─┐
    what a dead process had written for us ────┴▶ may its task still make it? ──yes──▶ kept until that is over ──┐
                                                              │ no                                               │
                                                              ▼                                                  ▼
                                          is the object's own value stored on that node? ──yes──▶ it goes with that
                                                              │ no
                                                              ▼
                                                            freed

A node's store frees all copies of an object together, which is why the answer to the last question matters; and why
nothing is freed while the task may still make the object: the order could meet the copy that counts.

Called by worker.core. Invariant: copies are kept only of tasks that are not over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minray.wire.messages import Location
from minray.worker.references import PENDING, STORED, ObjectRecord

if TYPE_CHECKING:
    from minray.worker.core import Core

FIRST_ITEM = 2  # index of a stream's first item


class Strays:
    """All of one process's."""

    def __init__(self, core: Core) -> None:
        self.kept: dict[int, list[tuple[bytes, Location]]] = {}  # by task
        self._core = core

    def found(self, object_id: bytes, location: Location) -> None:
        """There lies a copy of an object of ours that its record does not name."""
        seq = self._core.seq_of(object_id)
        assert seq is not None, f"{object_id.hex()} is not ours"
        if self._may_come(seq, object_id):
            self.kept.setdefault(seq, []).append((object_id, location))
        else:
            self._free(object_id, location)

    def left_behind(self, node_id: bytes, objects: list[tuple[bytes, int, int, int]]) -> None:
        """A dead process had written these for us on that node. What it has told us of is in its record by now, or
        still to be read from it while its task counts as running."""
        for object_id, segment_id, offset, length in objects:
            self.found(object_id, (node_id, segment_id, offset, length))

    def task_over(self, seq: int) -> None:
        """Its results are in their records."""
        for object_id, location in self.kept.pop(seq, ()):
            self._free(object_id, location)

    def tidy(self) -> None:
        """Some tasks are over."""
        for seq in [seq for seq in self.kept if not self._runs(seq)]:
            self.task_over(seq)

    def _runs(self, seq: int) -> bool:
        return seq in self._core.owner.tasks or seq in self._core.calls.tasks

    def _may_come(self, seq: int, object_id: bytes) -> bool:
        """Whether its task may still make it."""
        if not self._runs(seq):
            return False
        record = self._core.objects.get(object_id)
        if record is not None:
            return record.status == PENDING
        stream = self._core.streams.get(seq)
        return stream is not None and int.from_bytes(object_id[-4:], "little") >= FIRST_ITEM + stream.produced

    def _free(self, object_id: bytes, location: Location) -> None:
        record = self._core.objects.get(object_id)
        if record is not None and record.status == STORED and record.value[0][0] == location[0]:
            return
        gone = ObjectRecord(None)
        gone.status, gone.value, gone.shared = STORED, (location, 0, []), True
        self._core.effects.append(("freed", object_id, gone))

    def check_invariants(self) -> None:
        """AssertionError if something is kept for a task that is over."""
        for seq in self.kept:
            assert self._runs(seq), f"task {seq} is over, and copies of its results are kept"
