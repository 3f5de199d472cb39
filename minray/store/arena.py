"""Where a writer puts its objects: allocation inside the extents that its node lent it. Pure.

``client.py`` owns the only instance, under its lock. An extent is a segment that this process alone
allocates in; the arena knows ranges, never bytes. What it gives out is the *warmest* room that fits: bytes
that were allocated before (below ``reached``) rather than new ones, the most recently used extent first, in
it the lowest offset, so that a loop of allocations and frees stays in the same pages.

Invariants (``check_invariants``): the allocated and the free ranges of an extent tile it exactly; free
ranges are sorted, not empty and never touch each other; all boundaries except the end are multiples of ALIGN.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from minray.store.mapping import ALIGN, aligned

LARGE = 32 << 20  # an extent of that size, asked for by an object that takes most of it,
FEW = 8  # is only for objects of at least this part of its size


@dataclass(slots=True)
class _Extent:
    size: int
    free: list[tuple[int, int]]  # (offset, length), sorted
    taken: dict[int, int] = field(default_factory=dict)  # offset → length
    largest: int = 0  # an upper bound of the largest free range
    reached: int = 0  # no allocation ever went beyond
    used_at: float = 0.0
    least: int = 0  # smaller allocations stay out, unless memory is short


class Arena:
    """Ranges of this process's extents: ``allocate``, ``free``, and which extents may go back."""

    def __init__(self) -> None:
        self._extents: dict[int, _Extent] = {}  # by segment id, least recently used first
        self.allocated_bytes = 0
        self.total_bytes = 0

    def __repr__(self) -> str:
        return f"<Arena {self.allocated_bytes} of {self.total_bytes} bytes in {len(self._extents)} extents>"

    def __len__(self) -> int:
        return len(self._extents)

    def __contains__(self, segment_id: int) -> bool:
        return segment_id in self._extents

    def add(self, segment_id: int, size: int, now: float, made_for: int = 0) -> None:
        """A new, empty extent, requested for ``made_for`` bytes. It counts as the most recently used."""
        if segment_id in self._extents:
            raise ValueError(f"extent {segment_id} is here already")
        if size <= 0:
            raise ValueError(f"an extent has at least one byte, got {size}")
        least = size // FEW if size >= LARGE and 2 * made_for > size else 0
        self._extents[segment_id] = _Extent(size, [(0, size)], largest=size, used_at=now, least=least)
        self.total_bytes += size

    def allocate(self, size: int, now: float, *, anywhere: bool = False) -> tuple[int, int] | None:
        """(segment id, offset) of ``size`` bytes (0 takes ALIGN), or None: then an extent is needed.

        Small objects stay out of the segments of large ones, which could not go back then; with
        ``anywhere`` (memory is short) they do not.
        """
        size = max(size, 1)
        need = aligned(size)
        cold: tuple[int, int] | None = None  # the first fit that would be new memory, as (segment id, index)
        for segment_id in reversed(self._extents):
            extent = self._extents[segment_id]
            if extent.largest < size or (size < extent.least and not anywhere):
                continue
            index = _first_fit(extent, size)
            if index is None:
                continue
            if extent.free[index][0] + need <= extent.reached:
                return segment_id, self._take(segment_id, index, need, now)
            if cold is None:
                cold = segment_id, index
        if cold is None:
            return None
        return cold[0], self._take(*cold, need, now)

    def _take(self, segment_id: int, index: int, need: int, now: float) -> int:
        extent = self._extents[segment_id]
        offset, length = extent.free[index]
        taken = min(need, length)  # an extent's last bytes may fall short of a multiple of ALIGN
        if taken == length:
            del extent.free[index]
        else:
            extent.free[index] = (offset + taken, length - taken)
        extent.taken[offset] = taken
        extent.reached = max(extent.reached, offset + taken)
        self.allocated_bytes += taken
        self._touch(segment_id, extent, now)
        return offset

    def free(self, segment_id: int, offset: int, length: int, now: float) -> None:
        """Give back an allocation, or a part of one (whole multiples of ALIGN, but at its end).

        ValueError if these bytes are not wholly inside one allocation.
        """
        extent = self._extents[segment_id]
        start = offset
        if start not in extent.taken:  # a part: look for what it is a part of
            start = max((o for o in extent.taken if o < offset), default=-1)
        taken = extent.taken.get(start, 0)
        end, stop = start + taken, offset + aligned(max(length, 1))
        if offset + length <= end < stop:  # the last bytes of an extent
            stop = end
        if start < 0 or stop > end or offset % ALIGN:
            raise ValueError(f"{offset}+{length} is not allocated in extent {segment_id}")
        del extent.taken[start]
        if offset > start:
            extent.taken[start] = offset - start
        if stop < end:
            extent.taken[stop] = end - stop
        _give(extent, offset, stop - offset)
        self.allocated_bytes -= stop - offset
        self._touch(segment_id, extent, now)

    def remove(self, segment_id: int) -> None:
        """Forget an empty extent. ValueError if something is allocated in it."""
        extent = self._extents[segment_id]
        if extent.taken:
            raise ValueError(f"extent {segment_id} holds {len(extent.taken)} allocations")
        del self._extents[segment_id]
        self.total_bytes -= extent.size

    def is_empty(self, segment_id: int) -> bool:
        """Whether nothing is allocated in this extent."""
        return not self._extents[segment_id].taken

    def empty(self, *, unused_since: float | None = None) -> list[int]:
        """Extents without allocations; with ``unused_since`` only those not used after that moment."""
        return [
            segment_id
            for segment_id, extent in self._extents.items()
            if not extent.taken and (unused_since is None or extent.used_at <= unused_since)
        ]

    def oldest_empty(self) -> float | None:
        """When the longest unused of the empty extents was used last; None without empty ones."""
        return min((e.used_at for e in self._extents.values() if not e.taken), default=None)

    def _touch(self, segment_id: int, extent: _Extent, now: float) -> None:
        extent.used_at = now
        del self._extents[segment_id]
        self._extents[segment_id] = extent  # now the most recently used

    def check_invariants(self) -> None:
        """AssertionError if the ranges do not tile the extents."""
        allocated = 0
        for segment_id, extent in self._extents.items():
            taken = [(offset, length, True) for offset, length in extent.taken.items()]
            ranges = sorted(taken + [(offset, length, False) for offset, length in extent.free])
            at, was_free = 0, False
            for offset, length, is_taken in ranges:
                assert offset == at, f"extent {segment_id}: hole or overlap at {at}, next range at {offset}"
                assert length > 0, f"extent {segment_id}: empty range at {offset}"
                assert offset % ALIGN == 0, f"extent {segment_id}: {offset} is not aligned"
                assert is_taken or not was_free, f"extent {segment_id}: free ranges touch at {offset}"
                at, was_free = offset + length, not is_taken
            assert at == extent.size, f"extent {segment_id}: ranges end at {at} of {extent.size}"
            assert extent.free == sorted(extent.free)
            assert extent.largest >= max((n for _, n in extent.free), default=0)
            allocated += sum(extent.taken.values())
        assert allocated == self.allocated_bytes
        assert sum(e.size for e in self._extents.values()) == self.total_bytes


def _first_fit(extent: _Extent, size: int) -> int | None:
    """Index of the lowest free range of at least ``size``; without one, ``largest`` becomes exact."""
    largest = 0
    for index, (_, length) in enumerate(extent.free):
        if length >= size:
            return index
        largest = max(largest, length)
    extent.largest = largest
    return None


def _give(extent: _Extent, offset: int, length: int) -> None:
    """Insert a free range and join it with its neighbours."""
    free = extent.free
    index = bisect_left(free, (offset, 0))
    end = offset + length
    if index < len(free) and free[index][0] == end:
        end += free[index][1]
        del free[index]
    if index > 0 and free[index - 1][0] + free[index - 1][1] == offset:
        offset = free[index - 1][0]
        free[index - 1] = (offset, end - offset)
    else:
        free.insert(index, (offset, end - offset))
    extent.largest = max(extent.largest, end - offset)
