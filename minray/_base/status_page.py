"""The status page: which task each worker of a node has started last, readable after its death.

A small mapped file in the session's folder with 64 bytes per worker. The worker writes its slot before each
start (a plain store into memory: about 150 ns, and it survives SIGKILL); the node reads it when the worker
is dead, to tell the owner which task may have run.

The node makes it (``StatusPage``), the worker writes (``StatusPageWriter``). A slot that nobody wrote since
``clear`` reads as ``NOTHING``.
"""

from __future__ import annotations

import mmap
import os
import struct

SLOT_SIZE = 64
NOTHING = (-1, -1, -1)
_SLOT = struct.Struct("<qqq")  # lease_no, seq, attempt


class StatusPage:
    """The node's side: makes the file, reads slots."""

    def __init__(self, path: str, slots: int) -> None:
        self.path = path
        self.slots = slots
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(fd, slots * SLOT_SIZE)
            self._map = mmap.mmap(fd, slots * SLOT_SIZE)
        finally:
            os.close(fd)
        for slot in range(slots):
            self.clear(slot)

    def clear(self, slot: int) -> None:
        """A new worker gets this slot."""
        _SLOT.pack_into(self._map, slot * SLOT_SIZE, *NOTHING)

    def read(self, slot: int) -> tuple[int, int, int]:
        """(lease_no, seq, attempt) of the task that it started last, or NOTHING."""
        lease_no, seq, attempt = _SLOT.unpack_from(self._map, slot * SLOT_SIZE)
        return lease_no, seq, attempt

    def close(self) -> None:
        """Unmap; the file goes with the session's folder."""
        self._map.close()


class StatusPageWriter:
    """The worker's side: one slot."""

    def __init__(self, path: str, slot: int) -> None:
        fd = os.open(path, os.O_RDWR)
        try:
            self._map = mmap.mmap(fd, 0)
        finally:
            os.close(fd)
        self._offset = slot * SLOT_SIZE
        self._pack = _SLOT.pack_into

    def start(self, lease_no: int, seq: int, attempt: int) -> None:
        """This task starts now."""
        self._pack(self._map, self._offset, lease_no, seq, attempt)
