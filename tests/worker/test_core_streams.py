"""Streaming generators at their owner: items, ends, errors, retries that repeat, backpressure, abandonment."""

from __future__ import annotations

from typing import Any

import pytest

from minray.wire.messages import GiveBack, StreamAck
from minray.worker.core import END_OF_STREAM, PICKLED_NONE
from minray.worker.references import ERROR, INLINE, PENDING, STORED
from minray.worker.tasks import END, ITEM, RETRY, STREAMING, Stream

from .support import CAUSE, RAISED, THEIRS, Asker, CoreWorld, address, stored


class StreamWorld(CoreWorld):
    """One generator in flight: a task's, or an actor call's."""

    def __init__(self, *, limit: int = 0, call: bool = False, **fields: Any) -> None:
        super().__init__()
        if call:
            self.actor_is("ALIVE")
            extra: dict[str, Any] = {"n": STREAMING}
            if limit:
                extra["backpressure"] = limit
            self.task, ids = self.call(n=STREAMING, extra=extra, **fields)
        else:
            self.task, ids = self.submit(n=STREAMING, backpressure=limit, **fields)
        assert ids == []
        self.stream: Stream = self.core.streams[self.task.seq]
        self.did()

    def item_id(self, index: int) -> bytes:
        return self.core.object_id(self.task.seq, 2 + index)

    def item(self, index: int, value: Any = b"item", status: int = INLINE, **fields: Any) -> None:
        """The worker yields."""
        self.answer(self.task, ITEM, (index, status, value), **fields)

    def end(self) -> None:
        self.answer(self.task, END, 0)

    def next(self) -> bytes | None:
        """The user takes an item."""
        taken: bytes | None = self.do(self.core.stream_take, self.stream)
        return taken

    def peek(self, index: int) -> bytes:
        """A reference to something that is not there yet, as StreamOps makes it."""
        object_id = self.core.object_id(self.task.seq, index)
        self.core.refs.own(object_id).task = self.task
        return object_id

    def wait(self) -> Asker:
        asker = Asker()
        self.stream.waiters.append(asker)
        return asker

    def release(self) -> None:
        """The generator object is gone."""
        self.do(self.core.release_stream, self.task.seq)

    def given_back(self) -> None:
        """The task goes to its next attempt."""
        named = [(self.task.seq, self.task.attempt)]
        self.do(self.core.on_give_back, GiveBack(1, named, False, False), self.now)
        self.did()


@pytest.mark.parametrize("call", [False, True])
def test_items_are_taken_in_order(call: bool) -> None:
    world = StreamWorld(call=call)
    assert world.next() is None
    world.item(0, b"a")
    world.item(1, b"b")
    assert world.stream.produced == 2
    assert [world.next(), world.next(), world.next()] == [world.item_id(0), world.item_id(1), None]
    assert world.holds(world.item_id(1)) == (INLINE, b"b")
    world.end()
    assert world.stream.ended()
    assert world.did() == []
    for index in (0, 1):
        world.drop(world.item_id(index))
    assert world.core.objects == {}


def test_the_stream_keeps_an_item_until_it_is_taken() -> None:
    world = StreamWorld()
    world.item(0, stored(), STORED)
    record = world.core.objects[world.item_id(0)]
    assert (record.local, record.held) == (0, 1)
    world.next()
    assert (record.local, record.held) == (1, 0)
    world.drop(world.item_id(0))
    assert world.did() == [("freed", world.item_id(0))]


def test_the_end_comes_after_the_last_item_is_taken() -> None:
    world = StreamWorld()
    world.item(0)
    world.end()
    assert world.stream.total == 1
    assert not world.stream.ended()
    world.next()
    assert world.stream.ended()


def test_whoever_waits_for_the_next_item_is_woken_once() -> None:
    world = StreamWorld()
    first = world.wait()
    world.item(0)
    assert first.heard == [None]
    second = world.wait()
    world.item(1)
    third = world.wait()
    world.end()
    assert first.heard == second.heard == third.heard == [None]


def test_an_item_that_was_peeked_at() -> None:
    world = StreamWorld()
    object_id = world.peek(2)
    asker = world.ask(object_id)
    world.item(0, b"a")
    record = world.core.objects[object_id]
    assert (record.status, record.value, record.local, record.held) == (INLINE, b"a", 1, 1)
    assert asker.heard == [object_id]


# -- ends ------------------------------------------------------------------------------------------


def test_a_good_end_tells_those_who_hold_its_completion_or_a_peek_beyond() -> None:
    world = StreamWorld()
    completed, beyond, other = world.peek(1), world.peek(3), world.peek(9)
    world.item(0)
    assert world.holds(completed)[0] == PENDING
    world.end()
    assert world.holds(completed) == (INLINE, PICKLED_NONE)
    assert world.holds(beyond) == (ERROR, END_OF_STREAM)
    assert world.holds(other)[0] == PENDING
    assert world.stream.outcome == (INLINE, PICKLED_NONE)


def test_an_exception_is_one_more_item_and_completes_the_task() -> None:
    world = StreamWorld()
    completed = world.peek(1)
    world.item(0)
    world.answer(world.task, ERROR, RAISED)
    assert world.stream.total == 2
    assert world.holds(world.item_id(1)) == (ERROR, RAISED)
    assert world.holds(completed) == (INLINE, PICKLED_NONE), "the body raised: the task itself was completed"
    assert list(world.core.failures) == [("f1", RAISED)]


def test_the_end_of_its_worker_is_an_item_and_fails_the_task() -> None:
    world = StreamWorld(retries=0)
    completed = world.peek(1)
    world.item(0)
    world.do(world.core.owner.on_worker_died, 1, (world.task.seq, 0), CAUSE, world.now)
    world.do(world.core.on_peer_lost, address("w1")[1])
    crashed = ("crashed", "f1", CAUSE)
    assert world.holds(world.item_id(1)) == world.holds(completed) == (ERROR, crashed)
    assert world.stream.outcome == (ERROR, crashed)


def test_a_cancelled_generator_that_never_ran() -> None:
    world = CoreWorld(worker=False)
    task, _ = world.submit(n=STREAMING)
    world.do(world.core.cancel_task, task, force=False, recursive=False)
    stream = world.core.streams[task.seq]
    assert stream.total == 1
    assert world.holds(world.core.object_id(task.seq, 2)) == (ERROR, ("cancelled", "f1"))


# -- retries ---------------------------------------------------------------------------------------


def test_a_retried_generator_repeats_itself_and_its_first_items_are_not_taken_twice() -> None:
    world = StreamWorld(limit=2)
    world.item(0, b"a")
    world.item(1, b"b")
    world.next()
    world.given_back()
    for index, value in enumerate((b"A", b"B", b"C")):
        world.item(index, value)
    assert [world.holds(world.item_id(i))[1] for i in range(3)] == [b"a", b"b", b"C"]
    ack = ("w1", StreamAck(world.task.seq, 1, 1))
    assert world.did() == [ack, ack], "it must not wait for what the user took long ago"


def test_a_repeated_item_lets_go_of_what_it_brings() -> None:
    world = StreamWorld()
    owner = address("B")
    world.item(0)
    world.item(1)
    world.given_back()
    world.item(1, (b"", [], [(THEIRS, owner, True)]))
    assert [entry for entry in world.did() if entry[0] == "release"] == [("release", owner, THEIRS, 1)]
    world.item(1, stored(), STORED)
    assert world.did() == [("freed", world.item_id(1))], "the first one is small: nothing else frees this copy"


def test_items_of_an_older_attempt_are_ignored() -> None:
    world = StreamWorld(limit=2)
    world.given_back()
    world.item(0, attempt=0)
    assert world.stream.produced == 0
    assert world.did() == []


def test_a_generator_that_raised_is_retried() -> None:
    world = StreamWorld(retries=1)
    world.item(0)
    world.answer(world.task, RETRY, RAISED)
    assert world.batches() == [(1, [(1, 1)])]
    assert world.stream.total is None
    world.item(0)
    world.item(1)
    world.end()
    assert world.stream.total == 2


# -- backpressure ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "name"), [(False, "w1"), (True, "a0")])
def test_the_producer_is_told_how_far_the_consumer_is(call: bool, name: str) -> None:
    world = StreamWorld(limit=1, call=call)
    seq = world.task.seq
    world.item(0)
    world.item(1)
    assert world.did() == []
    world.next()
    world.next()
    assert world.did() == [(name, StreamAck(seq, 0, 1)), (name, StreamAck(seq, 0, 2))]
    world.next()
    assert world.did() == [], "nothing was taken"
    world.item(2)
    world.end()
    world.next()
    assert world.did() == [], "nobody waits any more"


@pytest.mark.parametrize("call", [False, True])
def test_without_backpressure_nothing_is_told(call: bool) -> None:
    world = StreamWorld(call=call)
    world.item(0)
    world.next()
    assert world.did() == []


def test_a_producer_that_is_nowhere_is_told_later() -> None:
    world = StreamWorld(limit=2, call=True, retries=1)
    world.item(0)
    world.do(world.core.on_peer_lost, address("a0")[1])
    world.actor_is("RESTARTING", 1)
    world.did()
    world.next()
    assert world.did() == []
    world.actor_is("ALIVE", 1)
    world.did()
    world.item(0)
    assert world.did() == [("a1", StreamAck(world.task.seq, 1, 1))]


# -- a generator that nobody listens to --------------------------------------------------------------


def test_an_abandoned_generator_goes_on_and_its_items_are_dropped() -> None:
    world = StreamWorld(limit=2)
    world.item(0, stored(), STORED)
    world.release()
    seq = world.task.seq
    assert world.did() == [("w1", StreamAck(seq, 0, 1)), ("freed", world.item_id(0))]
    assert seq in world.core.owner.tasks
    world.item(1)
    assert world.did() == [("w1", StreamAck(seq, 0, 2))], "so that it does not wait"
    assert world.core.objects == {}
    world.end()
    assert world.core.streams == {}
    assert world.core.owner.tasks == {}


def test_an_abandoned_generator_that_raises() -> None:
    world = StreamWorld()
    world.release()
    world.answer(world.task, ERROR, RAISED)
    assert world.core.streams == {}
    assert world.core.objects == {}


def test_what_was_taken_outlives_the_generator() -> None:
    world = StreamWorld()
    world.item(0)
    world.item(1)
    taken = world.next()
    world.release()
    assert set(world.core.objects) == {taken}


@pytest.mark.parametrize("taken", [0, 1])
def test_a_generator_that_is_dropped_after_its_end(taken: int) -> None:
    world = StreamWorld()
    world.item(0)
    world.item(1)
    world.end()
    for _ in range(taken):
        world.next()
    world.release()
    assert world.core.streams == {}
    assert len(world.core.objects) == taken
    world.release()  # once more: no effect


def test_items_after_the_end_are_let_go_of() -> None:
    world = StreamWorld()
    world.end()
    world.release()
    world.item(0, stored(), STORED)
    assert world.did() == [("freed", world.item_id(0))]
    assert world.core.objects == {}
