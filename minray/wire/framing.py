"""Byte stream → frames. Pure: no socket.

A frame is a 4-byte little-endian length and that many bytes. ``Connection`` feeds a ``FrameDecoder`` with
whatever a read returned; tests feed it with every split.

Ways in, because copies are what costs here:

* ``feed(data)`` for bytes that lie in the reader's buffer. The frames it returns are views of that buffer
  wherever possible, valid until the next read: the caller decodes them before it reads again.
* While ``partial`` is empty and ``direct`` is None, the next byte starts a frame: a reader that finds exactly
  one whole frame may take it without asking.
* ``direct`` is not None while a large frame is incomplete: the rest of it may be received straight into that
  view, followed by ``advance(n)``. So a large frame is copied once by the kernel and never by us.

Invariants: a length above ``max_frame`` raises before a byte of that frame is kept; what is kept never
exceeds one frame and its header. After an error the decoder is broken and says so on every further call.
"""

from __future__ import annotations

from struct import Struct

from minray.wire.errors import ProtocolError

HEADER = Struct("<I")
DIRECT_MIN = 64 * 1024  # from this size on, the rest of a frame is received into its own buffer
MAX_FRAME = 0xFFFFFFFF


def encode_frame(payload: bytes) -> bytes:
    """``payload`` with its length in front."""
    return HEADER.pack(len(payload)) + payload


def split_first(data: bytes, bound: int) -> tuple[memoryview, bytes] | None:
    """The first frame of ``data`` and what follows it; None while it is not whole. Raises ProtocolError if it is
    announced longer than ``bound``."""
    if len(data) < HEADER.size:
        return None
    (size,) = HEADER.unpack_from(data)
    if size > bound:
        raise ProtocolError(f"the peer announced a first frame of {size} bytes; the bound is {bound}")
    stop = HEADER.size + size
    return (memoryview(data)[HEADER.size : stop], data[stop:]) if len(data) >= stop else None


class FrameDecoder:
    """One direction of one connection."""

    __slots__ = ("_broken", "_filled", "_large", "direct", "max_frame", "partial")

    def __init__(self, max_frame: int) -> None:
        if not 0 < max_frame <= MAX_FRAME:
            raise ValueError(f"max_frame must be in 1..{MAX_FRAME}, got {max_frame!r}")
        self.max_frame = max_frame
        self.partial = bytearray()  # start of an unfinished small frame, header included
        self._large: bytearray | None = None  # body of a large frame that is still arriving
        self._filled = 0
        self.direct: memoryview | None = None  # where the rest of a large frame belongs
        self._broken: str | None = None

    @property
    def pending(self) -> int:
        """Bytes kept of a frame that is not complete."""
        return len(self.partial) + self._filled

    def advance(self, count: int) -> bytearray | None:
        """``count`` bytes were written into ``direct``. Returns the frame if it is complete now."""
        if self._large is None:
            raise AssertionError("advance() without a large frame under way")
        self._filled += count
        if self._filled < len(self._large):
            self.direct = memoryview(self._large)[self._filled :]
            return None
        frame, self._large, self.direct, self._filled = self._large, None, None, 0
        return frame

    def feed(self, data: bytes | bytearray | memoryview) -> list[memoryview | bytearray]:
        """The frames that ``data`` completes, in order. Raises ProtocolError for a frame that is too long."""
        if self._broken is not None:
            raise ProtocolError(self._broken)
        view = data if type(data) is memoryview else memoryview(data)
        frames: list[memoryview | bytearray] = []
        pos = 0
        if self.partial or self._large is not None:
            pos = self._complete(view, frames)
        end = len(view)
        unpack = HEADER.unpack_from
        while end - pos >= 4:
            (size,) = unpack(view, pos)
            if size > self.max_frame:
                raise self._too_long(size)
            stop = pos + 4 + size
            if stop > end:
                if size >= DIRECT_MIN:
                    self._begin_large(size, view[pos + 4 :])
                    return frames
                break
            frames.append(view[pos + 4 : stop])
            pos = stop
        if pos < end:
            self.partial += view[pos:]
        return frames

    def _complete(self, view: memoryview, frames: list[memoryview | bytearray]) -> int:
        """Finish what an earlier read began. Returns how much of ``view`` that took."""
        pos = 0
        size: int
        if self._large is None:
            partial = self.partial
            if len(partial) < 4:
                pos = min(4 - len(partial), len(view))
                partial += view[:pos]
                if len(partial) < 4:
                    return pos
            (size,) = HEADER.unpack_from(partial)
            if size > self.max_frame:
                raise self._too_long(size)
            if size < DIRECT_MIN:
                take = min(4 + size - len(partial), len(view) - pos)
                partial += view[pos : pos + take]
                if len(partial) == 4 + size:
                    frames.append(memoryview(partial)[4:])
                    self.partial = bytearray()
                return pos + take
            self._begin_large(size, memoryview(bytes(partial))[4:])
            self.partial = bytearray()
        room = self.direct
        assert room is not None
        take = min(len(room), len(view) - pos)
        room[:take] = view[pos : pos + take]
        frame = self.advance(take)
        if frame is not None:
            frames.append(frame)
        return pos + take

    def _begin_large(self, size: int, start: memoryview) -> None:
        self._large = bytearray(size)
        self._filled = len(start)
        self._large[: len(start)] = start
        self.direct = memoryview(self._large)[self._filled :]

    def _too_long(self, size: int) -> ProtocolError:
        self._broken = f"the peer announced a frame of {size} bytes; the bound is {self.max_frame}"
        self.partial = bytearray()
        return ProtocolError(self._broken)

    def check_invariants(self) -> None:
        """Raise AssertionError if the kept state contradicts itself."""
        assert not (self.partial and self._large is not None)
        assert len(self.partial) < 4 + DIRECT_MIN
        if self._large is None:
            assert self.direct is None and self._filled == 0
        else:
            assert self.direct is not None and DIRECT_MIN <= len(self._large) <= self.max_frame
            assert len(self.direct) == len(self._large) - self._filled > 0
