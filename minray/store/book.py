"""The node's segments: how much is reserved, who may write, which ranges hold objects. Pure.

Part of ``ExtentTable`` (extents.py), which alone calls it. It also decides how large an extent becomes:
small objects share extents that double with what their writer holds (so a hundred idle workers reserve
little), a large one gets a segment of its own with some room to grow (so that a loop over slightly
different sizes stays warm).

Invariants (``check_invariants``): ``reserved`` is the sum of the segments' sizes and at most the capacity;
the ranges of a segment do not overlap; a segment without a writer has a grace or holds an object.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from minray.wire.errors import ProtocolError

PAGE = 1 << 16  # sizes are multiples of it: the largest page size in use
FIRST_EXTENT = 4 << 20
OWN_SHARE = 4  # an object larger than extent_size / OWN_SHARE gets a segment of its own
CAPACITY_SHARE = 16  # no shared extent takes more than this part of the store


@dataclass(slots=True)
class Segment:
    """One segment; ``ranges`` maps offset → (object id, length) of what shared objects occupy."""

    segment_id: int
    name: str
    size: int
    writer: bytes | None  # None: it died
    request_id: int
    ranges: dict[int, tuple[bytes, int]] = field(default_factory=dict)
    offsets: list[int] = field(default_factory=list)  # the keys of ``ranges``, sorted
    readers: dict[bytes, None] = field(default_factory=dict)  # who ever pinned here, so maps it
    grace_end: float = 0.0  # of an empty segment without a writer

    def fits(self, offset: int, length: int) -> bool:
        """Whether the range is inside and no object occupies any of it."""
        if offset < 0 or length < 0 or offset + length > self.size:
            return False
        index = bisect_right(self.offsets, offset)
        if index < len(self.offsets) and self.offsets[index] < offset + length:
            return False
        if index == 0:
            return True
        before = self.offsets[index - 1]
        return before + self.ranges[before][1] <= offset and before != offset

    def occupy(self, object_id: bytes, offset: int, length: int) -> None:
        """An object lies there from now on. ProtocolError if something else does."""
        if not self.fits(offset, length):
            raise ProtocolError(
                f"object {object_id.hex()} at {offset}+{length} of segment {self.segment_id}"
                f" ({self.size} bytes) lies outside or overlaps another object"
            )
        self.offsets.insert(bisect_left(self.offsets, offset), offset)
        self.ranges[offset] = (object_id, length)

    def vacate(self, offset: int, length: int) -> None:
        """These bytes, a part of one occupied range, hold nothing any more."""
        index = bisect_right(self.offsets, offset) - 1
        start = self.offsets[index]
        object_id, taken = self.ranges.pop(start)
        assert start <= offset and offset + length <= start + taken, (offset, length, start, taken)
        del self.offsets[index]
        if offset + length < start + taken:
            self.occupy(object_id, offset + length, start + taken - offset - length)
        if start < offset:
            self.occupy(object_id, start, offset - start)

    def occupied(self) -> list[tuple[int, int]]:
        """(offset, length) of everything in it, sorted."""
        return [(offset, self.ranges[offset][1]) for offset in self.offsets]


class SegmentBook:
    """All segments of a node."""

    def __init__(self, capacity: int, extent_size: int) -> None:
        self.capacity = capacity
        self.reserved = 0
        self.segments: dict[int, Segment] = {}
        self._shared_limit = max(PAGE, _up(min(extent_size, capacity // CAPACITY_SHARE), PAGE))
        self._own_from = max(1, extent_size // OWN_SHARE)
        self._by_writer: dict[bytes, dict[int, int]] = {}  # writer → segment id → size
        self._orphans: dict[int, None] = {}

    @property
    def available(self) -> int:
        """Bytes that can still be reserved."""
        return self.capacity - self.reserved

    def least(self, size: int) -> int:
        """The smallest segment for an object of ``size`` bytes; at capacity the last page may be short."""
        least = _up(size, PAGE)
        return self.capacity if size <= self.capacity < least else least

    def grant_size(self, writer: bytes, size: int, keep: int = 0) -> int:
        """How large the segment should be that ``writer`` gets for an object of ``size`` bytes, so that ``keep`` bytes
        stay free, if there are as many."""
        least = self.least(size)
        if size > self._own_from:
            wanted = _up(size, max(PAGE, (1 << (size.bit_length() - 1)) // 8))
        else:
            has = sum(n for n in self._by_writer.get(writer, {}).values() if n <= self._shared_limit)
            wanted = min(self._shared_limit, max(FIRST_EXTENT, has))
        wanted = max(wanted, least)
        free = self.available - keep
        if 4 * wanted <= free:
            return wanted
        return min(wanted, max(least, min(_up(self.capacity // 64, PAGE), free)))  # memory is short

    def add(self, segment: Segment) -> None:
        """Reserve it."""
        assert segment.writer is not None
        self.segments[segment.segment_id] = segment
        self._by_writer.setdefault(segment.writer, {})[segment.segment_id] = segment.size
        self.reserved += segment.size

    def remove(self, segment_id: int) -> None:
        """Its bytes are free for others."""
        segment = self.segments.pop(segment_id)
        self.reserved -= segment.size
        self._orphans.pop(segment_id, None)
        if segment.writer is not None:
            mine = self._by_writer[segment.writer]
            del mine[segment_id]
            if not mine:
                del self._by_writer[segment.writer]

    def writable_by(self, worker: bytes, segment_id: int) -> Segment:
        """The segment; ProtocolError if ``worker`` is not its writer."""
        segment = self.segments.get(segment_id)
        if segment is None or segment.writer != worker:
            raise ProtocolError(f"segment {segment_id} is not an extent of {worker.hex()}")
        return segment

    def writer_of(self, segment_id: int) -> bytes | None:
        """Its living writer; None if there is no such segment, or none such writer."""
        segment = self.segments.get(segment_id)
        return None if segment is None else segment.writer

    def writers(self) -> list[bytes]:
        """Everybody who holds extents."""
        return list(self._by_writer)

    def writer_died(self, worker: bytes, grace_end: float) -> list[Segment]:
        """Its segments have no writer from now on."""
        orphans = [self.segments[segment_id] for segment_id in self._by_writer.pop(worker, ())]
        for segment in orphans:
            segment.writer = None
            segment.grace_end = grace_end
            self._orphans[segment.segment_id] = None
        return orphans

    def abandoned(self, now: float | None) -> list[Segment]:
        """Empty segments without a writer whose grace is over (None: whatever their grace)."""
        return [s for s in self._empty_orphans() if now is None or s.grace_end <= now]

    def grace_ends(self) -> list[float]:
        """When empty segments without a writer are to go."""
        return [segment.grace_end for segment in self._empty_orphans()]

    def _empty_orphans(self) -> Iterator[Segment]:
        for segment_id in self._orphans:
            segment = self.segments[segment_id]
            if not segment.ranges:
                yield segment

    def check_invariants(self) -> None:
        """AssertionError if sums or ranges are wrong."""
        assert self.reserved == sum(s.size for s in self.segments.values()) <= self.capacity
        by_writer: dict[bytes, dict[int, int]] = {}
        for segment_id, segment in self.segments.items():
            assert segment.segment_id == segment_id
            if segment.writer is not None:
                by_writer.setdefault(segment.writer, {})[segment_id] = segment.size
            else:
                assert segment_id in self._orphans
            assert segment.offsets == sorted(segment.ranges)
            end = 0
            for offset, length in segment.occupied():
                assert end <= offset, f"segment {segment_id}: objects overlap at {offset}"
                end = offset + length
            assert end <= segment.size
        assert by_writer == self._by_writer
        assert set(self._orphans) <= set(self.segments)


def _up(count: int, unit: int) -> int:
    return -(-count // unit) * unit
