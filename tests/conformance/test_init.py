"""Starting and stopping: init, its context, shutdown, what happens before and between sessions."""

from __future__ import annotations

import collections.abc
import contextlib
import os
import sys

import pytest

from .target import (
    IS_LOCAL,
    IS_RAY,
    USAGE_ERRORS,
    eventually,
    exceptions,
    minray_only,
    needs_processes,
    not_local,
    ray,
    ray_only,
    start,
    stop,
)

INIT = None

ADDRESS_KEYS = {
    "node_ip_address",
    "redis_address",
    "object_store_address",
    "raylet_socket_name",
    "webui_url",
    "session_dir",
    "metrics_export_port",
    "gcs_address",
    "address",
    "node_id",
}


@pytest.fixture(autouse=True)
def stopped(monkeypatch):
    """Each test begins and ends without a runtime, and with no address in the environment."""
    stop()
    for name in ("RAY_ADDRESS", "MINRAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    yield
    stop()


@ray.remote
def echo(value):
    return value


@ray.remote
class Counter:
    def __init__(self):
        self.n = 0

    def add(self):
        self.n += 1
        return self.n


# --- one session --------------------------------------------------------------------------------


def test_a_session_from_start_to_end():
    assert not ray.is_initialized()
    context = start()
    assert ray.is_initialized()
    assert isinstance(context, collections.abc.Mapping)
    assert set(context.address_info) >= ADDRESS_KEYS
    assert context.python_version == ".".join(map(str, sys.version_info[:3]))
    assert isinstance(context.ray_version, str)
    assert hasattr(context, "dashboard_url")
    assert context.address_info["node_id"] == ray.get_runtime_context().get_node_id()
    assert ray.get(echo.remote(1)) == 1
    ray.shutdown()
    assert not ray.is_initialized()
    ray.shutdown()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_context_is_a_mapping_of_the_address():
    context = start()
    assert set(context) >= ADDRESS_KEYS
    assert len(context) == len(list(context))
    assert context["node_id"] == context.address_info["node_id"]


def test_the_context_is_a_context_manager():
    with start():
        assert ray.get(echo.remote(2)) == 2
    assert not ray.is_initialized()


def test_disconnect_ends_the_session():
    start().disconnect()
    assert not ray.is_initialized()


def test_a_second_init_is_a_runtime_error():
    start()
    with pytest.raises(RuntimeError, match="init"):
        start()
    assert start(ignore_reinit_error=True).address_info["node_id"] == ray.get_runtime_context().get_node_id()
    assert ray.get(echo.remote(3)) == 3


@needs_processes
def test_init_inside_a_task_is_a_second_init():
    start()

    @ray.remote
    def again():
        with pytest.raises(RuntimeError):
            ray.init()
        ray.init(ignore_reinit_error=True)
        return ray.is_initialized()

    assert ray.get(again.remote()) is True


def test_functions_and_classes_serve_several_sessions():
    for _ in range(2):
        start()
        assert ray.get(echo.remote("again")) == "again"
        assert ray.get(Counter.remote().add.remote()) == 1
        stop()


@minray_only("it crashes or hangs")
def test_a_ref_of_an_earlier_session_is_a_clear_error():
    start()
    ref = ray.put(1)
    stop()
    start()
    with pytest.raises((exceptions.RayError, ValueError, RuntimeError)):
        ray.get(ref, timeout=1)
    assert ray.get(echo.remote(1)) == 1


def test_num_cpus_resources_and_namespace_of_init():
    start(num_cpus=3, num_gpus=1, resources={"thing": 2}, namespace="named", labels={"kind": "test"})
    totals = ray.cluster_resources()
    assert (totals["CPU"], totals["GPU"], totals["thing"]) == (3, 1, 2)
    context = ray.get_runtime_context()
    assert context.namespace == "named"
    assert context.get_node_labels()["kind"] == "test"


@needs_processes
def test_the_environment_of_the_job_reaches_its_workers():
    start(runtime_env={"env_vars": {"JOB_VARIABLE": "of the job"}})

    @ray.remote
    def read():
        return os.environ.get("JOB_VARIABLE")

    assert ray.get(read.remote()) == "of the job"


def test_arguments_that_programs_pass_are_accepted():
    start(
        configure_logging=True,
        logging_level="WARNING",
        logging_format="%(message)s",
        include_dashboard=False,
        dashboard_host="127.0.0.1",
        object_store_memory=100 * 1024 * 1024,
        ignore_reinit_error=True,
        _memory=200 * 1024 * 1024,
        _node_name="the-node",
        _system_config=None,
        _metrics_export_port=None,
    )
    assert ray.get(echo.remote(1)) == 1
    assert ray.nodes()[0]["NodeName"] == "the-node"
    assert ray.cluster_resources()["memory"] == 200 * 1024 * 1024


def test_address_local_starts_a_session():
    start(address="local")
    assert ray.get(echo.remote(1)) == 1


def test_zero_cpus_run_what_needs_none():
    start(num_cpus=0)
    assert ray.get(echo.options(num_cpus=0).remote(1)) == 1


# --- wrong arguments ----------------------------------------------------------------------------


def test_an_unknown_keyword_is_a_runtime_error():
    with pytest.raises(RuntimeError, match="no_such_argument"):
        start(no_such_argument=1)
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": -1},
        {"num_cpus": "many"},
        {"num_gpus": -1},
        {"resources": {"CPU": 1}},
        {"resources": {"thing": -1}},
        pytest.param({"resources": {"thing": 0.5}}, marks=ray_only("half a thing is fine with us")),
        pytest.param({"resources": 5}, marks=minray_only("an AttributeError")),
        pytest.param({"object_store_memory": 1}, marks=not_local("it has no store")),
        {"namespace": 5},
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(options):
    with pytest.raises(USAGE_ERRORS):
        start(**options)
    assert not ray.is_initialized()


@not_local("there is nothing to connect to")
def test_auto_without_a_cluster_is_a_connection_error():
    with pytest.raises(ConnectionError):
        ray.init(address="auto")
    assert not ray.is_initialized()


@not_local("there is nothing to connect to")
@pytest.mark.parametrize(
    "options",
    [{"num_cpus": 1}, {"num_gpus": 1}, {"resources": {"a": 1}}, {"object_store_memory": 10**8}],
    ids=str,
)
def test_an_address_excludes_resources(options):
    with pytest.raises(ValueError):
        ray.init(address="127.0.0.1:1", **options)
    assert not ray.is_initialized()


@minray_only("it retries for a long time")
@not_local("there is nothing to connect to")
def test_an_address_where_nothing_listens_is_a_connection_error():
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:1"):
        ray.init(address="127.0.0.1:1")


# --- before init --------------------------------------------------------------------------------


def test_what_needs_init_says_so():
    for call in (ray.nodes, ray.cluster_resources, ray.available_resources):
        with pytest.raises(exceptions.RaySystemError):
            call()
    with pytest.raises((RuntimeError, NotImplementedError)):
        ray.timeline()
    assert not ray.is_initialized()


AUTO = {
    "put": lambda: ray.put(1),
    "task": lambda: ray.get(echo.remote(1)),
    "actor": lambda: ray.get(Counter.remote().add.remote()),
    "wait": lambda: ray.wait([]),
    "get": lambda: ray.get([]),
    "get_runtime_context": lambda: ray.get_runtime_context().get_node_id(),
    "get_gpu_ids": lambda: ray.get_gpu_ids(),
    "get_actor": lambda: ray.get_actor("absent"),
    "kill": lambda: ray.kill(5),
    "cancel": lambda: ray.cancel(5),
}


@not_local("what starts by itself is a real runtime")
@pytest.mark.parametrize("name", ["put", "task", "actor"] if IS_RAY else list(AUTO))
def test_these_initialise_by_themselves(name):
    # The last three initialise and then complain.
    with contextlib.suppress(ValueError, TypeError):
        AUTO[name]()
    assert ray.is_initialized()


def test_decorating_does_not_initialise():
    ray.remote(lambda: 1)
    ray.remote(num_cpus=2)(lambda: 1).options(num_cpus=1)
    assert not ray.is_initialized()


# --- local mode ---------------------------------------------------------------------------------


@ray_only("it was removed there")
def test_local_mode_raises():
    with pytest.raises(RuntimeError, match="local_mode"):
        ray.init(local_mode=True)


@minray_only("it was removed there")
def test_local_mode_runs_in_this_process():
    ray.init(local_mode=True, num_cpus=2)

    @ray.remote
    def pid():
        return os.getpid()

    @ray.remote
    class Actor:
        def pid(self):
            return os.getpid()

    assert ray.get(pid.remote()) == os.getpid()
    assert ray.get(Actor.remote().pid.remote()) == os.getpid()
    assert ray.cluster_resources()["CPU"] == 2


# --- processes ----------------------------------------------------------------------------------


@needs_processes
def test_shutdown_ends_the_workers():
    start()

    @ray.remote
    def pid():
        return os.getpid()

    @ray.remote
    class Actor:
        def pid(self):
            return os.getpid()

    actor = Actor.remote()
    pids = ray.get([pid.remote(), actor.pid.remote()])
    stop()

    def all_gone():
        for each in pids:
            try:
                os.kill(each, 0)
            except ProcessLookupError:
                continue
            return False
        return True

    eventually(all_gone, "the workers are gone")


@needs_processes
def test_the_session_folder_is_private_and_goes_away():
    session = start().address_info["session_dir"]
    assert os.path.isdir(session)
    if IS_RAY:  # which keeps it, readable to all
        return
    assert os.stat(session).st_mode & 0o077 == 0
    stop()
    eventually(lambda: not os.path.exists(session), "the folder is gone")


NAMES = """
init shutdown is_initialized remote put get wait cancel kill get_actor method nodes cluster_resources
available_resources timeline get_gpu_ids get_runtime_context ObjectRef ObjectID ObjectRefGenerator
DynamicObjectRefGenerator LoggingConfig ActorID TaskID JobID NodeID WorkerID exceptions util actor
"""


def test_version_and_names():
    assert isinstance(ray.__version__, str)
    assert [name for name in NAMES.split() if not hasattr(ray, name)] == []
    assert hasattr(ray.actor, "ActorHandle")
    assert hasattr(ray.actor, "ActorClass")
    assert hasattr(ray.actor, "exit_actor")


def test_logging_config_is_validated():
    ray.LoggingConfig(encoding="TEXT", log_level="INFO")
    with pytest.raises(ValueError):
        ray.LoggingConfig(encoding="NO_SUCH_ENCODING")


@pytest.mark.skipif(not IS_LOCAL, reason="only in local mode")
def test_local_mode_starts_no_process():
    psutil = pytest.importorskip("psutil")
    start()
    ray.get(echo.remote(1))
    assert psutil.Process().children(recursive=True) == []
