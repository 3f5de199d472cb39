"""Sets of ranges, against sets of numbers."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from minray.store import ranges as rg

RANGES = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda t: (min(t), max(t))), max_size=6
)


def numbers(ranges: list[rg.Range]) -> set[int]:
    return {n for start, end in ranges for n in range(start, end)}


def is_normal(ranges: list[rg.Range]) -> bool:
    return all(a < b for a, b in ranges) and all(x[1] < y[0] for x, y in itertools.pairwise(ranges))


@given(RANGES, RANGES)
def test_the_algebra(one: list[rg.Range], two: list[rg.Range]) -> None:
    left, right = rg.union(one), rg.union(two)
    assert is_normal(left) and numbers(left) == numbers(one)
    assert numbers(rg.union(one, two)) == numbers(one) | numbers(two)
    assert numbers(rg.subtract(left, right)) == numbers(one) - numbers(two)
    assert numbers(rg.intersect(left, right)) == numbers(one) & numbers(two)
    assert is_normal(rg.subtract(left, right)) and is_normal(rg.intersect(left, right))
    assert rg.size(left) == len(numbers(one))
