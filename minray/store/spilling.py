"""Which object is where between memory and disk, and which file holds what. Pure.

::

               spill             written            drop
    MEMORY ───────────▶ WRITING ─────────▶ BOTH ───────────▶ DISK
       ▲  ◀───────────────┘ failed          ▲                 │ read
       │                                    │ here            ▼
       └──── again (from anywhere) ◀        └───────────── READING ──failed──▶ DISK

"again": a task has made it once more, so what is on disk counts no longer. BOTH costs no disk time to let go of, so a
restored object keeps its copy on disk until it is freed, and goes before those that were never written.

Objects are fused into files of about ``FUSE`` bytes (a larger one has a file of its own); a file goes when
the last of its objects has.

Part of ``ExtentTable`` (see admission.py), which alone calls it. Invariants (``check_invariants``): a file that is
there has objects, or is being written; ``on_disk`` is what the objects of all files add up to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

FUSE = 64 << 20  # bytes that are written to one file
MAX_WRITING = 2 * FUSE  # bytes on their way to the disk at a time; only a single larger object exceeds it

MEMORY, WRITING, BOTH, DISK, READING = "in memory", "being written", "in memory and on disk", "on disk", "being read"
MOVES = {
    (MEMORY, "spill"): WRITING,
    (WRITING, "written"): BOTH,
    (WRITING, "failed"): MEMORY,
    (BOTH, "drop"): DISK,
    (DISK, "read"): READING,
    (READING, "here"): BOTH,
    (READING, "failed"): DISK,
    (MEMORY, "again"): MEMORY,
    (WRITING, "again"): MEMORY,
    (BOTH, "again"): MEMORY,
    (DISK, "again"): MEMORY,
    (READING, "again"): MEMORY,
}
Place = tuple[int, int]  # number of the file, offset in it


def moved(state: str, event: str) -> str:
    """The next state of an object. AssertionError for a move that is not in the table."""
    after = MOVES.get((state, event))
    assert after is not None, f"an object that is {state} cannot {event}"
    return after


@dataclass(slots=True)
class SpillFile:
    """One file: object → (offset, length) of what of it is needed, or is being written."""

    number: int
    objects: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    size: int = 0
    writing: bool = True


class SpillBook:
    """All files of a node, and what has been moved in all."""

    def __init__(self) -> None:
        self.files: dict[int, SpillFile] = {}
        self.on_disk = 0  # bytes of objects that are written and needed
        self.writing = 0  # bytes on their way
        self.reads = 0  # objects that have a room in memory and are being read into it
        self.largest = 0  # bytes of the largest object that was ever written
        self.spilled_objects = 0  # these four: in all, since the start
        self.spilled_bytes = 0
        self.restored_objects = 0
        self.restored_bytes = 0
        self._last = 0

    def begin(self, victims: Iterable[tuple[bytes, int]]) -> list[SpillFile]:
        """New files for these objects (id, size), in order; they are being written now."""
        made: list[SpillFile] = []
        for object_id, size in victims:
            if not made or made[-1].size + size > FUSE:
                self._last += 1
                self.files[self._last] = SpillFile(self._last)
                made.append(self.files[self._last])
            made[-1].objects[object_id] = (made[-1].size, size)
            made[-1].size += size
            self.writing += size
            self.largest = max(self.largest, size)
        return made

    def written(self, number: int) -> SpillFile:
        """That file is complete. What of it is not needed must be given to ``release``."""
        file = self.files[number]
        file.writing = False
        total = sum(length for _, length in file.objects.values())
        self.writing -= file.size
        self.on_disk += total
        self.spilled_objects += len(file.objects)
        self.spilled_bytes += total
        return file

    def failed(self, number: int) -> SpillFile:
        """It could not be written, and is not there."""
        file = self.files.pop(number)
        self.writing -= file.size
        return file

    def release(self, number: int, object_id: bytes) -> bool:
        """This object is not needed there; whether the file may go."""
        file = self.files[number]
        _, length = file.objects.pop(object_id)
        self.on_disk -= length
        if file.objects:
            return False
        del self.files[number]
        return True

    def restored(self, size: int) -> None:
        """An object has been read back."""
        self.restored_objects += 1
        self.restored_bytes += size

    def check_invariants(self) -> None:
        """AssertionError if the sums are wrong."""
        assert all(file.objects for file in self.files.values())
        assert self.writing == sum(file.size for file in self.files.values() if file.writing)
        written = [file for file in self.files.values() if not file.writing]
        assert self.on_disk == sum(length for file in written for _, length in file.objects.values())
