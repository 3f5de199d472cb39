"""What a process holds of the objects in its store: ``Hold`` for readers, ``Entry`` for the client's books.

Part of the client (client.py), which alone makes them. A ``Hold`` is what readers see: the right to look
at one object. An ``Entry`` is one object that this process wrote or reads, and adds up its Holds.

Invariant: a byte of an entry is *held* while a Hold of the whole object, or a part that covers it, lives.
Ending a Hold only appends to the client's deque, so it is safe in finalizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from minray.store import ranges as rg
from minray.store.mapping import ALIGN, SegmentMap, aligned

GivenUp = Callable[["Entry", "rg.Range | None"], None]
Also = Callable[["Entry", "list[rg.Range]"], None]


class Gone:
    """What ``acquire`` gives for an object that is not here (any more).

    ``kind``: "freed" (its owner, or the end of that, has freed it; or it never came to be), "lost" (of another
    node, and no copy can be reached: perhaps it can be made again), "full" (there is no room here for a copy).
    """

    __slots__ = ("kind", "reason")

    def __init__(self, reason: str, kind: str = "freed") -> None:
        self.reason = reason
        self.kind = kind

    def __repr__(self) -> str:
        return f"Gone({self.reason!r}, {self.kind!r})"


class Entry:
    """One object that this process wrote (``mine``) or has pinned."""

    __slots__ = (
        "announced", "freed", "holds", "length", "map", "mine", "object_id", "offset", "owned", "parts",
        "pins", "reported", "segment_id",
    )  # fmt: skip

    def __init__(
        self, object_id: bytes, location: tuple[int, int, int], segment: SegmentMap, *, mine: bool
    ) -> None:
        self.object_id = object_id
        self.segment_id, self.offset, self.length = location
        self.map = segment
        self.mine = mine
        self.reported = not mine  # the node knows it
        self.holds = 0  # Holds of the whole object
        self.parts: dict[rg.Range, int] = {}  # ranges held for themselves
        self.pins = 0  # how often it is pinned at the node
        self.announced = self.length  # how many bytes the node thinks we read
        whole = (0, aligned(self.length) or ALIGN)
        self.owned = [whole] if mine else []  # what of it is still allocated in our arena
        self.freed: list[rg.Range] = []  # mine: what its owner and the node have given back

    def __repr__(self) -> str:
        kind = "mine" if self.mine else "pinned"
        return (
            f"<Entry {self.object_id.hex()[:12]} {kind} {self.segment_id}:{self.offset}+{self.length}"
            f" holds={self.holds} parts={self.parts}>"
        )

    @property
    def is_held(self) -> bool:
        """Whether anything of it is held."""
        return self.holds > 0 or bool(self.parts)

    def held(self) -> list[rg.Range]:
        """What is held, in whole multiples of ALIGN."""
        if self.holds:
            return [(0, aligned(self.length) or ALIGN)]
        return rg.union((start & -ALIGN, aligned(end)) for start, end in self.parts)

    def give_up(self, part: rg.Range | None) -> None:
        """One Hold, or one part of a split one, has ended."""
        if part is None:
            self.holds -= 1
            return
        count = self.parts[part]
        if count == 1:
            del self.parts[part]
        else:
            self.parts[part] = count - 1

    def returnable(self) -> list[rg.Range]:
        """Mine: what can go back to the arena now; it no longer counts as owned."""
        ranges = rg.subtract(rg.intersect(self.owned, self.freed), self.held())
        self.owned = rg.subtract(self.owned, ranges)
        return ranges

    def narrowed(self) -> list[rg.Range] | None:
        """Not mine: the ranges to announce to the node, if that lets it free at least half as much again."""
        if self.holds or not self.parts:
            return None
        ranges = [(start, min(end, self.length)) for start, end in self.held()]
        count = rg.size(ranges)
        if 2 * count > self.announced:  # each announcement at least halves: their number is logarithmic
            return None
        self.announced = count
        return ranges


class Hold:
    """The right to read one object. ``view`` is read-only and covers all of it.

    It ends by ``release()``. Before that, ``also_parts`` can take further rights, to ranges of the object,
    which end one by one. A Hold that is forgotten is never released: a view may still be in use.
    """

    __slots__ = ("_also", "_entry", "_given_up", "_parts", "view")

    def __init__(self, entry: Entry, view: memoryview, given_up: GivenUp, also: Also) -> None:
        self._entry = entry
        self._given_up = given_up
        self._also = also
        self._parts: list[rg.Range] = []
        self.view: memoryview | None = view

    def __repr__(self) -> str:
        return f"<Hold {self._entry!r}>"

    @property
    def place(self) -> tuple[int, int]:
        """Segment and offset of the copy that it reads."""
        return self._entry.segment_id, self._entry.offset

    def release(self) -> None:
        """Read no more, except parts. Callable anywhere, also in finalizers; only once."""
        self.view = None
        self._given_up(self._entry, None)

    def also_parts(self, parts: Iterable[rg.Range]) -> None:
        """Hold these ranges ``(start, end)``, too, each for itself. Before ``release``, and only once."""
        self._parts = list(parts)
        self._also(self._entry, self._parts)

    def release_part(self, index: int) -> None:
        """Give up the range with that number. Callable anywhere, also in finalizers; only once each."""
        self._given_up(self._entry, self._parts[index])
