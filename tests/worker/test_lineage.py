"""What is lost is made again: which tasks run once more, which cannot, and what is kept for it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from minray.wire.messages import FETCH, TASKS, VALUES, Died, ObjectLost
from minray.worker.lineage import ENTRY_BYTES, Lineage
from minray.worker.references import ERROR, INLINE, PENDING, STORED
from minray.worker.tasks import MULTI, STREAMING, Task

from .support import ACTOR, RAISED, THEIRS, CoreWorld, address, stored

FAR, FARTHER = b"\1" * 28, b"\2" * 28  # other nodes
OWNER = address("owner")
SMALL: list[tuple[int, Any]] = [
    (INLINE, b"small"),
    (INLINE, (b"array", [b"buffer"], [])),
    (ERROR, RAISED),
    (ERROR, ("dependency", "f", ("owner_died", THEIRS, OWNER))),
]
Stored = tuple[tuple[bytes, int, int, int], int, list[Any]]


def at(node_id: bytes, offset: int = 0, refs: list[Any] | None = None) -> Stored:
    """A stored value of that node."""
    return ((node_id, 7, offset, 500_000), 500_000, refs or [])


class LineageWorld(CoreWorld):
    """A Core that keeps lineage."""

    def __init__(self, limit: int = 1 << 20) -> None:
        super().__init__(lineage_bytes=limit, pipeline=64)

    @property
    def lineage(self) -> Lineage:
        assert self.core.lineage is not None
        return self.core.lineage

    def made(self, *, node: bytes = FAR, **options: Any) -> tuple[Task, bytes]:
        """A finished task, and its stored result."""
        task, (object_id,) = self.submit(**options)
        self.answer(task, STORED, at(node))
        self.did()
        return task, object_id

    def lose(self, object_id: bytes, value: Stored | None = None) -> None:
        """Somebody could not read it there."""
        location = (value or self.holds(object_id)[1])[0]
        self.do(self.lineage.on_lost, object_id, location, "node is dead")

    def ran(self) -> list[tuple[int, int]]:
        """(seq, attempt) of what was sent to the worker since the last look."""
        return [spec[:2] for _, raw in self.take_hot(TASKS) for spec in raw[2]]


def test_what_is_lost_is_made_again() -> None:
    world = LineageWorld()
    task, object_id = world.made()
    world.lose(object_id)
    assert world.holds(object_id) == (PENDING, None)
    assert world.ran() == [(task.seq, 1)]
    asker = world.ask(object_id)
    world.answer(task, STORED, at(FARTHER))
    assert world.holds(object_id) == (STORED, at(FARTHER))
    assert len(asker.heard) == 1
    world.drop(object_id)
    assert world.lineage.bytes == 0


def test_it_is_made_once_however_many_miss_it() -> None:
    world = LineageWorld()
    task, object_id = world.made()
    for _ in range(5):
        world.lose(object_id, at(FAR))
    assert world.ran() == [(task.seq, 1)]
    world.answer(task, STORED, at(FARTHER))
    world.lose(object_id, at(FAR))  # who looked at the old place is late
    assert world.holds(object_id) == (STORED, at(FARTHER))
    assert world.ran() == []


def test_each_time_is_a_retry() -> None:
    world = LineageWorld()
    task, object_id = world.made(retries=2)
    for attempt in (1, 2):
        world.lose(object_id)
        assert world.ran() == [(task.seq, attempt)]
        world.answer(task, STORED, at(FAR))
    world.lose(object_id)
    status, error = world.holds(object_id)
    assert (status, error[0]) == (ERROR, "unmade")
    assert "max_retries" in error[3] and error[2] == "node is dead"
    assert world.lineage.bytes  # nobody uses it, but its object is there still
    world.drop(object_id)
    assert not world.lineage.bytes


def test_a_chain_whose_middle_was_freed_runs_as_a_whole() -> None:
    world = LineageWorld()
    first, x = world.made()
    second, y = world.made(top=[(0, x)])
    third, z = world.made(top=[(0, y)])
    world.drop(x)
    world.drop(y)
    assert set(world.core.objects) == {z}
    world.lose(z)
    assert world.ran() == [(first.seq, 1)]
    world.answer(first, STORED, at(FARTHER))
    (((_, raw)),) = world.take_hot(TASKS)
    assert raw[2] == [(second.seq, 1, 1, b"", {"top": [(0, STORED, at(FARTHER), x, world.core.me)]})]
    world.answer(second, STORED, at(FARTHER))
    assert world.ran() == [(third.seq, 1)]
    world.answer(third, STORED, at(FARTHER))
    assert set(world.core.objects) == {z}
    world.drop(z)
    assert not world.lineage.bytes


def test_an_input_that_is_lost_too_is_made_first() -> None:
    world = LineageWorld()
    first, x = world.made()
    second, y = world.made(top=[(0, x)])
    _, elsewhere = world.made(node=FARTHER)
    third, z = world.made(top=[(0, y), (1, elsewhere)])
    world.lose(z)
    assert world.ran() == [(first.seq, 1)]
    assert world.holds(elsewhere)[0] == STORED
    world.answer(first, STORED, at(FARTHER))
    assert world.ran() == [(second.seq, 1)]
    world.answer(second, STORED, at(FARTHER))
    assert world.ran() == [(third.seq, 1)]


def test_an_argument_that_is_lost_while_another_is_awaited_is_awaited_again() -> None:
    world = LineageWorld()
    first, x = world.made()
    other, (y,) = world.submit()
    task, _ = world.submit(top=[(0, x), (1, y)])
    world.did()
    world.lose(x)
    assert world.ran() == [(first.seq, 1)]
    world.answer(other, INLINE, b"there")
    assert world.ran() == [], "it starts without its argument"
    world.answer(first, STORED, at(FARTHER))
    (((_, raw)),) = world.take_hot(TASKS)
    ((seq, attempt, _, _, extra),) = raw[2]
    assert (seq, attempt) == (task.seq, 0)
    assert [(one[1], one[2]) for one in extra["top"]] == [(STORED, at(FARTHER)), (INLINE, b"there")]


@pytest.mark.parametrize("value", [value for status, value in SMALL if status == INLINE])
def test_a_small_input_that_was_freed_is_known_still(value: Any) -> None:
    world = LineageWorld()
    small = world.put(INLINE, value)
    task, object_id = world.made(top=[("a", small)])
    world.drop(small)
    world.lose(object_id)
    (((_, raw)),) = world.take_hot(TASKS)
    ((_, _, _, _, extra),) = raw[2]
    assert extra["top"][0][:3] == ("a", INLINE, value)
    world.answer(task, STORED, at(FARTHER))
    assert set(world.core.objects) == {object_id}


def test_a_small_input_is_known_each_time() -> None:
    world = LineageWorld()
    small = world.put(INLINE, b"small")
    task, object_id = world.made(top=[("a", small)])
    world.drop(small)
    for attempt in (1, 2):
        world.lose(object_id)
        assert world.ran() == [(task.seq, attempt)]
        world.answer(task, STORED, at(FARTHER))
    assert set(world.core.objects) == {object_id}


def test_nothing_is_made_for_a_task_that_cannot_run_again() -> None:
    world = LineageWorld()
    _, x = world.made()
    large = world.put(STORED, stored())
    _, y = world.made(top=[(0, x), (1, large)])
    world.drop(x)
    world.drop(large)
    world.lose(y)
    assert world.ran() == []
    assert large.hex() in world.holds(y)[1][3]
    assert set(world.core.objects) == {y}


def test_an_input_that_only_a_lost_one_kept_alive_is_there_still() -> None:
    world = LineageWorld()
    inner, outer = world.put(STORED, stored()), world.put(STORED, at(FAR))
    world.do(world.core.refs.set_contains, world.core.objects[outer], (inner,))
    _, y = world.made(top=[(0, outer)], nested=(inner,))
    world.drop(inner)
    assert inner in world.core.objects
    world.lose(y)
    assert world.ran() == [], "it got the argument that is lost"
    status, error = world.holds(y)
    assert (status, error[0], error[1]) == (ERROR, "dependency", "f1")
    assert error[2][:2] == ("unmade", outer)
    assert inner not in world.core.objects


def test_a_large_put_that_was_freed_cannot_be_had_again() -> None:
    world = LineageWorld()
    large = world.put(STORED, stored())
    _, object_id = world.made(top=[(0, large)])
    world.drop(large)
    world.lose(object_id)
    status, error = world.holds(object_id)
    assert (status, error[0]) == (ERROR, "unmade")
    assert large.hex() in error[3] and "freed" in error[3]
    assert world.ran() == []


def test_a_put_that_lives_is_taken_once_more() -> None:
    world = LineageWorld()
    large = world.put(STORED, stored())
    task, object_id = world.made(top=[(0, large)])
    world.lose(object_id)
    assert world.ran() == [(task.seq, 1)]
    assert world.core.objects[large].held == 1


def test_a_lost_put_says_so() -> None:
    world = LineageWorld()
    large = world.put(STORED, at(FAR))
    world.lose(large)
    assert world.holds(large)[0] == ERROR
    assert "put()" in world.holds(large)[1][3]


def test_what_is_only_named_by_an_argument_is_made_again_beside_it() -> None:
    world = LineageWorld()
    first, x = world.made()
    second, y = world.made(nested=(x,))
    world.drop(x)
    world.lose(y)
    assert sorted(world.ran()) == [(first.seq, 1), (second.seq, 1)]


@pytest.mark.parametrize("freed", [True, False])
def test_a_wait_that_a_cancel_has_ended_is_not_counted_later(freed: bool) -> None:
    """A task runs once more and is cancelled while it waits for its argument; then another one needs its result."""
    world = LineageWorld()
    first, x = world.made()
    task, y = world.made(top=[(0, x)])
    last, z = world.made(top=[(0, y)])
    world.lose(x)
    world.lose(y)
    assert world.ran() == [(first.seq, 1)]
    world.do(lambda: world.core.cancel_task(task, force=False, recursive=False))
    assert world.holds(y) == (ERROR, ("cancelled", "f1"))
    if freed:
        world.drop(x)
    world.drop(y)
    world.lose(z)
    world.answer(first, STORED, at(FARTHER))
    assert world.ran() == [(task.seq, 2)]
    world.answer(task, STORED, at(FARTHER))
    assert world.ran() == [(last.seq, 1)]


def test_what_it_names_may_end_later_and_be_freed_before_that() -> None:
    """A task does not wait for what its arguments only name."""
    world = LineageWorld()
    later, (x,) = world.submit()
    task, y = world.made(nested=(x,))
    world.drop(x)
    assert world.core.objects[x].held == 1
    world.answer(later, STORED, at(FAR))
    assert set(world.core.objects) == {y}
    world.lose(y)
    assert sorted(world.ran()) == [(later.seq, 1), (task.seq, 1)]
    world.answer(later, STORED, at(FARTHER))
    world.answer(task, STORED, at(FARTHER))
    assert world.holds(y) == (STORED, at(FARTHER))
    world.drop(y)
    assert not world.core.objects
    assert not world.lineage.bytes


@pytest.mark.parametrize("status, value", SMALL)
@pytest.mark.parametrize("later", [False, True])
def test_what_it_names_is_known_still_if_it_is_small(status: int, value: Any, later: bool) -> None:
    world = LineageWorld()
    maker, (x,) = world.submit()
    if not later:
        world.answer(maker, status, value)
    task, y = world.made(nested=(x,))
    world.drop(x)
    if later:
        world.answer(maker, status, value)
    assert set(world.core.objects) == {y}
    world.did()
    world.lose(y)
    assert world.ran() == [(task.seq, 1)]
    assert world.holds(x) == (status, value)
    world.answer(task, STORED, at(FARTHER))
    world.drop(y)
    assert not world.core.objects
    assert not world.lineage.bytes


def test_what_it_names_runs_again_if_it_is_small_and_names_others() -> None:
    world = LineageWorld()
    inner = world.put(INLINE, b"inner")
    maker, (x,) = world.submit(nested=(inner,))
    task, y = world.made(nested=(x,))
    world.drop(x)
    world.answer(maker, INLINE, (b"", [], [(inner, world.core.me, True)]))
    world.do(world.core.refs.on_releases, world.core.me[1], [(inner, 0)])
    world.drop(inner)
    assert set(world.core.objects) == {y}
    world.lose(y)
    assert sorted(world.ran()) == [(maker.seq, 1), (task.seq, 1)]
    assert world.holds(inner) == (INLINE, b"inner")


def test_what_is_awaited_for_nobody_is_let_go_of() -> None:
    world = LineageWorld()
    maker, (x,) = world.submit()
    _, y = world.made(nested=(x,))
    world.drop(x)
    world.drop(y)
    assert not world.lineage.bytes
    world.answer(maker, STORED, at(FAR))
    assert not world.core.objects
    assert not world.lineage.bytes


def test_small_values_that_are_known_count() -> None:
    world = LineageWorld(limit=4 * ENTRY_BYTES)
    small = world.put(INLINE, bytes(3 * ENTRY_BYTES))
    _, object_id = world.made(nested=(small,))
    assert not world.lineage.bytes
    world.lose(object_id)
    assert "lineage_bytes=3200" in world.holds(object_id)[1][3]


def test_an_actor_that_is_out_of_scope_is_not_known_still() -> None:
    world = LineageWorld()
    handle = world.put(INLINE, b"")
    world.core.objects[handle].task = "actor"
    _, object_id = world.made(nested=(handle,))
    world.drop(handle)
    world.lose(object_id)
    assert handle.hex() in world.holds(object_id)[1][3]


def test_large_arguments_of_its_own_cannot_be_had_again() -> None:
    """They are an object of the task's own number."""
    world = LineageWorld()
    task = Task(world.core.next_seq(), world.f, b"", None, 1, 3)
    large = world.core.object_id(task.seq, 0)
    record = world.core.refs.own(large)
    record.status, record.value = STORED, stored()
    task.nested = (large,)
    (object_id,) = world.do(world.core.submit, task, world.now)
    world.answer(task, STORED, at(FAR))
    world.drop(large)
    world.did()
    world.lose(object_id)
    assert world.ran() == []
    assert large.hex() in world.holds(object_id)[1][3]


def test_without_retries_nothing_is_kept() -> None:
    world = LineageWorld()
    _, object_id = world.made(retries=0)
    assert not world.lineage.bytes
    world.lose(object_id)
    assert "max_retries" in world.holds(object_id)[1][3]


def test_items_of_a_stream_say_so() -> None:
    world = LineageWorld()
    task, _ = world.submit(n=STREAMING)
    world.do(world.core.on_results, address("w1"), [(task.seq, 0, 6, (0, STORED, at(FAR)), -1, None)], world.now)
    world.answer(task, 7, 1)
    object_id = world.core.stream_take(world.core.streams[task.seq])
    assert object_id is not None
    world.lose(object_id)
    assert "generator" in world.holds(object_id)[1][3]


@pytest.mark.parametrize("retries", [0, 2])
def test_results_of_actors_where_that_was_asked_for(retries: int) -> None:
    world = LineageWorld()
    world.actor_is("ALIVE")
    task, (object_id,) = world.call(retries=retries, extra={"group": "io"})
    world.do(world.core.on_results, address("a0"), [(task.seq, 0, STORED, at(FAR), 1, None)], world.now)
    world.did()
    world.lose(object_id)
    if retries:
        (((name, raw)),) = world.did()
        assert (name, raw[2]) == ("a0", [(task.seq, 1, "add", b"", {"group": "io"})])
        world.do(world.core.on_results, address("a0"), [(task.seq, 1, STORED, at(FARTHER), 1, None)], world.now)
        assert world.holds(object_id) == (STORED, at(FARTHER))
    else:
        assert "max_task_retries" in world.holds(object_id)[1][3]
    assert ACTOR in world.core.calls.actors


def test_several_results_of_one_task() -> None:
    """One is small and stays as it is; one that lies elsewhere by now, too; the rest is made again."""
    world = LineageWorld()
    task, (a, b, c) = world.submit(n=3)
    values = [(STORED, at(FAR)), (INLINE, b"b"), (STORED, at(FAR, 4096))]
    world.answer(task, MULTI, values)
    world.ran()
    world.lose(a)
    assert [world.holds(x)[0] for x in (a, b, c)] == [PENDING, INLINE, PENDING]
    assert world.ran() == [(task.seq, 1)]
    world.answer(task, MULTI, [(STORED, at(FARTHER)), (INLINE, b"other"), (INLINE, b"small now")])
    assert world.holds(a) == (STORED, at(FARTHER))
    assert world.holds(b) == (INLINE, b"b")
    assert world.holds(c) == (INLINE, b"small now")
    for object_id in (a, b, c):
        world.drop(object_id)
    assert not world.lineage.bytes


def test_the_second_time_it_may_fail() -> None:
    world = LineageWorld()
    task, object_id = world.made()
    world.lose(object_id)
    world.answer(task, ERROR, RAISED)
    assert world.holds(object_id) == (ERROR, RAISED)
    world.drop(object_id)
    assert not world.lineage.bytes


def test_what_it_contained_is_let_go_of() -> None:
    world = LineageWorld()
    inner = world.put()
    task, (object_id,) = world.submit(nested=(inner,))
    world.answer(task, STORED, at(FAR, refs=[(inner, world.core.me, True)]))
    world.do(world.core.refs.on_releases, world.core.me[1], [(inner, 0)])
    assert world.core.objects[inner].held == 1
    world.lose(object_id)
    assert world.core.objects[object_id].contains == ()
    assert world.core.objects[inner].held == 1  # for the task


def test_freed_while_it_is_made_again() -> None:
    world = LineageWorld()
    task, object_id = world.made()
    world.lose(object_id)
    world.drop(object_id)
    assert not world.lineage.bytes
    world.did()
    world.answer(task, STORED, at(FARTHER))
    assert [effect[0] for effect in world.did()] == ["freed"]
    assert not world.core.objects


def test_lineage_is_bounded() -> None:
    world = LineageWorld(limit=int(2.5 * ENTRY_BYTES))
    made = [world.made() for _ in range(4)]
    assert world.lineage.bytes == 2 * ENTRY_BYTES
    world.lose(made[0][1])
    error = world.holds(made[0][1])[1]
    assert "lineage_bytes=2000" in error[3]
    world.lose(made[3][1])
    assert world.ran() == [(made[3][0].seq, 1)]
    for _, object_id in made:
        world.drop(object_id)
    assert not world.lineage.bytes


def test_a_borrower_tells_the_owner_and_asks_again() -> None:
    world = LineageWorld()
    world.borrow(THEIRS, OWNER)
    asker = world.ask(THEIRS)
    world.do(world.core.on_values, [(THEIRS, STORED, at(FAR))])
    assert len(asker.heard) == 1
    world.did()
    world.do(world.lineage.on_unreadable, THEIRS, at(FAR)[0], "node is dead")
    assert world.did() == [("owner", ObjectLost(THEIRS, at(FAR)[0], "node is dead")), ("owner", (FETCH, [THEIRS]))]
    asker = world.ask(THEIRS)
    world.do(world.lineage.on_unreadable, THEIRS, at(FAR)[0], "node is dead")  # another thread of ours
    assert world.did() == []
    world.do(world.core.on_values, [(THEIRS, STORED, at(FARTHER))])
    assert len(asker.heard) == 1
    assert world.holds(THEIRS) == (STORED, at(FARTHER))


def test_a_borrower_of_a_dead_owner_hears_that() -> None:
    world = LineageWorld()
    world.borrow(THEIRS, OWNER)
    world.ask(THEIRS)
    world.do(world.core.on_values, [(THEIRS, STORED, at(FAR))])
    world.do(world.core.on_died, Died(OWNER[1], -1, -1, -1, {}), world.now)
    world.did()
    world.do(world.lineage.on_unreadable, THEIRS, at(FAR)[0], "node is dead")
    assert world.did() == []
    assert world.holds(THEIRS) == (ERROR, ("owner_died", THEIRS, OWNER))


def test_a_cancel_that_came_too_late_is_forgotten() -> None:
    world = LineageWorld()
    task, (object_id,) = world.submit()
    world.do(lambda: world.core.cancel_task(task, force=False, recursive=False))
    world.answer(task, STORED, at(FAR))
    assert world.holds(object_id) == (STORED, at(FAR))
    world.lose(object_id)
    world.do(world.core.on_died, Died(address("w1")[1], 1, task.seq, 1, {}), world.now)  # its worker dies: once more
    assert world.holds(object_id)[0] == PENDING


def test_the_owner_answers_a_borrower_with_the_new_place() -> None:
    world = LineageWorld()
    task, object_id = world.made()
    world.do(world.core.refs.give, object_id, OWNER)
    world.lose(object_id)
    world.do(world.core.on_fetch, OWNER, [object_id])
    world.take_hot(TASKS)
    world.did()
    world.answer(task, STORED, at(FARTHER))
    sent = [effect for effect in world.did() if effect[0] == "owner"]
    assert sent == [("owner", (VALUES, [(object_id, STORED, at(FARTHER))]))]


@pytest.mark.parametrize("seed", range(80))
def test_any_history(seed: int) -> None:
    """Tasks over tasks, references that go, nodes that are lost in any order: what is referenced is there again when
    all is quiet, and nothing is kept when nothing is referenced."""
    chance = random.Random(seed)
    world = LineageWorld(limit=1 << 30)
    running: dict[int, Task] = {}
    mine: list[bytes] = []

    def finish(count: int) -> None:
        for _ in range(count):
            for _, raw in world.take_hot(TASKS):
                running.update((spec[0], world.core.owner.tasks[spec[0]]) for spec in raw[2])
            if not running:
                return
            seq = chance.choice(list(running))
            node = chance.choice((FAR, FARTHER, world.core.me[0]))
            small = chance.random() < 0.2
            world.answer(running.pop(seq), *((INLINE, b"small") if small else (STORED, at(node, 64 * seq))))

    for _ in range(120):
        kind = chance.randrange(6)
        if kind <= 1:
            inputs = chance.sample(mine, min(len(mine), chance.randrange(4)))
            top = [(i, object_id) for i, object_id in enumerate(inputs[:2])]
            _, (object_id,) = world.submit(retries=-1, top=top or None, nested=tuple(inputs[2:]))
            mine.append(object_id)
        elif kind == 2 and mine:
            world.drop(mine.pop(chance.randrange(len(mine))))
        elif kind == 3 and mine:
            record = world.core.objects[chance.choice(mine)]
            if record.status == STORED and record.value[0][0] != world.core.me[0]:
                gone = record.value[0][0]
                for object_id, one in list(world.core.objects.items()):
                    if one.status == STORED and one.value[0][0] == gone:
                        world.lose(object_id, one.value)
        else:
            finish(chance.randrange(4))
    finish(10_000)
    assert all(world.holds(object_id)[0] in (STORED, INLINE) for object_id in mine)
    chance.shuffle(mine)
    for object_id in mine:
        world.drop(object_id)
    assert not world.core.objects
    assert not world.lineage.bytes
