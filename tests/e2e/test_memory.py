"""Memory runs out: a worker is ended, its task runs again, and who loses hears why."""

from __future__ import annotations

import os
import time

import pytest

import minray as ray
from minray.exceptions import ActorDiedError, OutOfMemoryError

MIB = 1 << 20


@pytest.fixture
def session():
    ray.init(num_cpus=2, _system_config={"memory_total": 600 * MIB, "memory_threshold": 0.5})  # a worker has 50
    yield
    ray.shutdown()


def fill(count):
    """Memory that is really there."""
    return bytearray(os.urandom(MIB)) * count


def test_a_task_that_takes_too_much(session):
    @ray.remote(max_retries=0)
    def greedy():
        kept = fill(300)
        time.sleep(60)
        return len(kept)

    with pytest.raises(OutOfMemoryError, match=r"memory_threshold=0\.5"):
        ray.get(greedy.remote(), timeout=50)


def test_the_one_that_began_last_makes_room_and_runs_again(session, tmp_path):
    @ray.remote
    def half(name):
        with open(tmp_path / name, "a") as file:
            file.write("x")
        kept = fill(140)
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        return len(kept)

    first = half.remote("first")
    while not (tmp_path / "first").exists():
        time.sleep(0.01)
    second = half.options(max_retries=-1).remote("second")
    while not (tmp_path / "second").exists() or len((tmp_path / "second").read_text()) < 2:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    assert ray.get([first, second], timeout=60) == [140 * MIB] * 2
    assert (tmp_path / "first").read_text() == "x"


def test_those_that_do_not_fit_together_take_turns_and_use_no_retry(session, tmp_path):
    @ray.remote(max_retries=1)
    def half(name):
        with open(tmp_path / name, "a") as file:
            file.write("x")
        kept = fill(140)
        time.sleep(1.0)  # long enough to be seen by the watch, which looks each 0.1 s when little is left
        return len(kept)

    refs = [half.remote(f"t{i}") for i in range(5)]
    assert ray.get(refs, timeout=120) == [140 * MIB] * 5


def test_an_actor_that_takes_too_much(session):
    @ray.remote
    class Keeper:
        def keep(self, count):
            self.kept = fill(count)
            time.sleep(60)

    with pytest.raises(ActorDiedError, match="memory ran out"):
        ray.get(Keeper.remote().keep.remote(300), timeout=50)
