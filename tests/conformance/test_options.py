"""Options of tasks, actors and methods: B18 and B19."""

from __future__ import annotations

import os

import pytest

from .target import USAGE_ERRORS, minray_only, needs_processes, ray

INIT = {"num_cpus": 4, "num_gpus": 2}


@ray.remote
def echo(value):
    return value


# --- B18 ----------------------------------------------------------------------------------------


def test_b18_options_does_not_change_the_function():
    @ray.remote(num_returns=2)
    def pair():
        return 1, 2

    changed = pair.options(num_returns=1)
    assert ray.get(changed.remote()) == (1, 2)
    assert ray.get(pair.remote()) == [1, 2]


def test_b18_options_merge_key_by_key_with_the_decorators():
    @ray.remote(num_cpus=2, resources=None, num_returns=2)
    def assigned():
        return ray.get_runtime_context().get_assigned_resources(), 1

    (first, _) = assigned.options(memory=1024**2).remote()
    resources = ray.get(first)
    assert resources["CPU"] == 2
    assert resources["memory"] == 1024**2


def test_b18_options_of_an_actor_class_do_not_change_it():
    @ray.remote
    class Named:
        def name(self):
            return ray.get_runtime_context().get_actor_name()

    other = Named.options(name="b18")
    assert ray.get(Named.remote().name.remote()) in (None, "")
    actor = other.remote()
    assert ray.get(actor.name.remote()) == "b18"
    assert ray.get(Named.remote().name.remote()) in (None, "")


def test_b18_options_with_a_name_shows_in_the_task():
    @ray.remote
    def who():
        return ray.get_runtime_context().get_task_name()

    assert ray.get(who.remote()).endswith("who")
    assert ray.get(who.options(name="given").remote()) == "given"


def spell(options):
    """``key=value`` as the test's id."""
    ((key, value),) = options.items()
    return f"{key}={value!r}"


@pytest.mark.parametrize(
    "options",
    [
        {"no_such_option": 1},
        {"num_cpus": -1},
        {"num_cpus": "two"},
        {"num_gpus": -0.5},
        {"memory": -1},
        {"max_retries": -2},
        {"max_retries": "often"},
        {"resources": {"CPU": 1}},
        {"resources": {"GPU": 1}},
        {"resources": [1]},
        {"retry_exceptions": 5},
        {"retry_exceptions": [5]},
        {"runtime_env": 5},
        pytest.param({"scheduling_strategy": "NOWHERE"}, marks=minray_only("it raises at .remote()")),
        {"name": 5},
        {"max_calls": -1},
        {"max_restarts": 1},
        {"lifetime": "detached"},
    ],
    ids=spell,
)
def test_b18_wrong_task_options_are_refused_where_they_are_written(options):
    with pytest.raises((ValueError, TypeError)):
        ray.remote(**options)(lambda: None)
    with pytest.raises((ValueError, TypeError)):
        echo.options(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"no_such_option": 1},
        {"num_cpus": -1},
        {"max_restarts": -2},
        {"max_task_retries": -2},
        {"max_concurrency": -1},
        {"lifetime": "forever"},
        {"max_pending_calls": -2},
        {"name": ""},
        {"name": 5},
        {"namespace": ""},
        {"namespace": 5},
        {"num_returns": 2},
        {"max_retries": 1},
        {"retry_exceptions": True},
        {"max_calls": 1},
        {"get_if_exists": True},
    ],
    ids=spell,
)
def test_b18_wrong_actor_options_are_refused_by_the_time_of_remote(options):
    class Plain:
        pass

    with pytest.raises((ValueError, TypeError)):
        ray.remote(Plain).options(**options).remote()


@pytest.mark.parametrize("options", [{"num_cpus": 1}, {"no_such_option": 1}, {"num_returns": -1}])
def test_b18_wrong_method_options_are_refused(options):
    with pytest.raises(USAGE_ERRORS):

        @ray.method(**options)
        def method(self):
            pass


def test_b18_remote_takes_keywords_only():
    with pytest.raises(USAGE_ERRORS):
        ray.remote(2, 3)
    with pytest.raises(USAGE_ERRORS):
        ray.remote(num_cpus=1)(5)


# --- B19 ----------------------------------------------------------------------------------------


@needs_processes
def test_b19_a_gpu_task_gets_a_fresh_worker_each_time():
    @ray.remote(num_gpus=1)
    def pid():
        return os.getpid()

    pids = [ray.get(pid.remote()) for _ in range(3)]
    assert len(set(pids)) == 3


@needs_processes
def test_b19_max_calls_bounds_the_calls_per_worker():
    @ray.remote(max_calls=2)
    def pid():
        return os.getpid()

    pids = [ray.get(pid.remote()) for _ in range(6)]
    assert max(pids.count(each) for each in pids) <= 2


def test_b19_gpu_tasks_see_their_own_gpus():
    @ray.remote(num_gpus=1)
    def gpus():
        return ray.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES")

    ids, visible = ray.get(gpus.remote())
    assert len(ids) == 1
    assert str(ids[0]) in {"0", "1"}
    assert visible == str(ids[0])


def test_b19_fractions_of_gpus_share_one():
    @ray.remote(num_gpus=0.5)
    def gpus():
        return ray.get_gpu_ids()

    assert len(ray.get(gpus.remote())) == 1


@pytest.mark.parametrize("amount", [1.5, 2.25])
def test_b19_a_fraction_above_one_gpu_is_refused(amount):
    with pytest.raises(ValueError):
        ray.remote(num_gpus=amount)(lambda: None).remote()


def test_b19_resources_are_precise_to_a_ten_thousandth():
    @ray.remote
    def assigned():
        return ray.get_runtime_context().get_assigned_resources()

    assert ray.get(assigned.options(num_cpus=0.0001).remote()) == {"CPU": 0.0001}
    assert ray.get(assigned.options(num_cpus=1.5).remote()) == {"CPU": 1.5}
    with pytest.raises(ValueError, match=r"0\.0001"):
        assigned.options(num_cpus=0.00001).remote()
    with pytest.raises(ValueError, match=r"0\.0001"):
        assigned.options(resources={"thing": 0.00001}).remote()
