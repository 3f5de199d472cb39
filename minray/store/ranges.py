"""Sets of bytes, as sorted lists of half-open ranges ``(start, end)`` that do not touch. Pure functions.

Used by the node's table and by the client to work out which part of an object may be reused while
somebody still looks at another part of it.
"""

from __future__ import annotations

from collections.abc import Iterable

Range = tuple[int, int]


def union(*sets: Iterable[Range]) -> list[Range]:
    """Everything that is in one of them; the inputs may be unsorted and overlap."""
    result: list[Range] = []
    for start, end in sorted(r for s in sets for r in s if r[0] < r[1]):
        if result and start <= result[-1][1]:
            if end > result[-1][1]:
                result[-1] = (result[-1][0], end)
        else:
            result.append((start, end))
    return result


def subtract(left: list[Range], right: list[Range]) -> list[Range]:
    """What is in ``left`` and not in ``right``."""
    result: list[Range] = []
    index = 0
    for begin, end in left:
        start = begin
        while index < len(right) and right[index][1] <= start:
            index += 1
        at = index
        while at < len(right) and right[at][0] < end:
            if right[at][0] > start:
                result.append((start, right[at][0]))
            start = max(start, right[at][1])
            at += 1
        if start < end:
            result.append((start, end))
    return result


def intersect(left: list[Range], right: list[Range]) -> list[Range]:
    """What is in both."""
    return subtract(left, subtract(left, right))


def size(ranges: Iterable[Range]) -> int:
    """How many bytes."""
    return sum(end - start for start, end in ranges)
