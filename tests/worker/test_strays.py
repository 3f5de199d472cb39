"""Copies of results that do not count: freed when nobody can want them any more, never beside the one that counts."""

from __future__ import annotations

from typing import Any

import pytest

from minray.wire.messages import LeaseGrant
from minray.worker.references import ERROR, INLINE, STORED
from minray.worker.tasks import END, ITEM, STREAMING, Task

from .support import NODE, RAISED, CoreWorld, address

OTHER = b"o" * 28
LATE = (NODE, 5, 0, 100)


def at(location: Any) -> tuple[Any, ...]:
    return (location, 100, [])


class StrayWorld(CoreWorld):
    """A task whose first worker has died with its answer on the way."""

    def __init__(self, *, n: int = 1) -> None:
        super().__init__()
        self.task, self.ids = self.submit(n=n)
        self.do(self.core.owner.on_worker_died, 1, (self.task.seq, 0), {}, self.now)
        self.do(self.core.owner.on_peer_lost, address("w1")[1])
        self.do(self.core.on_grant, LeaseGrant(1, 2, address("w2"), {}), self.now)
        assert self.task.attempt == 1
        self.did()

    def late(self, location: Any = LATE, *, status: int = STORED, value: Any = None) -> None:
        self.answer(self.task, status, value or at(location), attempt=0)

    def freed(self) -> list[Any]:
        """The places that have been given back."""
        out = [effect[2].value[0] for effect in self.stored_freed]
        self.stored_freed.clear()
        return out

    def gather(self) -> None:
        self.stored_freed = getattr(self, "stored_freed", [])
        self.stored_freed += [e for e in self.effects if e[0] == "freed" and e[2].status == STORED]
        super().gather()


@pytest.mark.parametrize(("status", "value"), [(INLINE, b"v"), (INLINE, (b"v", [], [])), (ERROR, RAISED)])
def test_a_late_copy_goes_when_the_task_ends_in_something_else(status: int, value: Any) -> None:
    world = StrayWorld()
    world.late()
    assert world.freed() == [], "the next attempt may write it, too"
    world.answer(world.task, status, value)
    assert world.freed() == [LATE]
    world.drop(world.ids[0])
    assert world.freed() == []


def test_a_late_copy_on_the_same_node_goes_with_the_object() -> None:
    world = StrayWorld()
    world.late()
    place = (NODE, 9, 0, 100)
    world.answer(world.task, STORED, at(place))
    assert world.freed() == []
    world.drop(world.ids[0])
    assert world.freed() == [place]


def test_a_late_copy_on_another_node_goes_alone() -> None:
    world = StrayWorld()
    elsewhere = (OTHER, 5, 0, 100)
    world.late(elsewhere)
    world.answer(world.task, STORED, at((NODE, 9, 0, 100)))
    assert world.freed() == [elsewhere]


def test_a_late_copy_of_what_was_dropped_meanwhile() -> None:
    world = StrayWorld()
    world.drop(world.ids[0])
    world.late()
    assert world.freed() == [LATE], "nobody wants it, whoever makes it"


def test_a_late_copy_after_the_end() -> None:
    world = StrayWorld()
    world.answer(world.task, INLINE, b"v")
    world.late()
    assert world.freed() == [LATE]


def test_a_late_copy_of_a_task_that_fails_without_an_answer() -> None:
    world = StrayWorld()
    world.late()
    world.do(world.core.owner.on_worker_died, 2, (world.task.seq, 1), {}, world.now)
    world.task.retries = 0
    world.do(world.core.owner.on_peer_lost, address("w2")[1])
    assert world.holds(world.ids[0])[0] == ERROR
    assert world.freed() == [LATE]


class StreamStrays(StrayWorld):
    """The same of a generator."""

    def __init__(self) -> None:
        super().__init__(n=STREAMING)
        self.stream = self.core.streams[self.task.seq]

    def item(self, index: int, location: Any, *, attempt: int) -> None:
        self.answer(self.task, ITEM, (index, STORED, at(location)), attempt=attempt)

    def place(self, number: int) -> Any:
        return (NODE, number, 0, 100)


def test_a_late_item_that_the_next_attempt_may_yield_waits_for_the_end() -> None:
    world = StreamStrays()
    world.item(0, world.place(1), attempt=0)
    world.item(1, world.place(2), attempt=0)
    assert world.freed() == []
    world.item(0, world.place(3), attempt=1)
    world.answer(world.task, END, 0)
    assert world.freed() == [world.place(2)], "the second one never came; the first one goes with what did"
    item = world.do(world.core.stream_take, world.stream)
    world.drop(item)
    assert world.freed() == [world.place(3)]


def test_a_repeated_item_that_was_dropped_goes_at_once() -> None:
    """A generator that is repeated from the start may repeat more than the store holds."""
    world = StreamStrays()
    world.item(0, world.place(1), attempt=1)
    world.drop(world.do(world.core.stream_take, world.stream))
    assert world.freed() == [world.place(1)]
    world.item(0, world.place(2), attempt=1)
    assert world.freed() == [world.place(2)]


def test_what_a_dead_process_had_written_and_did_not_tell_goes_with_its_task() -> None:
    world = StrayWorld()
    world.do(world.core.strays.left_behind, NODE, [(world.ids[0], *LATE[1:])])
    assert world.freed() == [], "its answer may still be unread"
    world.answer(world.task, ERROR, RAISED)
    assert world.freed() == [LATE]


def test_what_a_dead_process_had_written_and_told_is_left_alone() -> None:
    world = StrayWorld()
    world.answer(world.task, STORED, at(LATE))
    world.do(world.core.strays.left_behind, NODE, [(world.ids[0], *LATE[1:])])
    assert world.freed() == []


def test_items_that_a_dead_process_had_written_and_nobody_heard_of_go_with_the_stream() -> None:
    world = StreamStrays()
    world.item(0, world.place(1), attempt=1)
    unheard = [(world.core.object_id(world.task.seq, 2 + index), *world.place(5 + index)[1:]) for index in range(3)]
    world.do(world.core.strays.left_behind, NODE, unheard)
    assert world.freed() == []
    world.answer(world.task, END, 0)
    assert world.freed() == [world.place(6), world.place(7)]


def test_nothing_is_kept_of_a_task_that_is_over() -> None:
    world = StrayWorld()
    world.late()
    assert list(world.core.strays.kept) == [world.task.seq]
    world.answer(world.task, INLINE, b"v")
    assert world.core.strays.kept == {}
    other: Task = world.submit()[0]
    world.answer(other, INLINE, b"v")
    assert world.freed() == [LATE]
