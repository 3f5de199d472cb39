"""The first programs of an introduction: a greeting, a graph of A, B and C, put and get, several returns,
resources, wait, error_info, counters."""

from __future__ import annotations

import warnings

import pytest

from ..conformance.target import eventually, minray_only, not_local, ray, start, stop

INIT = {"num_cpus": 4, "num_gpus": 1}


def test_hello_world():
    @ray.remote
    def hello():
        return "Hello world !"

    object_id = hello.remote()
    assert ray.get(object_id) == "Hello world !"


def test_squares():
    @ray.remote
    def square(x):
        return x * x

    futures = [square.remote(i) for i in range(4)]
    assert ray.get(futures) == [0, 1, 4, 9]


def test_a_graph_of_three_tasks():
    @ray.remote
    def A():
        return "A"

    @ray.remote
    def B():
        return "B"

    @ray.remote
    def C(a, b):
        return f"C after {a} and {b}"

    a_id, b_id = A.remote(), B.remote()
    c_id = C.remote(a_id, b_id)
    assert ray.get(c_id) == "C after A and B"


def test_a_diamond_and_a_wide_graph():
    @ray.remote(num_returns=2)
    def split(text):
        middle = len(text) // 2
        return text[:middle], text[middle:]

    @ray.remote
    def upper(text):
        return text.upper()

    @ray.remote
    def join(*parts):
        return "".join(parts)

    left, right = split.remote("distributed")
    assert ray.get(join.remote(upper.remote(left), right)) == "DISTRibuted"
    assert ray.get(join.remote(*[upper.remote(c) for c in "abc"])) == "ABC"


def test_put_and_get():
    x_id = ray.put("example")
    assert ray.get(x_id) == "example"
    result_ids = [ray.put(i) for i in range(10)]
    assert ray.get(result_ids) == list(range(10))


def test_one_put_serves_many_calls():
    @ray.remote
    def measure(x):
        return len(x)

    x = "hello"
    assert ray.get([measure.remote(x) for _ in range(10)]) == [5] * 10
    x_id = ray.put(x)
    assert ray.get([measure.remote(x_id) for _ in range(10)]) == [5] * 10


def test_several_return_values():
    @ray.remote(num_returns=3)
    def three():
        return 1, 2, 3

    x_id, y_id, z_id = three.remote()
    assert ray.get(x_id) == 1
    assert ray.get([y_id, z_id]) == [2, 3]


@minray_only("the old spelling was removed there")
def test_several_return_values_in_the_old_spelling():
    with pytest.warns(DeprecationWarning, match="num_returns"):

        @ray.remote(num_return_vals=2)
        def two():
            return 1, 2

    x_id, y_id = two.remote()
    assert (ray.get(x_id), ray.get(y_id)) == (1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        only = two.options(num_return_vals=1).remote()
    assert ray.get(only) == (1, 2)


def test_a_task_with_a_gpu():
    @ray.remote(num_gpus=1)
    def gpu_method():
        return f"This function is allowed to use GPUs {ray.get_gpu_ids()}."

    assert ray.get(gpu_method.remote()) in (
        "This function is allowed to use GPUs [0].",
        "This function is allowed to use GPUs ['0'].",
    )


def test_wait_for_four_of_five():
    @ray.remote
    def work(i):
        return i

    results = [work.remote(i) for i in range(5)]
    ready_ids, remaining_ids = ray.wait(results, num_returns=4, timeout=2500)
    assert (len(ready_ids), len(remaining_ids)) == (4, 1)
    assert set(ray.get(ready_ids + remaining_ids)) == {0, 1, 2, 3, 4}


@minray_only("it was removed there")
def test_error_info_without_a_get():
    @ray.remote
    def fail():
        raise Exception("This task failed!!")

    fail.remote()
    infos = eventually(
        lambda: [info for info in ray.error_info() if "This task failed!!" in info["message"]],
        "the error is listed",
    )
    assert infos[0]["type"] == "task"
    assert "fail" in infos[0]["message"]
    assert 'raise Exception("This task failed!!")' in infos[0]["message"]


def test_counters():
    @ray.remote
    class Counter(object):  # noqa: UP004
        def __init__(self):
            self.value = 0

        def increment(self):
            self.value += 1
            return self.value

    a1, a2 = Counter.remote(), Counter.remote()
    assert ray.get([a1.increment.remote(), a2.increment.remote()]) == [1, 1]
    assert ray.get(a1.increment.remote()) == 2


def test_a_row_of_counters():
    @ray.remote
    class Counter:
        def __init__(self):
            self.n = 0

        def increment(self):
            self.n += 1

        def read(self):
            return self.n

    counters = [Counter.remote() for _ in range(4)]
    [c.increment.remote() for c in counters]
    assert ray.get([c.read.remote() for c in counters]) == [1, 1, 1, 1]


def test_remote_as_a_call_instead_of_a_decorator():
    def f(x):
        return x + 1

    remote_f = ray.remote(f)
    assert ray.get(remote_f.remote(1)) == 2
    with pytest.raises(TypeError):
        remote_f(1)


def test_a_remote_function_calls_one_that_was_defined_later():
    @ray.remote
    def outer():
        return ray.get(inner.remote()) + helper()

    @ray.remote
    def inner():
        return 40

    def helper():
        return 2

    assert ray.get(outer.remote()) == 42


def test_a_second_init_is_an_error_and_what_init_tells():
    with pytest.raises(RuntimeError):
        ray.init()
    info = ray.init(ignore_reinit_error=True).address_info
    assert info["node_ip_address"]
    assert "webui_url" in info
    assert len(info["node_id"]) == 56


@not_local("one process has one session there")
def test_more_cpus_than_the_machine_has():
    stop()
    start(num_cpus=64)

    @ray.remote(num_cpus=32)
    def big():
        return "logical resources"

    assert ray.get(big.remote()) == "logical resources"
