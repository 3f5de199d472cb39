"""Arena: ranges never overlap, everything comes back, and the warmest room is taken first."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from minray.store.arena import Arena
from minray.store.mapping import ALIGN


def test_equal_allocations_reuse_the_same_bytes() -> None:
    arena = Arena()
    arena.add(1, 4096, 0.0)
    first = arena.allocate(1000, 1.0)
    assert first == (1, 0)
    arena.free(1, 0, 1000, 2.0)
    assert arena.allocate(1000, 3.0) == first


def test_an_extent_can_be_used_up_exactly_even_at_an_odd_size() -> None:
    arena = Arena()
    arena.add(1, 1000, 0.0)
    assert arena.allocate(1000, 0.0) == (1, 0)
    assert arena.allocate(1, 0.0) is None
    arena.free(1, 0, 1000, 0.0)
    arena.check_invariants()
    assert arena.empty() == [1]


def test_bytes_that_were_used_before_are_preferred_to_new_ones() -> None:
    arena = Arena()
    arena.add(1, 4096, 0.0)
    assert arena.allocate(2048, 1.0) == (1, 0)
    arena.free(1, 0, 2048, 2.0)
    arena.add(2, 4096, 3.0)  # newer, but cold
    assert arena.allocate(1024, 4.0) == (1, 0)
    assert arena.allocate(4096, 5.0) == (2, 0)


def test_the_most_recently_used_extent_comes_first() -> None:
    arena = Arena()
    for segment in (1, 2):
        arena.add(segment, 64, 0.0)
    offsets = [arena.allocate(64, 1.0), arena.allocate(64, 1.0)]
    assert sorted(o for o in offsets if o) == [(1, 0), (2, 0)]
    arena.free(2, 0, 64, 2.0)
    arena.free(1, 0, 64, 3.0)
    assert arena.allocate(64, 4.0) == (1, 0)


def test_small_objects_stay_out_of_the_segment_of_a_large_one_unless_memory_is_short() -> None:
    arena = Arena()
    arena.add(1, 64 << 20, 0.0, made_for=60 << 20)
    assert arena.allocate(60 << 20, 0.0) == (1, 0)
    arena.free(1, 0, 60 << 20, 0.0)
    assert arena.allocate(1000, 0.0) is None
    assert arena.allocate(8 << 20, 0.0) == (1, 0)
    assert arena.allocate(1000, 0.0, anywhere=True) == (1, 8 << 20)
    shared = Arena()
    shared.add(1, 64 << 20, 0.0, made_for=1 << 20)
    assert shared.allocate(1000, 0.0) == (1, 0)


def test_parts_of_an_allocation_can_be_freed() -> None:
    arena = Arena()
    arena.add(1, 1024, 0.0)
    arena.allocate(640, 0.0)
    arena.free(1, 128, 64, 0.0)
    arena.check_invariants()
    assert arena.allocate(64, 0.0) == (1, 128)
    arena.free(1, 0, 128, 0.0)
    arena.free(1, 192, 448, 0.0)
    arena.free(1, 128, 64, 0.0)
    arena.check_invariants()
    assert arena.allocated_bytes == 0


@pytest.mark.parametrize(("offset", "length"), [(64, 64), (0, 129), (512, 64), (0, 1024), (32, 32)])
def test_freeing_what_is_not_allocated_is_an_error(offset: int, length: int) -> None:
    arena = Arena()
    arena.add(1, 1024, 0.0)
    arena.allocate(128, 0.0)
    arena.allocate(64, 0.0)
    arena.free(1, 0, 128, 0.0)
    with pytest.raises(ValueError, match="not allocated"):
        arena.free(1, offset, length, 0.0)
    arena.check_invariants()


def test_an_extent_in_use_cannot_be_removed() -> None:
    arena = Arena()
    arena.add(1, 1024, 0.0)
    arena.allocate(1, 0.0)
    with pytest.raises(ValueError, match="1 allocations"):
        arena.remove(1)
    with pytest.raises(ValueError, match="here already"):
        arena.add(1, 1024, 0.0)


def test_idle_extents_are_those_unused_for_long() -> None:
    arena = Arena()
    for segment in (1, 2, 3):
        arena.add(segment, 1024, 0.0)
        arena.allocate(1024, 0.0)
    arena.free(1, 0, 1024, 5.0)
    arena.free(2, 0, 1024, 7.0)
    assert arena.empty() == [1, 2]
    assert arena.empty(unused_since=6.0) == [1]
    assert arena.oldest_empty() == 5.0


class ArenaMachine(RuleBasedStateMachine):
    """Against a model that is a set of bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena()
        self.sizes: dict[int, int] = {}
        self.live: list[tuple[int, int, int]] = []  # segment, offset, size asked for
        self.now = 0.0

    def tick(self) -> float:
        self.now += 1.0
        return self.now

    @rule(size=st.integers(1, 40))
    def add(self, size: int) -> None:
        segment = len(self.sizes) + 1
        self.sizes[segment] = size * ALIGN
        self.arena.add(segment, size * ALIGN, self.tick())

    @rule(size=st.integers(0, 700))
    def allocate(self, size: int) -> None:
        room = self.arena.allocate(size, self.tick())
        if room is None:
            return
        segment, offset = room
        assert offset % ALIGN == 0 and offset + size <= self.sizes[segment]
        for other, start, length in self.live:
            assert other != segment or offset + max(size, 1) <= start or start + max(length, 1) <= offset
        self.live.append((segment, offset, size))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.live) - 1))
        segment, offset, size = self.live.pop(index)
        blocks = -(-max(size, 1) // ALIGN)
        cut = data.draw(st.integers(0, blocks - 1))
        if cut:  # in two parts
            self.arena.free(segment, offset + cut * ALIGN, size - cut * ALIGN, self.tick())
            self.arena.free(segment, offset, cut * ALIGN, self.tick())
        else:
            self.arena.free(segment, offset, size, self.tick())

    @rule()
    def return_empty(self) -> None:
        for segment in self.arena.empty():
            assert all(segment != s for s, _, _ in self.live)
            self.arena.remove(segment)

    @invariant()
    def consistent(self) -> None:
        self.arena.check_invariants()

    def teardown(self) -> None:
        for segment, offset, size in self.live:
            self.arena.free(segment, offset, size, self.tick())
        self.arena.check_invariants()
        assert self.arena.allocated_bytes == 0
        assert len(self.arena.empty()) == len(self.arena)


TestArenaMachine = ArenaMachine.TestCase
TestArenaMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
