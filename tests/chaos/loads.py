"""What is done while things break: each load does one piece of work whose answer is known, and checks it.

All that runs remotely may run again (``max_retries=-1`` and the like), so whatever is killed, every answer has to be
right. ``PATIENCE_S`` is for hangs: no load takes more than a few seconds when nothing breaks.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

import minray as ray
from minray.util.placement_group import placement_group, remove_placement_group
from minray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

PATIENCE_S = 150.0
again = ray.remote(max_retries=-1)


def array(seed: int, size: int) -> Any:
    return np.random.default_rng(seed).integers(0, 1000, size)


@again
def make(seed: int, size: int) -> Any:
    return array(seed, size)


@again
def add(*arrays: Any) -> Any:
    return sum(arrays)


@again
def total(*arrays: Any) -> int:
    return sum(int(one.sum()) for one in arrays)


@again
def halves(data: Any) -> Any:
    return data[: len(data) // 2], data[len(data) // 2 :]


@again
def fibonacci(n: int) -> int:
    return n if n < 2 else sum(ray.get([fibonacci.remote(n - 1), fibonacci.remote(n - 2)]))


@ray.remote(max_retries=-1)
def counting(n: int) -> Any:
    yield from range(n)


@ray.remote(max_restarts=-1, max_task_retries=-1)
class Squares:
    def __init__(self, offset: int) -> None:
        self.offset = offset

    def of(self, n: int) -> int:
        return n * n + self.offset

    def many(self, seed: int, size: int) -> Any:
        return array(seed, size) ** 2


def chains(chance: random.Random) -> None:
    """Large values through several tasks; what is in the middle is not kept."""
    seed, size = chance.randrange(1000), chance.choice((100, 50_000, 400_000))
    x = make.remote(seed, size)
    for _ in range(chance.randrange(1, 5)):
        x = add.remote(x, x) if chance.random() < 0.5 else add.remote(x, make.remote(seed + 1, size))
    assert len(ray.get(x, timeout=PATIENCE_S)) == size
    y = make.remote(seed, size)
    z = add.remote(y, y)
    del y
    assert ray.get(total.remote(z), timeout=PATIENCE_S) == 2 * int(array(seed, size).sum())


def tree(chance: random.Random) -> None:
    """A tree of reducing tasks."""
    seeds = [chance.randrange(1000) for _ in range(16)]
    layer = [make.remote(seed, 30_000) for seed in seeds]
    while len(layer) > 1:
        layer = [add.remote(*layer[i : i + 4]) for i in range(0, len(layer), 4)]
    expected = sum(array(seed, 30_000) for seed in seeds)
    assert (ray.get(layer[0], timeout=PATIENCE_S) == expected).all()


def several_results(chance: random.Random) -> None:
    """Two stored results of one task, of which one goes on."""
    seed = chance.randrange(1000)
    one, two = halves.options(num_returns=2).remote(make.remote(seed, 100_000))
    kept = one if chance.random() < 0.5 else two
    expected = array(seed, 100_000)[:50_000] if kept is one else array(seed, 100_000)[50_000:]
    del one, two
    assert ray.get(total.remote(kept), timeout=PATIENCE_S) == int(expected.sum())


def small_ones(chance: random.Random) -> None:
    """A flood of small tasks, as they complete."""
    numbers = [chance.randrange(1000) for _ in range(300)]
    square = again(lambda n: n * n)
    left = [square.remote(n) for n in numbers]
    seen = 0
    while left:
        ready, left = ray.wait(left, num_returns=min(50, len(left)), timeout=PATIENCE_S)
        assert ready, f"{len(left)} small tasks do not end"
        seen += sum(ray.get(ready, timeout=PATIENCE_S))
    assert seen == sum(n * n for n in numbers)


def recursion(chance: random.Random) -> None:
    """Tasks that wait for tasks."""
    assert ray.get(fibonacci.remote(6), timeout=PATIENCE_S) == 8


def stream(chance: random.Random) -> None:
    """A generator that may start over."""
    n = chance.randrange(1, 60)
    got = [ray.get(ref, timeout=PATIENCE_S) for ref in counting.remote(n)]
    assert got == list(range(n))


def actor(chance: random.Random) -> None:
    """An actor that restarts, large results among its answers."""
    offset, seed = chance.randrange(100), chance.randrange(1000)
    squares = Squares.options(num_cpus=chance.choice((0, 0.5))).remote(offset)
    numbers = [chance.randrange(1000) for _ in range(30)]
    refs = [squares.of.remote(n) for n in numbers]
    large = squares.many.remote(seed, 50_000)
    assert ray.get(refs, timeout=PATIENCE_S) == [n * n + offset for n in numbers]
    assert ray.get(total.remote(large), timeout=PATIENCE_S) == int((array(seed, 50_000) ** 2).sum())


def named(chance: random.Random) -> None:
    """Tasks that find an actor by its name."""
    name, offset = f"chaos-{chance.getrandbits(48):x}", chance.randrange(100)
    squares = Squares.options(name=name, num_cpus=0).remote(offset)

    @again
    def ask(name: str, n: int) -> int:
        return int(ray.get(ray.get_actor(name).of.remote(n)))

    answers = ray.get([ask.remote(name, n) for n in range(4)], timeout=PATIENCE_S)
    assert answers == [n * n + offset for n in range(4)]
    ray.kill(squares)


def shared(chance: random.Random) -> None:
    """One large object for everybody."""
    seed = chance.randrange(1000)
    ref = ray.put(array(seed, 300_000))
    spread = total.options(scheduling_strategy="SPREAD")
    sums = ray.get([spread.remote(ref) for _ in range(6)], timeout=PATIENCE_S)
    assert sums == [int(array(seed, 300_000).sum())] * 6


def hoard(chance: random.Random) -> None:
    """More than a store has room for, put or made by tasks, read in another order."""
    seeds = [chance.randrange(1000) for _ in range(20)]
    refs = [ray.put(array(seed, 400_000)) if chance.random() < 0.5 else make.remote(seed, 400_000) for seed in seeds]
    order = chance.sample(range(20), 20)
    sums = [total.remote(refs[i]) for i in order]
    for i in order[:5]:
        assert int(ray.get(refs[i], timeout=PATIENCE_S).sum()) == int(array(seeds[i], 400_000).sum())
    expected = [int(array(seeds[i], 400_000).sum()) for i in order]
    assert ray.get(sums, timeout=PATIENCE_S) == expected


def group(chance: random.Random) -> None:
    """Tasks and an actor in a placement group."""
    made = placement_group([{"CPU": 0.5}] * 2, strategy=chance.choice(("PACK", "SPREAD")))
    try:
        assert made.wait(PATIENCE_S), "a placement group is not made"
        inside = [PlacementGroupSchedulingStrategy(made, i) for i in (0, 1)]
        options = [{"num_cpus": 0.25, "scheduling_strategy": where} for where in inside]
        squares = Squares.options(**options[0]).remote(1)
        refs = [make.options(**one).remote(5, 100) for one in options]
        assert ray.get(squares.of.remote(3), timeout=PATIENCE_S) == 10
        assert all((one == array(5, 100)).all() for one in ray.get(refs, timeout=PATIENCE_S))
    finally:
        remove_placement_group(made)


LOADS = [chains, tree, several_results, small_ones, recursion, stream, actor, named, shared, hoard, group]
