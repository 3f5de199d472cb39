"""One mapped segment: reading it, and writing it fast without ever meeting a SIGBUS.

``SegmentMap`` is made by the implementations in ``segments.py`` and used by ``client.py``. It owns the
mapping and, for a writer, the descriptor beside it.

A writer meets three kinds of bytes, told apart by two marks that only grow::

    0 ······ _touched ······ _written ······ size
      warm: memcpy     known to exist:   may not exist yet:
                       populate, memcpy  os.pwrite on the descriptor

* Beyond ``_written`` the file system may have no page. A mapped write would fault page by page (0.9 GB/s
  measured) and die of SIGBUS when memory is short; ``pwrite`` runs at 2.7 GB/s and says ENOSPC.
* Between the marks pages exist but this process has no page-table entries: MADV_POPULATE_WRITE (Linux 5.14)
  makes them at 6 GB/s; without it the copy takes minor faults (3.3 GB/s).
* Below ``_touched`` a copy runs at the speed of memory (14 GB/s).

Invariants: a mark advances only over what was wholly written, and only contiguously, so a failed or still
running write never lies below it. Where ``pwrite`` on the descriptor is impossible (shared memory on macOS,
Windows) ``_written`` starts at ``size``: there the system reserves memory when a segment is made.
A mapping is never closed under a live view: ``close`` then says False and can be called again.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

ALIGN = 64  # of objects and of buffers in them: a cache line, and what vector units like
_STEP = 64 << 20  # copy under the GIL, populate and pwrite in such pieces: other threads get a turn
_RECEIVE = 1 << 20  # what one ``receive`` asks for at most
_BIG = 1 << 20  # below this, releasing the GIL for a copy is not worth an array object
_PAGE = mmap.PAGESIZE
_MADV_POPULATE_WRITE = 23  # mmap has no name for it yet
_can_populate = sys.platform.startswith("linux")


def aligned(count: int) -> int:
    """``count`` rounded up to a multiple of ALIGN."""
    return (count + ALIGN - 1) & -ALIGN


class SegmentMap:
    """A segment in this process's memory. ``writable`` for its writer, read-only for everybody else."""

    __slots__ = ("_fd", "_mapping", "_touched", "_view", "_written", "name", "size", "writable")

    def __init__(self, name: str, size: int, mapping: mmap.mmap, *, writable: bool, fd: int = -1) -> None:
        """Own ``mapping`` and ``fd`` (-1: cold bytes can't be written through a descriptor here)."""
        self.name = name
        self.size = size
        self.writable = writable
        self._mapping = mapping
        self._view = memoryview(mapping)
        self._fd = fd
        self._touched = 0
        self._written = size if fd < 0 else 0

    def __repr__(self) -> str:
        mode = "writable" if self.writable else "read-only"
        return f"<SegmentMap {self.name} {self.size} bytes {mode} touched={self._touched}>"

    def view(self, offset: int, length: int) -> memoryview:
        """A read-only view of these bytes; while it or a slice of it lives, the mapping stays."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"{offset}+{length} lies outside of {self!r}")
        return self._view[offset : offset + length].toreadonly()

    def write(self, offset: int, data: Any) -> int:
        """Copy a contiguous buffer to ``offset`` and return its length in bytes.

        Raises OSError (ENOSPC) when the system has no memory for it; the bytes are undefined then.
        """
        source = memoryview(data)
        if source.format != "B" or source.ndim != 1:
            source = source.cast("B")
        length = source.nbytes
        end = offset + length
        if offset < 0 or end > self.size:
            raise ValueError(f"{offset}+{length} lies outside of {self!r}")
        at = offset
        if at < self._touched:
            stop = min(end, self._touched)
            self._copy(at, source[: stop - offset])
            at = stop
        if at < self._written and at < end:
            stop = min(end, self._written)
            self._copy_populating(at, source[at - offset : stop - offset])
            if at <= self._touched:
                self._touched = max(self._touched, min(aligned(stop), self._written))
            at = stop
        if at < end:
            self._write_through(at, source[at - offset :])
            if at <= self._written:
                self._written = max(self._written, min(aligned(end), self.size))
        return length

    def receive(self, offset: int, length: int, read: Callable[[memoryview], int], scratch: memoryview) -> int:
        """Let ``read`` (a socket's recv_into) put some of these bytes here; returns how many, 0 at its end.

        Where no page may exist it reads into ``scratch``, which goes through the descriptor. Raises what ``read``
        raises, and OSError (ENOSPC) when the system has no memory.
        """
        if offset < 0 or offset + length > self.size:
            raise ValueError(f"{offset}+{length} lies outside of {self!r}")
        length = min(length, _RECEIVE)
        if offset >= self._written:
            count = read(scratch[:length])
            self._write_through(offset, scratch[:count])
            if offset <= self._written:
                self._written = max(self._written, min(aligned(offset + count), self.size))
            return count
        if offset >= self._touched:
            length = min(length, self._written - offset)
            self._populate(offset, length)
            if offset <= self._touched:
                self._touched = max(self._touched, offset + length)
        else:
            length = min(length, self._touched - offset)
        return read(self._view[offset : offset + length])

    def _copy(self, offset: int, source: memoryview) -> None:
        length = source.nbytes
        if length < _BIG:
            self._view[offset : offset + length] = source
            return
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            # Without the GIL, and in one piece: beyond the size of the caches memcpy writes past them, which
            # is a third faster.
            target = numpy.frombuffer(self._view[offset : offset + length], numpy.uint8)
            numpy.copyto(target, numpy.frombuffer(source, numpy.uint8))
            return
        for start in range(0, length, _STEP):
            piece = source[start : start + _STEP]
            self._view[offset + start : offset + start + piece.nbytes] = piece

    def _copy_populating(self, offset: int, source: memoryview) -> None:
        for start in range(0, source.nbytes, _STEP):
            piece = source[start : start + _STEP]
            self._populate(offset + start, piece.nbytes)
            self._copy(offset + start, piece)

    def _populate(self, offset: int, length: int) -> None:
        global _can_populate
        if not _can_populate or length < _PAGE:
            return
        start = offset & -_PAGE
        try:
            self._mapping.madvise(_MADV_POPULATE_WRITE, start, offset + length - start)
        except OSError:
            # EINVAL on kernels before 5.14; the copy does without. A real shortage cannot show here:
            # these pages exist.
            _can_populate = False

    def _write_through(self, offset: int, source: memoryview) -> None:
        done, length = 0, source.nbytes
        while done < length:
            done += os.pwrite(self._fd, source[done : done + _STEP], offset + done)

    def close(self) -> bool:
        """Unmap; False if a view still lives: then only the descriptor is closed and nothing else changes."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._view.release()
        try:
            self._mapping.close()
        except BufferError:
            self._view = memoryview(self._mapping)
            return False
        return True
