"""The runtime context, in the driver, in tasks and in actors; what the cluster says about itself."""

from __future__ import annotations

import os
import re

import pytest

from .target import USAGE_ERRORS, exceptions, minray_only, needs_processes, not_local, ray, t2, util

INIT = {"num_cpus": 4, "namespace": "space"}

HEX28 = re.compile(r"[0-9a-f]{56}")


@ray.remote
def ask(*names):
    """Call those methods, or read those properties, of the context of this task."""
    context = ray.get_runtime_context()
    values = [getattr(context, name) for name in names]
    return [value() if callable(value) else value for value in values]


@ray.remote
class Asker:
    def ask(self, *names):
        context = ray.get_runtime_context()
        values = [getattr(context, name) for name in names]
        return [value() if callable(value) else value for value in values]

    def me(self):
        return ray.get_runtime_context().current_actor

    async def nothing(self):
        pass


# --- in the driver ------------------------------------------------------------------------------


def test_the_drivers_ids():
    context = ray.get_runtime_context()
    assert re.fullmatch(r"[0-9a-f]{8}", context.get_job_id())
    assert HEX28.fullmatch(context.get_node_id())
    assert HEX28.fullmatch(context.get_worker_id())
    assert context.get_node_id() == ray.nodes()[0]["NodeID"]


@pytest.mark.parametrize(
    "name",
    ["get_actor_id", "get_actor_name", "get_task_id", "get_task_name", "get_task_function_name"],
)
def test_the_driver_is_no_task_and_no_actor(name):
    assert getattr(ray.get_runtime_context(), name)() is None


def test_what_only_workers_have():
    context = ray.get_runtime_context()
    with pytest.raises((RuntimeError, *USAGE_ERRORS)):
        context.get_assigned_resources()
    with pytest.raises((RuntimeError, *USAGE_ERRORS)):
        _ = context.current_actor
    with pytest.raises((RuntimeError, *USAGE_ERRORS)):
        context.is_canceled()


def test_the_drivers_namespace_and_environment():
    context = ray.get_runtime_context()
    assert context.namespace == "space"
    assert context.get_runtime_env_string() == "{}"
    assert dict(context.runtime_env) == {}
    assert context.get_placement_group_id() is None
    assert context.should_capture_child_tasks_in_placement_group is False
    assert context.get_accelerator_ids()["GPU"] == []
    assert context.get_resource_ids()["GPU"] == []


def test_get_gives_a_dict():
    info = ray.get_runtime_context().get()
    assert info["namespace"] == "space"
    assert info["job_id"].hex() == ray.get_runtime_context().get_job_id()
    assert info["node_id"].hex() == ray.get_runtime_context().get_node_id()


def test_session_name_and_folder():
    context = ray.get_runtime_context()
    assert context.get_session_name()
    assert os.path.isabs(context.get_temp_dir())


@not_local("there is no server")
def test_the_gcs_address():
    assert ray.get_runtime_context().gcs_address


def test_node_labels():
    labels = ray.get_runtime_context().get_node_labels()
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in labels.items())


# --- in a task ----------------------------------------------------------------------------------


def test_a_tasks_ids():
    ref = ask.remote("get_task_id", "get_job_id", "get_node_id", "get_actor_id", "get_actor_name")
    task_id, job_id, node_id, actor_id, actor_name = ray.get(ref)
    context = ray.get_runtime_context()
    assert task_id == ref.task_id().hex()
    assert job_id == context.get_job_id()
    assert node_id == context.get_node_id()
    assert actor_id is None
    assert actor_name is None


@needs_processes
def test_a_worker_is_not_the_driver():
    (worker_id,) = ray.get(ask.remote("get_worker_id"))
    assert HEX28.fullmatch(worker_id)
    assert worker_id != ray.get_runtime_context().get_worker_id()


def test_a_tasks_names():
    name, function_name = ray.get(ask.remote("get_task_name", "get_task_function_name"))
    assert name == "ask"
    assert function_name.endswith("test_runtime_context.ask")
    name, function_name = ray.get(ask.options(name="given").remote("get_task_name", "get_task_function_name"))
    assert name == "given"
    assert function_name.endswith("test_runtime_context.ask")


def test_a_task_is_not_cancelled_and_has_resources():
    assert ray.get(ask.remote("is_canceled", "get_assigned_resources")) == [False, {"CPU": 1}]
    assert ray.get(ask.options(num_cpus=2).remote("get_assigned_resources")) == [{"CPU": 2}]


def test_a_task_is_in_the_jobs_namespace():
    assert ray.get(ask.remote("namespace")) == ["space"]


def test_a_task_sees_its_env_vars():
    env = {"env_vars": {"CONTEXT_TEST": "1"}}
    ((runtime_env,),) = [ray.get(ask.options(runtime_env=env).remote("runtime_env"))]
    assert runtime_env["env_vars"] == {"CONTEXT_TEST": "1"}


def test_current_actor_in_a_task_is_a_runtime_error():
    with pytest.raises(RuntimeError):
        ray.get(ask.remote("current_actor"))


def test_a_nested_task_has_ids_of_its_own():
    @ray.remote
    def outer():
        context = ray.get_runtime_context()
        before = context.get_task_id()
        (inner,) = ray.get(ask.remote("get_task_id"))
        return before, inner, context.get_task_id()

    before, inner, after = ray.get(outer.remote())
    assert before == after
    assert before != inner


# --- in an actor --------------------------------------------------------------------------------


def test_an_actors_ids_and_names():
    actor = Asker.options(name="asker").remote()
    names = ["get_actor_id", "get_actor_name", "get_task_name", "get_task_function_name"]
    actor_id, actor_name, task_name, function_name = ray.get(actor.ask.remote(*names))
    assert actor_id == actor._actor_id.hex()
    assert actor_name == "asker"
    assert task_name == "Asker.ask"
    assert function_name.endswith("test_runtime_context.Asker.ask")


def test_a_given_name_of_a_method_call():
    actor = Asker.remote()
    assert ray.get(actor.ask.options(name="given").remote("get_task_name")) == ["given"]


def test_current_actor_is_the_actor():
    actor = Asker.remote()
    assert ray.get(actor.me.remote()) == actor


def test_a_first_life_is_not_a_reconstruction():
    assert ray.get(Asker.remote().ask.remote("was_current_actor_reconstructed")) == [False]


def test_the_context_of_a_constructor():
    @ray.remote
    class Born:
        def __init__(self):
            self.id = ray.get_runtime_context().get_actor_id()

        def get(self):
            return self.id

    actor = Born.remote()
    assert ray.get(actor.get.remote()) == actor._actor_id.hex()


def test_concurrent_calls_have_contexts_of_their_own():
    @ray.remote
    class Async:
        async def ask(self):
            import asyncio

            before = ray.get_runtime_context().get_task_id()
            await asyncio.sleep(0.001)
            return before, ray.get_runtime_context().get_task_id()

    actor = Async.remote()
    refs = [actor.ask.remote() for _ in range(10)]
    answers = ray.get(refs)
    assert [before for before, _ in answers] == [after for _, after in answers]
    assert [before for before, _ in answers] == [ref.task_id().hex() for ref in refs]


# --- the cluster --------------------------------------------------------------------------------


def test_nodes():
    (node,) = ray.nodes()
    assert node["Alive"] is True
    assert HEX28.fullmatch(node["NodeID"])
    assert node["Resources"]["CPU"] == 4
    for key in ("NodeManagerAddress", "NodeManagerHostname", "NodeName", "Labels", "alive"):
        assert key in node


@t2("get_node_ip_address")
def test_node_ip_address():
    assert re.fullmatch(r"[\d.]+", util.get_node_ip_address())


def test_get_gpu_ids_without_gpus():
    assert ray.get_gpu_ids() == []


@minray_only("gone there")
def test_error_info_lists_what_failed():
    @ray.remote
    def fail():
        raise ValueError("listed in error_info")

    with pytest.raises(exceptions.RayTaskError):
        ray.get(fail.remote())
    infos = ray.error_info()
    assert any(info["type"] == "task" and "listed in error_info" in info["message"] for info in infos)
