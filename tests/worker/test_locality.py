"""Tasks whose arguments are stored on other nodes are asked for there first. See also tests/node/test_spillover.py."""

from __future__ import annotations

from minray.wire.messages import LeaseDemand
from minray.worker.tasks import DYNAMIC, INLINE, STORED, Task

from .support import NODE, CoreWorld

A, B = b"a" * 28, b"b" * 28


def at(node_id: bytes, size: int) -> tuple[tuple[bytes, int, int, int], int, list[object]]:
    """A stored value."""
    return (node_id, 3, 0, size), size, []


class World(CoreWorld):
    def __init__(self) -> None:
        super().__init__(worker=False)
        self.core.owner.clustered = True

    def task_of(self, *sizes: tuple[bytes, int]) -> Task:
        top = [(i, self.put(STORED, at(*size))) for i, size in enumerate(sizes)]
        return self.submit(top=top)[0]

    def strategies(self) -> list[object]:
        """Of the demands that the node has heard of."""
        return [demand.strategy for demand in self.take(LeaseDemand)]


def test_where_most_bytes_are() -> None:
    world = World()
    task = world.task_of((A, 200), (B, 300), (A, 200), (NODE, 399))
    assert world.strategies() == [("near", A)]
    assert task.function is not world.f and task.function.function_id == world.f.function_id
    assert task.function.key.resources == world.key.resources


def test_own_node_where_nothing_is_gained() -> None:
    world = World()
    for sizes in ([(NODE, 500), (A, 400)], [(A, 400), (NODE, 400)], [(NODE, 100)], []):
        assert world.task_of(*sizes).function is world.f
    assert set(world.strategies()) == {None}


def test_arguments_by_value_are_here() -> None:
    world = World()
    far = world.put(STORED, at(A, 400))
    for size, function in ((399, None), (401, world.f)):
        task = Task(world.core.next_seq(), world.f, ("stored", at(NODE, size), b"x" * 28, world.core.me), None, 1, 0)
        task.top = [(0, far)]
        world.do(world.core.submit, task, world.now)
        assert (task.function is world.f) == (function is world.f)


def test_tasks_with_arguments_on_the_same_node_share_a_key_and_others_do_not() -> None:
    world = World()
    first, second, third = (world.task_of((node, 9)) for node in (A, A, B))
    assert first.function is second.function is not third.function
    assert first.function.key.number != third.function.key.number
    assert sorted(world.core.owner.keys) == [1, 2, 3]


def test_an_argument_that_is_made_later() -> None:
    world = World()
    _, (made,) = world.submit()
    waiting, _ = world.submit(top=[(0, made)])
    assert world.strategies() == [None]
    world.do(world.core.complete, made, STORED, at(B, 1000))
    assert world.strategies() == [("near", B)] and waiting.unresolved == 0


def test_what_the_user_has_said_counts_more() -> None:
    world = World()
    world.key.strategy = "SPREAD"
    assert world.task_of((A, 10**9)).function is world.f


def test_small_values_travel_inside_and_pull_nobody() -> None:
    world = World()
    inline = world.put(INLINE, b"x" * 5000)
    assert world.submit(top=[(0, inline)], n=DYNAMIC)[0].function is world.f


def test_on_one_machine_nobody_looks() -> None:
    world = World()
    world.core.owner.clustered = False
    assert world.task_of((A, 10**9)).function is world.f


def test_a_node_that_is_lost_is_forgotten() -> None:
    world = World()
    old = world.task_of((A, 9)).function
    world.do(world.core.owner.on_node_lost, A)
    assert world.core.owner._near == {}
    assert world.task_of((A, 9)).function.key is old.key
