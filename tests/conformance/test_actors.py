"""Actors at work: B25, B27 and B33, the implicit methods."""

from __future__ import annotations

import copy
import gc
import os

import pytest

from .target import (
    eventually,
    exceptions,
    minray_only,
    needs_concurrency,
    needs_processes,
    not_local,
    ray,
)


@ray.remote
class Counter:
    def __init__(self, start=0):
        self.n = start

    def add(self, k=1):
        self.n += k
        return self.n

    def read(self):
        return self.n


@ray.remote
class Recorder:
    def __init__(self):
        self.seen = []

    def record(self, item):
        self.seen.append(item)
        return item

    def all(self):
        return self.seen


@ray.remote
def echo(value):
    return value


# --- B25 ----------------------------------------------------------------------------------------


def test_b25_the_calls_of_one_caller_run_in_order():
    recorder = Recorder.remote()
    for i in range(100):
        recorder.record.remote(i)
    assert ray.get(recorder.all.remote()) == list(range(100))


@needs_concurrency
def test_b25_an_unready_argument_holds_back_the_later_calls_of_its_caller(gate):
    recorder = Recorder.remote()
    first = recorder.record.remote(gate.ref())
    second = recorder.record.remote("second")
    assert ray.wait([second], timeout=0.1) == ([], [second])
    gate.open()
    ray.get([first, second])
    assert ray.get(recorder.all.remote())[1] == "second"


@needs_concurrency
def test_b25_callers_do_not_hold_each_other_back(gate):
    @ray.remote(num_cpus=0)
    def other_caller(recorder):
        return ray.get(recorder.record.remote("from another caller"))

    recorder = Recorder.remote()
    held_back = recorder.record.remote(gate.ref())
    assert ray.get(other_caller.remote(recorder), timeout=30) == "from another caller"
    assert ray.wait([held_back], timeout=0) == ([], [held_back])
    gate.open()
    ray.get(held_back)


@needs_processes
def test_b25_each_of_several_callers_is_in_order():
    @ray.remote(num_cpus=0)
    def caller(recorder, name):
        for i in range(20):
            recorder.record.remote((name, i))
        return ray.get(recorder.record.remote((name, 20)))

    recorder = Recorder.remote()
    ray.get([caller.remote(recorder, name) for name in "abc"])
    seen = ray.get(recorder.all.remote())
    for name in "abc":
        assert [i for who, i in seen if who == name] == list(range(21))


def test_b25_one_call_at_a_time():
    @ray.remote
    class Alone:
        def __init__(self):
            self.inside = 0

        def enter(self):
            self.inside += 1
            assert self.inside == 1
            self.inside -= 1

    alone = Alone.remote()
    ray.get([alone.enter.remote() for _ in range(20)])


# --- B27 ----------------------------------------------------------------------------------------


def process_is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@ray.remote
class Mortal:
    def pid(self):
        return os.getpid()

    def wait_then(self, gate, path):
        gate.wait()
        path.write_text("ran")


def test_b27_a_method_of_an_actor_that_nobody_keeps():
    assert ray.get(Counter.remote().add.remote()) == 1


@needs_processes
def test_b27_an_actor_without_handles_exits():
    actor = Mortal.remote()
    pid = ray.get(actor.pid.remote())
    del actor
    gc.collect()
    eventually(lambda: process_is_gone(pid), "the actor's process exited")


@needs_processes
def test_b27_it_exits_after_its_queued_calls(gate, tmp_path):
    actor = Mortal.remote()
    pid = ray.get(actor.pid.remote())
    refs = [actor.wait_then.remote(gate, tmp_path / name) for name in "ab"]
    del actor
    gc.collect()
    gate.open()
    ray.get(refs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    eventually(lambda: process_is_gone(pid), "the actor's process exited")


@needs_processes
def test_b27_a_handle_in_another_process_keeps_it_alive():
    @ray.remote(num_cpus=0)
    class Holder:
        def keep(self, handles):
            self.handles = handles

        def use(self):
            return ray.get(self.handles[0].add.remote())

        def drop(self):
            self.handles = None

    counter, holder = Counter.remote(), Holder.remote()
    ray.get(holder.keep.remote([counter]))
    del counter
    gc.collect()
    assert ray.get([holder.use.remote() for _ in range(3)]) == [1, 2, 3]


@needs_processes
def test_b27_an_actor_made_by_a_task_outlives_it_through_its_handle():
    @ray.remote
    def make():
        return Counter.remote(10)

    counter = ray.get(make.remote())
    assert ray.get(counter.add.remote()) == 11
    assert ray.get(counter.add.remote()) == 12


@needs_processes
def test_b27_a_handle_from_get_actor_is_weak():
    actor = Mortal.options(name="b27-weak").remote()
    pid = ray.get(actor.pid.remote())
    weak = ray.get_actor("b27-weak")
    del actor
    gc.collect()
    eventually(lambda: process_is_gone(pid), "the actor's process exited")
    with pytest.raises(exceptions.RayActorError):
        ray.get(weak.pid.remote())


@needs_processes
def test_b27_a_handle_to_itself_is_weak():
    @ray.remote
    class Narcissus:
        def __init__(self):
            self.me = ray.get_runtime_context().current_actor

        def pid(self):
            return os.getpid()

    actor = Narcissus.remote()
    pid = ray.get(actor.pid.remote())
    del actor
    gc.collect()
    eventually(lambda: process_is_gone(pid), "the actor's process exited")


@needs_processes
def test_b27_a_named_actor_dies_too_and_its_name_is_free_again():
    actor = Mortal.options(name="b27-name").remote()
    pid = ray.get(actor.pid.remote())
    del actor
    gc.collect()
    eventually(lambda: process_is_gone(pid), "the actor's process exited")

    def name_is_free():
        try:
            ray.get_actor("b27-name")
        except ValueError:
            return True
        return False

    eventually(name_is_free, "the name was reclaimed")
    again = Mortal.options(name="b27-name").remote()
    assert ray.get(again.pid.remote()) != pid


def test_b27_a_detached_actor_stays():
    Counter.options(name="b27-detached", lifetime="detached").remote(5)
    gc.collect()
    again = ray.get_actor("b27-detached")
    assert ray.get(again.add.remote()) == 6
    ray.kill(again)


# --- B33 ----------------------------------------------------------------------------------------


def test_b33_handles_compare_and_hash_by_actor():
    one, other = Counter.remote(), Counter.remote()
    again = ray.get(echo.remote([one]))[0]
    assert again == one
    assert hash(again) == hash(one)
    assert one != other
    assert one != 5
    assert len({one, again, other}) == 2


def test_b33_the_repr_shows_class_and_id():
    actor = Counter.remote()
    actor_id = actor._actor_id.hex()
    assert len(actor_id) == 32
    assert repr(actor) == f"Actor(Counter, {actor_id})"


def test_b33_a_handle_pickles_inside_arguments():
    @ray.remote
    def use(handles):
        return ray.get(handles["counter"].add.remote(5))

    counter = Counter.remote()
    assert ray.get(use.remote({"counter": counter})) == 5
    assert ray.get(counter.read.remote()) == 5


def test_b33_a_handle_can_be_put():
    counter = Counter.remote()
    ref = ray.put(counter)
    assert ray.get(ray.get(ref).add.remote()) == 1
    assert ray.get(counter.read.remote()) == 1


@minray_only("it copies the object's dict")
def test_b33_a_copy_is_the_same_actor():
    counter = Counter.remote()
    assert copy.copy(counter) == counter


# --- implicit methods and other surface ---------------------------------------------------------


def test_ray_ready_tells_that_the_constructor_is_done():
    assert ray.get(Counter.remote().__ray_ready__.remote()) is True


def test_ray_call_runs_a_function_on_the_actor():
    counter = Counter.remote(3)
    assert ray.get(counter.__ray_call__.remote(lambda self, k: self.n * k, 5)) == 15


@not_local("the actor has no life of its own there")
def test_ray_terminate_ends_the_actor():
    counter = Counter.remote()
    ray.get(counter.read.remote())
    counter.__ray_terminate__.remote()
    with pytest.raises(exceptions.RayActorError):
        for _ in range(1000):
            ray.get(counter.read.remote())


@needs_concurrency
def test_max_pending_calls_limits_what_waits(gate):
    @ray.remote(max_pending_calls=2)
    class Slow:
        def block(self, gate):
            gate.wait()

    slow = Slow.remote()
    refs = [slow.block.remote(gate) for _ in range(2)]
    with pytest.raises(exceptions.PendingCallsLimitExceeded):
        slow.block.remote(gate)
    gate.open()
    ray.get(refs)
    ray.get(slow.block.remote(gate))


def test_a_method_may_be_stored_and_called_later():
    add = Counter.remote().add
    gc.collect()
    assert ray.get([add.remote(), add.remote(2)]) == [1, 3]


def test_an_actor_calls_another_actor():
    @ray.remote
    class Front:
        def __init__(self, back):
            self.back = back

        def add(self):
            return ray.get(self.back.add.remote()) * 10

    counter = Counter.remote()
    front = Front.remote(counter)
    assert ray.get([front.add.remote(), front.add.remote()]) == [10, 20]


def test_an_actor_creates_actors():
    @ray.remote
    class Parent:
        def __init__(self):
            self.children = [Counter.remote(i) for i in range(2)]

        def total(self):
            return sum(ray.get([child.add.remote() for child in self.children]))

    assert ray.get(Parent.remote().total.remote()) == 3


def test_static_and_class_methods_of_actors():
    @ray.remote
    class Methods:
        name = "class"

        @staticmethod
        def static(x):
            return x

        @classmethod
        def of_class(cls, x):
            return cls.name, x

    actor = Methods.remote()
    assert ray.get(actor.static.remote(1)) == 1
    assert ray.get(actor.of_class.remote(2)) == ("class", 2)


def test_remote_as_a_function_makes_actors_too():
    class Local:
        def __init__(self, n=0):
            self.n = n

        def get(self):
            return self.n

    actor = ray.remote(Local).remote(4)
    assert ray.get(actor.get.remote()) == 4
    actor = ray.remote(num_cpus=0, max_restarts=1)(Local).remote(5)
    assert ray.get(actor.get.remote()) == 5


def test_state_survives_between_calls_and_is_not_shared():
    a, b = Counter.remote(), Counter.remote(100)
    ray.get([a.add.remote(), a.add.remote(), b.add.remote()])
    assert ray.get([a.read.remote(), b.read.remote()]) == [2, 101]


def test_an_error_in_a_method_does_not_end_the_actor():
    @ray.remote
    class Touchy:
        def __init__(self):
            self.calls = 0

        def touch(self, fail):
            self.calls += 1
            if fail:
                raise ValueError("touched")
            return self.calls

    touchy = Touchy.remote()
    refs = [touchy.touch.remote(i % 2 == 0) for i in range(4)]
    with pytest.raises(ValueError, match="touched"):
        ray.get(refs[0])
    assert ray.get(refs[3]) == 4
