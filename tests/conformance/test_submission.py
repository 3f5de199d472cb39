"""Submitting tasks: B15 to B17, B20 and B21."""

from __future__ import annotations

import os
import warnings

import pytest

from .target import (
    IS_RAY,
    USAGE_ERRORS,
    exceptions,
    minray_only,
    needs_concurrency,
    needs_processes,
    not_local,
    ray,
)

INIT = {"num_cpus": 4, "num_gpus": 2}


@ray.remote
def echo(value):
    return value


@ray.remote
def kind(value):
    return type(value).__name__


# --- B15 ----------------------------------------------------------------------------------------


def test_b15_top_level_refs_arrive_as_values():
    @ray.remote
    def add(a, *rest, b, **named):
        return a + sum(rest) + b + sum(named.values())

    p = ray.put
    assert ray.get(add.remote(p(1), p(2), p(3), b=p(4), c=p(5))) == 15


@pytest.mark.parametrize(
    "wrap", [lambda ref: [ref], lambda ref: (ref,), lambda ref: {"key": ref}], ids=["list", "tuple", "dict"]
)
def test_b15_nested_refs_arrive_as_refs(wrap):
    @ray.remote
    def open_box(box):
        (inner,) = box.values() if isinstance(box, dict) else box
        assert isinstance(inner, ray.ObjectRef)
        return ray.get(inner)

    assert ray.get(open_box.remote(wrap(ray.put("inside")))) == "inside"


def test_b15_a_value_that_holds_refs_is_resolved_one_level_only():
    inner = ray.put("inside")
    outer = ray.put([inner])
    assert ray.get(kind.remote(outer)) == "list"
    assert ray.get(echo.remote(outer)) == [inner]


def test_b15_a_chain_of_tasks_needs_no_get():
    @ray.remote
    def increment(n):
        return n + 1

    ref = 0
    for _ in range(10):
        ref = increment.remote(ref)
    assert ray.get(ref) == 10


def test_b15_constructors_and_methods_resolve_refs_too():
    @ray.remote
    class Box:
        def __init__(self, value):
            self.value = value

        def add(self, other):
            return self.value + other

    assert ray.get(Box.remote(ray.put(1)).add.remote(echo.remote(2))) == 3


def test_b15_the_same_ref_twice_in_one_call():
    @ray.remote
    def pair(a, b, box):
        return a, b, ray.get(box)

    ref = ray.put(5)
    assert ray.get(pair.remote(ref, ref, [ref, ref])) == (5, 5, [5, 5])


# --- B16 ----------------------------------------------------------------------------------------


@ray.remote
def two(a, b=2, *, c=3):
    return a, b, c


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((1, 2, 3), {}),
        ((1,), {"d": 4}),
        ((1,), {"a": 1}),
    ],
)
def test_b16_a_wrong_signature_is_a_type_error_in_the_caller(args, kwargs):
    with pytest.raises(TypeError):
        two.remote(*args, **kwargs)


def test_b16_a_right_signature_works_however_it_is_spelt():
    assert ray.get(two.remote(1)) == (1, 2, 3)
    assert ray.get(two.remote(b=5, a=4)) == (4, 5, 3)
    assert ray.get(two.remote(1, c=9)) == (1, 2, 9)


@ray.remote
class Signed:
    def __init__(self, a, *, b=0):
        self.sum = a + b

    def add(self, n, *more):
        return self.sum + n + sum(more)


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2), {}), ((1,), {"c": 3})])
def test_b16_a_wrong_constructor_signature_is_a_type_error_in_the_caller(args, kwargs):
    with pytest.raises(TypeError):
        Signed.remote(*args, **kwargs)


def test_b16_a_wrong_method_signature_is_a_type_error_in_the_caller():
    actor = Signed.remote(1, b=1)
    with pytest.raises(TypeError):
        actor.add.remote()
    with pytest.raises(TypeError):
        actor.add.remote(n=1, m=2)
    assert ray.get(actor.add.remote(1, 2, 3)) == 8


def test_b16_var_keywords_take_anything():
    @ray.remote
    def gather(*args, **kwargs):
        return args, kwargs

    assert ray.get(gather.remote(1, 2, x=3, self=4, args=5)) == ((1, 2), {"x": 3, "self": 4, "args": 5})


# --- B17 ----------------------------------------------------------------------------------------


def test_b17_num_returns_zero_returns_none():
    @ray.remote(num_returns=0)
    def nothing():
        return None

    assert nothing.remote() is None


def test_b17_num_returns_two_gives_a_list_of_refs():
    @ray.remote(num_returns=2)
    def pair():
        return 1, 2

    refs = pair.remote()
    assert isinstance(refs, list)
    assert ray.get(refs) == [1, 2]


def test_b17_num_returns_one_gives_a_ref():
    ref = echo.options(num_returns=1).remote((1, 2))
    assert isinstance(ref, ray.ObjectRef)
    assert ray.get(ref) == (1, 2)


def test_b17_any_iterable_of_the_right_length_can_be_split():
    @ray.remote(num_returns=3)
    def three(form):
        return {"list": [1, 2, 3], "array": __import__("numpy").arange(1, 4)}[form]

    assert ray.get(three.remote("list")) == [1, 2, 3]
    assert ray.get(three.remote("array")) == [1, 2, 3]


def test_b17_a_generator_function_fills_a_fixed_number_of_returns():
    @ray.remote(num_returns=2)
    def pair():
        yield "a"
        yield "b"

    assert ray.get(pair.remote()) == ["a", "b"]


@pytest.mark.parametrize("length", [1, 2, 4])
def test_b17_a_mismatch_is_a_value_error_with_both_numbers(length):
    @ray.remote(num_returns=3)
    def wrong():
        return tuple(range(length))

    refs = wrong.remote()
    assert len(refs) == 3
    with pytest.raises(ValueError) as caught:
        ray.get(refs[0])
    text = str(caught.value)
    assert "3" in text
    assert str(length) in text


def test_b17_an_error_fills_every_return():
    @ray.remote(num_returns=2)
    def fail():
        raise KeyError("all")

    for ref in fail.remote():
        with pytest.raises(KeyError):
            ray.get(ref)


def test_b17_methods_return_several_values():
    @ray.remote
    class Pairs:
        @ray.method(num_returns=2)
        def pair(self):
            return "a", "b"

        def one(self):
            return "c", "d"

    actor = Pairs.remote()
    assert ray.get(actor.pair.remote()) == ["a", "b"]
    assert ray.get(actor.one.options(num_returns=2).remote()) == ["c", "d"]
    assert actor.one.options(num_returns=0).remote() is None


@pytest.mark.parametrize("bad", [-1, 1.5, "many", None.__class__])
def test_b17_a_bad_num_returns_is_refused_where_it_is_written(bad):
    with pytest.raises((ValueError, TypeError)):
        ray.remote(num_returns=bad)(lambda: None)


# --- B20 ----------------------------------------------------------------------------------------


@needs_processes
def test_b20_later_changes_of_globals_are_invisible():
    space = {"SETTING": "at first", "__name__": "__main__"}
    exec("def read():\n    return SETTING", space)
    read = ray.remote(space["read"])
    assert ray.get(read.remote()) == "at first"
    space["SETTING"] = "later"
    assert ray.get(read.remote()) == "at first"


@needs_processes
def test_b20_changes_before_the_first_call_are_visible():
    setting = "at definition"

    @ray.remote
    def read():
        return setting

    setting = "before the call"
    assert ray.get(read.remote()) == "before the call"
    setting = "after the call"
    assert ray.get(read.remote()) == "before the call"


def test_b20_a_function_over_ten_megabytes_warns():
    blob = os.urandom(11 * 1024 * 1024)

    @ray.remote
    def heavy():
        return len(blob)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert ray.get(heavy.remote()) == len(blob)
    if not IS_RAY:  # which logs it
        assert any("heavy" in str(warning.message) for warning in caught)


@not_local("nothing is pickled there")
def test_b20_a_function_over_a_hundred_megabytes_is_refused():
    blob = bytes(101 * 1024 * 1024)

    @ray.remote
    def too_heavy():
        return len(blob)

    with pytest.raises(ValueError, match="too_heavy"):
        too_heavy.remote()


@not_local("nothing is pickled there")
def test_b20_an_unpicklable_closure_is_a_type_error_at_remote():
    import threading

    lock = threading.Lock()

    @ray.remote
    def locked():
        return lock

    with pytest.raises(TypeError, match="lock"):
        locked.remote()


@minray_only("it lists the variables, not the path")
@not_local("nothing is pickled there")
def test_b20_the_error_names_the_path_to_the_culprit():
    import threading

    class Config:
        pass

    cfg = Config()
    cfg.inner = {"logger": threading.Lock()}

    @ray.remote
    def train():
        return cfg

    with pytest.raises(TypeError) as caught:
        train.remote()
    assert "train" in str(caught.value)
    assert "closure 'cfg'" in str(caught.value)
    assert ".inner['logger']" in str(caught.value)


@not_local("nothing is pickled there")
def test_b20_an_unpicklable_argument_is_a_type_error_at_remote():
    import threading

    with pytest.raises(TypeError):
        echo.remote(threading.Lock())
    with pytest.raises(TypeError):
        ray.put({"deep": [threading.Lock()]})


# --- B21 ----------------------------------------------------------------------------------------


@ray.remote
class Plain:
    def method(self):
        return "ran"


def test_b21_calling_a_remote_function_names_remote():
    with pytest.raises(TypeError, match=r"\.remote\("):
        echo(1)


def test_b21_calling_an_actor_class_names_remote():
    with pytest.raises(TypeError, match=r"\.remote\("):
        Plain()


def test_b21_calling_a_method_names_remote():
    actor = Plain.remote()
    with pytest.raises(TypeError, match=r"\.remote\("):
        actor.method()
    assert ray.get(actor.method.remote()) == "ran"


def test_b21_subclassing_an_actor_class_has_its_own_error():
    with pytest.raises(TypeError, match="nherit"):

        class Sub(Plain):
            pass


def test_b21_a_subclass_made_before_decorating_works():
    class Base:
        def who(self):
            return type(self).__name__

        def base(self):
            return "base"

    @ray.remote
    class Derived(Base):
        def base(self):
            return "derived over " + super().base()

    actor = Derived.remote()
    assert ray.get(actor.base.remote()) == "derived over base"
    assert ray.get(actor.who.remote()) == "Derived"


def test_b21_a_missing_method_is_an_attribute_error():
    actor = Plain.remote()
    with pytest.raises(AttributeError, match="missing"):
        actor.missing.remote()


@pytest.mark.parametrize("thing", [5, "text", print, len, [1]], ids=repr)
def test_b21_remote_of_something_else_is_an_error(thing):
    with pytest.raises(USAGE_ERRORS):
        ray.remote(thing)


def test_b21_remote_without_arguments_is_an_error():
    with pytest.raises(USAGE_ERRORS):
        ray.remote()


def test_b21_the_original_stays_reachable_and_documented():
    @ray.remote
    def documented(x):
        """What it does."""
        return x

    assert documented._function(3) == 3
    if not IS_RAY:  # which has no __name__ and shows its own text
        assert documented.__name__ == "documented"
        assert documented.__doc__ == "What it does."


def test_b21_a_lambda_and_a_nested_function_are_fine():
    assert ray.get(ray.remote(lambda x: x * 2).remote(4)) == 8


def test_a_task_can_submit_tasks():
    @ray.remote
    def outer(n):
        return sum(ray.get([echo.remote(i) for i in range(n)]))

    assert ray.get(outer.remote(5)) == 10


@needs_concurrency
def test_a_task_waits_for_its_arguments_without_holding_a_cpu(gate):
    waiting = [echo.remote(gate.ref()) for _ in range(10)]
    assert ray.get(echo.remote("others run"), timeout=30) == "others run"
    gate.open()
    ray.get(waiting)


@needs_processes
def test_an_unserializable_result_leaves_the_worker_alive():
    @ray.remote
    def bad():
        import threading

        return threading.Lock()

    with pytest.raises(exceptions.RayTaskError):
        ray.get(bad.remote())
    assert ray.get(echo.remote(1)) == 1
