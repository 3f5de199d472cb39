"""Signals and semaphores, custom serializers, inspect_serializability, log_once, names and addresses."""

from __future__ import annotations

import functools
import io
import ipaddress
import subprocess
import sys
import threading
from typing import Any

import pytest

from ..conformance.target import (
    eventually,
    load_testing,
    minray_only,
    needs_concurrency,
    ray,
    submodule,
    util,
)

INIT = {"num_cpus": 2}
testing: Any = load_testing()


class Locked:
    """Can't be pickled: it holds a lock."""

    def __init__(self, value: int) -> None:
        self.value = value
        self.lock = threading.Lock()


# --- signals and semaphores ---------------------------------------------------------------------


@needs_concurrency
def test_a_signal_lets_everybody_through() -> None:
    signal = testing.SignalActor.remote()
    waiting = [signal.wait.remote() for _ in range(3)]
    eventually(lambda: ray.get(signal.cur_num_waiters.remote()) == 3, "three wait at the signal")
    assert ray.wait(waiting, timeout=0)[0] == []
    ray.get(signal.send.remote())
    ray.get(waiting)
    ray.get(signal.wait.remote())
    assert ray.get(signal.cur_num_waiters.remote()) == 0


@needs_concurrency
def test_a_cleared_signal_holds_the_next_one_back() -> None:
    signal = testing.SignalActor.remote()
    first = signal.wait.remote()
    eventually(lambda: ray.get(signal.cur_num_waiters.remote()) == 1, "one waits at the signal")
    ray.get(signal.send.remote(clear=True))
    ray.get(first)
    second = signal.wait.remote()
    assert ray.get(signal.wait.remote(should_wait=False)) is None
    assert ray.wait([second], timeout=0)[0] == []
    ray.get(signal.send.remote())
    ray.get(second)


@needs_concurrency
def test_a_semaphore_has_so_many_permits() -> None:
    semaphore = testing.Semaphore.remote(value=2)
    ray.get([semaphore.acquire.remote() for _ in range(2)])
    assert ray.get(semaphore.locked.remote())
    third = semaphore.acquire.remote()
    assert ray.wait([third], timeout=0)[0] == []
    ray.get(semaphore.release.remote())
    ray.get(third)


def test_wait_for_condition_names_what_it_waited_for() -> None:
    def never() -> bool:
        return False

    testing.wait_for_condition(lambda: True)
    with pytest.raises(RuntimeError):
        testing.wait_for_condition(never, timeout=0.01, retry_interval_ms=1)


@minray_only("it has no module of that name any more")
def test_the_old_name_of_the_helpers() -> None:
    assert submodule("test_utils").SignalActor is testing.SignalActor


# --- serializers --------------------------------------------------------------------------------


def test_a_registered_serializer_carries_instances_there_and_back() -> None:
    util.register_serializer(Locked, serializer=lambda x: x.value, deserializer=lambda v: Locked(v))
    try:
        assert ray.get(ray.put([Locked(5)]))[0].value == 5

        @ray.remote
        def value_of(item: Any) -> int:
            return int(item.value)

        assert ray.get(value_of.remote(Locked(6))) == 6
    finally:
        util.deregister_serializer(Locked)
    util.deregister_serializer(Locked)  # nothing to forget
    with pytest.raises(TypeError):
        ray.put(Locked(7))


@minray_only("it registers anything")
def test_wrong_serializers() -> None:
    with pytest.raises(TypeError, match="class"):
        util.register_serializer(Locked(1), serializer=str, deserializer=str)
    with pytest.raises(TypeError, match="deserializer"):
        util.register_serializer(Locked, serializer=str, deserializer=None)


# --- inspect_serializability --------------------------------------------------------------------


def culprits(obj: Any, **options: Any) -> set[tuple[str, ...]]:
    serializable, failures = util.inspect_serializability(obj, print_file=io.StringIO(), **options)
    assert serializable == (not failures)
    return {failure.path for failure in failures}


def test_what_pickles_has_no_culprit() -> None:
    assert culprits({"a": [1, 2]}) == set()
    assert culprits(lambda: 5) == set()


def test_the_culprit_inside_an_instance() -> None:
    assert culprits(Locked(1), name="locked") == {("locked", "lock")}


def test_the_culprit_inside_a_closure() -> None:
    lock = threading.Lock()
    assert culprits(lambda: lock, name="f") == {("f", "lock")}


@minray_only("it does not look into containers")
def test_the_culprit_inside_containers_partials_methods_and_defaults() -> None:
    lock = threading.Lock()
    assert culprits({"a": [0, lock]}, name="d") == {("d", "['a']", "[1]")}
    assert culprits(functools.partial(print, lock), name="p") == {("p", "[0]")}

    def with_default(x: Any = lock) -> None:
        return None

    assert culprits(with_default, name="f") == {("f", "default 0")}


@minray_only("it stops at the first")
def test_every_culprit_is_found_and_cycles_end() -> None:
    holder: dict[str, Any] = {"one": threading.Lock(), "two": threading.Lock()}
    holder["self"] = holder
    assert culprits(holder, name="h") == {("h", "['one']"), ("h", "['two']")}


def test_depth_bounds_the_search() -> None:
    assert culprits(Locked(1), name="x", depth=0) == {("x",)}


def test_the_failure_tells_its_path() -> None:
    _, failures = util.inspect_serializability(Locked(1), name="locked", print_file=io.StringIO())
    (failure,) = failures
    assert "locked -> lock" in repr(failure)
    assert isinstance(failure.parent, Locked)


@minray_only("its report reads differently")
def test_the_report_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    util.inspect_serializability(Locked(1), name="locked")
    printed = capsys.readouterr().out
    assert "FAIL  locked" in printed
    assert "locked -> lock" in printed


@minray_only("it pins them")
def test_looking_at_references_needs_no_pickling_of_them() -> None:
    assert culprits([ray.put(1)]) == set()


# --- the rest -----------------------------------------------------------------------------------


def test_log_once_is_true_once() -> None:
    key = "a key of this test"
    assert [util.log_once(key) for _ in range(3)] == [True, False, False]


def test_named_actors_are_listed() -> None:
    @ray.remote(num_cpus=0)
    class Named:
        def ping(self) -> None:
            return None

    actors = [
        Named.options(name="here").remote(),
        Named.options(name="there", namespace="elsewhere").remote(),
        Named.remote(),
    ]
    ray.get([actor.ping.remote() for actor in actors])
    assert util.list_named_actors() == ["here"]
    everywhere = util.list_named_actors(all_namespaces=True)
    assert {"name": "there", "namespace": "elsewhere"} in everywhere
    assert [actor["name"] for actor in everywhere].count("here") == 1


def test_the_node_s_address_is_one() -> None:
    ipaddress.ip_address(util.get_node_ip_address())


@minray_only("they compare by identity there")
def test_strategies_are_plain_values() -> None:
    strategies = submodule("util.scheduling_strategies")
    assert strategies.NodeAffinitySchedulingStrategy("ab", soft=True).soft
    assert strategies.In("a", "b") == strategies.In("a", "b") != strategies.NotIn("a", "b")
    assert repr(strategies.Exists()) == "Exists()"
    label = strategies.NodeLabelSchedulingStrategy({"zone": strategies.In("a")}, soft={})
    assert label == strategies.NodeLabelSchedulingStrategy({"zone": strategies.In("a")}, soft={})
    group = strategies.PlacementGroupSchedulingStrategy(placement_group=object())
    assert group.placement_group_bundle_index == -1
    with pytest.raises(TypeError, match="PlacementGroup"):
        ray.remote(lambda: None).options(scheduling_strategy=group).remote()


def test_strategies_are_there_without_an_import_of_their_own():
    program = "import minray as ray; print(ray.util.scheduling_strategies.In.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "In\n"
