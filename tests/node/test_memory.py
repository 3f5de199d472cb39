"""Who has to go when memory runs out, and when that is looked at."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from minray._base.config import Config
from minray.node.memory import FILL_RATE, GIB, LATEST_S, SOONEST_S, Brake, Candidate, MemoryWatch, choose, pause


def worker(number: int, since: float, *, again: bool = True, actor: bool = False) -> Candidate:
    return Candidate(number, since, again, actor, f"task {number}")


@pytest.mark.parametrize(
    ("candidates", "number"),
    [
        ([worker(1, 1.0), worker(2, 3.0), worker(3, 2.0)], 2),
        ([worker(1, 1.0), worker(2, 3.0, again=False)], 1),
        ([worker(1, 1.0), worker(2, 3.0, actor=True)], 1),
        ([worker(1, 1.0, again=False), worker(2, 0.5, actor=True)], 2),
        ([worker(1, 1.0, again=False), worker(2, 3.0, again=False, actor=True)], 1),
        ([worker(4, 1.0), worker(5, 1.0)], 5),
    ],
)
def test_who_has_to_go(candidates: list[Candidate], number: int) -> None:
    chosen = choose(candidates)
    assert chosen is not None and chosen.number == number
    assert choose(reversed(candidates)) == chosen


def test_nobody_works() -> None:
    assert choose([]) is None


def test_the_less_is_left_the_sooner_is_looked() -> None:
    assert pause(0, 100 * GIB) == LATEST_S
    assert pause(10 * GIB, 10 * GIB + 1) == SOONEST_S
    assert pause(0, FILL_RATE * 0.5) == 0.5
    assert pause(3, 2) == SOONEST_S


class World:
    """A reactor with a clock that stands still, a table with leases, processes that are told to end."""

    def __init__(self, **settings: Any) -> None:
        self.used = 0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.killed: list[tuple[int, str]] = []
        self.beside: list[int] = []
        self.now = 100.0
        self.workers: dict[int, Any] = {}
        self.leases: dict[int, Any] = {}
        self.idle = 0
        self.dismissed: list[Any] = []
        pool = SimpleNamespace(workers=self.workers, dismiss_idle=self.dismiss_idle)
        self.table: Any = SimpleNamespace(leases=self.leases, pool=pool, memory_hold=None)
        self.watch = MemoryWatch(
            self, Config(**settings), self.table, lambda: self, lambda: self.now,  # type: ignore[arg-type]
            self.dismissed.extend, measure=lambda: (self.used, 100),
        )  # fmt: skip

    def call_later(self, delay: float, fn: Callable[[], None]) -> Any:
        entry = (delay, fn)
        self.timers.append(entry)
        return SimpleNamespace(cancel=lambda: self.timers.remove(entry))

    def dismiss_idle(self, now: float, reason: str) -> list[Any]:
        idle, self.idle = self.idle, 0
        return [("exit", number, True, reason) for number in range(idle)]

    def pid(self, number: int) -> int | None:
        return None

    def kill_for_memory(self, number: int, text: str, beside: int) -> None:
        self.killed.append((number, text))
        self.beside.append(beside)

    def works(self, number: int, since: float, again: bool = True) -> None:
        demand = SimpleNamespace(actor=None, again=again, description="task f")
        self.leases[number] = SimpleNamespace(demand=demand, number=number, since=since)
        self.workers[number] = SimpleNamespace(number=number)
        self.watch.on_work()

    def ends(self, number: int) -> None:
        del self.leases[number], self.workers[number]

    def look(self) -> None:
        ((_, fn),) = self.timers
        self.timers.clear()
        fn()


def test_one_at_a_time_and_only_beyond_the_bound() -> None:
    world = World(memory_threshold=0.9)
    world.works(1, 1.0)
    world.works(2, 2.0)
    world.used = 90
    world.look()
    assert not world.killed
    world.used = 91
    world.look()
    ((number, text),) = world.killed
    assert number == 2 and "memory_threshold=0.9" in text and "started again" in text
    world.look()
    assert len(world.killed) == 1  # it is not gone yet
    world.ends(2)
    world.look()
    assert [number for number, _ in world.killed] == [2, 1] and world.beside == [1, 0]
    assert world.watch.ended == 2


def test_whoever_does_nothing_goes_first() -> None:
    world = World()
    world.works(1, 1.0)
    world.used, world.idle = 99, 3
    world.look()
    assert len(world.dismissed) == 3 and not world.killed
    world.look()
    assert len(world.killed) == 1


def test_then_nothing_begins_for_a_while() -> None:
    world = World()
    world.works(1, 1.0)
    world.works(2, 2.0)
    world.used = 99
    world.look()
    assert world.table.memory_hold == world.now + 1.0
    world.ends(2)
    world.now += 0.5
    world.look()
    assert world.table.memory_hold == world.now + 2.0


def test_the_brake_is_pulled_longer_each_time_until_there_was_peace() -> None:
    brake, now, pauses = Brake(), 7.0, []
    for _ in range(7):
        pauses.append(brake.pull(now) - now)
        now += pauses[-1]
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert brake.pull(now + 100) == now + 101


def test_who_cannot_start_again_is_told_so() -> None:
    world = World()
    world.works(1, 1.0, again=False)
    world.used = 99
    world.look()
    assert "cannot be started again" in world.killed[0][1]


def test_an_idle_node_is_not_woken() -> None:
    world = World()
    assert not world.timers
    world.works(1, 1.0)
    world.ends(1)
    world.look()
    assert not world.timers
    world.works(2, 1.0)
    world.watch.stop()
    assert not world.timers


def test_a_threshold_of_one_means_never() -> None:
    world = World(memory_threshold=1.0)
    world.works(1, 1.0)
    assert not world.timers


@pytest.mark.parametrize(("name", "value"), [("memory_threshold", 0.0), ("memory_threshold", 1.5), ("memory_total", 0)])
def test_absurd_settings(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"MINRAY_{name.upper()}"):
        Config(**{name: value})
