"""Bad input gets a clear error at the call that made it: the message names the value and the fix.

What raises is in the tests of B1 to B43; here is what the message says, which only minray promises.
"""

from __future__ import annotations

import threading

import pytest

from .target import exceptions, minray_only, not_local, ray

pytestmark = minray_only("its messages differ")


@ray.remote
def scale(array, factor=1, *, bias=0):
    return array * factor + bias


@ray.remote
class Store:
    def __init__(self, path):
        self.path = path

    def load(self, key):
        return key


def message(error, call):
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def test_calling_a_remote_function_directly():
    assert "scale.remote(" in message(TypeError, lambda: scale(1))


def test_calling_an_actor_class_directly():
    assert "Store.remote(" in message(TypeError, lambda: Store("a"))


def test_calling_a_method_directly():
    store = Store.remote("a")
    assert "load.remote(" in message(TypeError, lambda: store.load("k"))


def test_a_wrong_signature_names_the_function_and_the_argument():
    text = message(TypeError, lambda: scale.remote(1, facto=2))
    assert "facto" in text
    text = message(TypeError, lambda: scale.remote())
    assert "array" in text
    text = message(TypeError, lambda: Store.remote())
    assert "path" in text
    store = Store.remote("a")
    text = message(TypeError, lambda: store.load.remote())
    assert "key" in text


def test_a_missing_method_names_the_class_and_the_method():
    store = Store.remote("a")
    text = message(AttributeError, lambda: store.laod)
    assert "Store" in text
    assert "laod" in text


def test_get_of_a_non_ref_names_its_type():
    assert "int" in message(ValueError, lambda: ray.get(5))
    assert "tuple" in message(ValueError, lambda: ray.get((ray.put(1),)))
    assert "list" in message(ValueError, lambda: ray.get((ray.put(1),)))  # the fix


def test_wait_names_what_is_wrong():
    refs = [ray.put(1), ray.put(2)]
    text = message(ValueError, lambda: ray.wait(refs, num_returns=5))
    assert "5" in text
    assert "2" in text
    assert "-1" in message(ValueError, lambda: ray.wait(refs, timeout=-1))
    assert "list" in message(TypeError, lambda: ray.wait(refs[0]))
    assert "int" in message(TypeError, lambda: ray.wait([5]))


def test_put_of_a_ref_names_the_way_out():
    assert "list" in message(TypeError, lambda: ray.put(ray.put(1)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_cpu": 1}, ["num_cpu", "num_cpus"]),
        ({"num_cpus": -2}, ["num_cpus", "-2"]),
        ({"num_cpus": 0.00001}, ["num_cpus", "1e-05", "0.0001"]),
        ({"resources": {"CPU": 2}}, ["CPU", "num_cpus"]),
        ({"resources": {"GPU": 2}}, ["GPU", "num_gpus"]),
        ({"num_returns": -1}, ["num_returns", "-1"]),
        ({"max_retries": -5}, ["max_retries", "-5"]),
        ({"num_gpus": 1.5}, ["num_gpus", "1.5"]),
        ({"scheduling_strategy": "NOWHERE"}, ["scheduling_strategy", "NOWHERE"]),
        ({"max_restarts": 1}, ["max_restarts"]),
    ],
    ids=str,
)
def test_a_wrong_option_is_named_with_its_value(options, words):
    text = message((ValueError, TypeError), lambda: scale.options(**options).remote(1))
    for word in words:
        assert word in text


@not_local("nothing is pickled there")
def test_an_unpicklable_argument_shows_the_path():
    class Model:
        def __init__(self):
            self.layers = [{"guard": threading.Lock()}]

    text = message(TypeError, lambda: scale.remote(Model()))
    assert ".layers[0]['guard']" in text


@not_local("nothing is pickled there")
def test_an_unpicklable_put_shows_the_path():
    text = message(TypeError, lambda: ray.put({"a": [1, threading.Lock()]}))
    assert "['a'][1]" in text


@not_local("nothing is pickled there")
def test_an_unpicklable_default_shows_the_path():
    def waits(lock=threading.Lock()):  # noqa: B008
        return lock

    text = message(TypeError, lambda: ray.remote(waits).remote())
    assert "waits" in text
    assert "lock" in text


@not_local("nothing is pickled there")
def test_an_actor_class_with_an_unpicklable_attribute_shows_the_path():
    class Guarded:
        guard = threading.Lock()

    text = message(TypeError, lambda: ray.remote(Guarded).remote())
    assert "Guarded" in text
    assert "guard" in text


def test_kill_and_cancel_name_each_other():
    store = Store.remote("a")
    assert "kill" in message(TypeError, lambda: ray.cancel(store))
    assert "cancel" in message(ValueError, lambda: ray.kill(ray.put(1)))


def test_a_ref_where_a_value_belongs_names_get():
    for use in (bool, len, iter, int):
        with pytest.raises(TypeError):
            if use is bool:
                raise TypeError  # a ref is true, as any object
            use(ray.put(1))


def test_remote_of_a_thing_names_it():
    assert "5" in message((TypeError, ValueError), lambda: ray.remote(5))
    assert "print" in message((TypeError, ValueError), lambda: ray.remote(print))


def test_the_read_only_error_of_an_array_is_numpys_own():
    import numpy as np

    array = ray.get(ray.put(np.zeros(100_000)))
    if array.flags.writeable:
        pytest.skip("in local mode nothing is shared")
    with pytest.raises(ValueError, match="read-only"):
        array += 1


@not_local("nothing is pickled there")
def test_a_method_that_returns_something_unpicklable_names_it():
    @ray.remote
    def give():
        return {"conn": threading.Lock()}

    with pytest.raises(exceptions.RayTaskError, match="conn"):
        ray.get(give.remote())
