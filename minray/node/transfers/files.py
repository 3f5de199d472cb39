"""A spilled object on its way to another node, straight from its file: it is not restored for that.

``FileHold`` stands where a ``Hold`` of shared memory does: ``view`` has a length and gives bytes for a slice;
``release`` ends it. An open file stays readable when its name goes, so nobody has to be asked to keep it.

Used by ``loans`` and, on senders' threads, by ``channel``. Invariant: the descriptor is closed once, by ``release``,
when no sender reads.
"""

from __future__ import annotations

import os

MOST = 256 << 10  # what one slice gives at most: a socket often takes less, and the rest is read again
_ON_DISK = 1 << 31  # versions of memory begin with the number of a segment


class FileView:
    """The bytes of one object in a file."""

    __slots__ = ("_fd", "_offset", "_size")

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd, self._offset, self._size = fd, offset, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        """The first of these bytes, at least one of them. OSError if the file ends too early."""
        start, stop, _ = part.indices(self._size)
        count = min(stop - start, MOST)
        if hasattr(os, "pread"):
            data = os.pread(self._fd, count, self._offset + start)
        else:  # Windows: a second descriptor has a position of its own
            with open(os.dup(self._fd), "rb", buffering=0) as file:
                file.seek(self._offset + start)
                data = file.read(count)
        if count > 0 and not data:
            raise OSError(f"a spilled object ends {self._size - start} bytes too early")
        return data


class FileHold:
    """The right to read a spilled object. ``number``: of its file."""

    __slots__ = ("_fd", "version", "view")

    def __init__(self, fd: int, number: int, offset: int, size: int) -> None:
        self._fd = fd
        self.view: FileView | None = FileView(fd, offset, size)
        place = (_ON_DISK | number % _ON_DISK).to_bytes(4, "little")
        self.version = place + (offset % 2**32).to_bytes(4, "little")

    def release(self) -> None:
        """Nobody reads any more. Only once."""
        self.view = None
        os.close(self._fd)
