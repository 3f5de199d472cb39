"""The hierarchy of exceptions, how each is built, and the situations that raise them on one machine."""

from __future__ import annotations

import os
import pickle
import signal
import sys

import numpy as np
import pytest

from .target import (
    IS_RAY,
    eventually,
    exceptions,
    minray_only,
    needs_concurrency,
    needs_processes,
    not_local,
    ray,
    start,
    stop,
)

PARENTS = {
    "RayError": Exception,
    "TaskCancelledError": "RayError",
    "RayTaskError": "RayError",
    "LocalRayletDiedError": "RayError",
    "WorkerCrashedError": "RayError",
    "RaySystemError": "RayError",
    "AuthenticationError": "RayError",
    "UserCodeException": "RayError",
    "ObjectStoreFullError": "RayError",
    "OutOfDiskError": "RayError",
    "OutOfMemoryError": "RayError",
    "NodeDiedError": "RayError",
    "RpcError": "RayError",
    "AsyncioActorExit": "RayError",
    "RuntimeEnvSetupError": "RayError",
    "TaskPlacementGroupRemoved": "RayError",
    "ActorPlacementGroupRemoved": "RayError",
    "PendingCallsLimitExceeded": "RayError",
    "TaskUnschedulableError": "RayError",
    "ActorUnschedulableError": "RayError",
    "ObjectRefStreamEndOfStreamError": "RayError",
    "UnserializableException": "RayError",
    "GetTimeoutError": "RayError",
    "RayActorError": "RayError",
    "ActorDiedError": "RayActorError",
    "ActorUnavailableError": "RayActorError",
    "ObjectLostError": "RayError",
    "ObjectFetchTimedOutError": "ObjectLostError",
    "ReferenceCountingAssertionError": "ObjectLostError",
    "ObjectFreedError": "ObjectLostError",
    "OwnerDiedError": "ObjectLostError",
    "ObjectReconstructionFailedError": "ObjectLostError",
    "ActorAlreadyExistsError": "RayError",
    "ActorHandleNotFoundError": "RayError",
}


@pytest.mark.parametrize("name", PARENTS)
def test_the_hierarchy(name):
    parent = PARENTS[name]
    parent = getattr(exceptions, parent) if isinstance(parent, str) else parent
    assert issubclass(getattr(exceptions, name), parent)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("GetTimeoutError", TimeoutError),
        ("ReferenceCountingAssertionError", AssertionError),
        ("ActorAlreadyExistsError", ValueError),
        ("ActorHandleNotFoundError", ValueError),
    ],
)
def test_exceptions_that_are_also_standard_ones(name, other):
    assert issubclass(getattr(exceptions, name), other)


REF_HEX = "ab" * 28
BUILD = {
    "TaskCancelledError": (),
    "LocalRayletDiedError": (),
    "WorkerCrashedError": (),
    "RaySystemError": ("why",),
    "UserCodeException": ("why",),
    "ObjectStoreFullError": ("why",),
    "OutOfDiskError": ("why",),
    "OutOfMemoryError": ("why",),
    "NodeDiedError": ("why",),
    "RpcError": ("why",),
    "RuntimeEnvSetupError": ("why",),
    "TaskPlacementGroupRemoved": (),
    "ActorPlacementGroupRemoved": (),
    "PendingCallsLimitExceeded": ("why",),
    "TaskUnschedulableError": ("why",),
    "ActorUnschedulableError": ("why",),
    "GetTimeoutError": ("why",),
    "RayActorError": (),
    "ActorDiedError": (),
    "ActorUnavailableError": ("why", b"\x01" * 16),
    "ObjectLostError": (REF_HEX, None, ""),
    "ObjectFetchTimedOutError": (REF_HEX, None, ""),
    "ReferenceCountingAssertionError": (REF_HEX, None, ""),
    "ObjectFreedError": (REF_HEX, None, ""),
    "OwnerDiedError": (REF_HEX, None, ""),
    "ObjectReconstructionFailedError": (REF_HEX,),
    "ActorAlreadyExistsError": ("why",),
    "ActorHandleNotFoundError": ("why",),
}


@pytest.mark.parametrize("name", BUILD)
def test_they_can_be_built_and_printed(name):
    error = getattr(exceptions, name)(*BUILD[name])
    text = str(error)
    if "why" in BUILD[name]:
        assert "why" in text
    if BUILD[name][:1] == (REF_HEX,):
        assert REF_HEX in text


@pytest.mark.parametrize("name", BUILD)
def test_they_pickle(name):
    error = getattr(exceptions, name)(*BUILD[name])
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_a_task_error_can_be_built():
    error = exceptions.RayTaskError("f", "Traceback…\nValueError: why", ValueError("why"))
    assert "ValueError: why" in str(error)
    assert error.function_name == "f"
    assert isinstance(error.as_instanceof_cause(), ValueError)
    assert isinstance(error.as_instanceof_cause(), exceptions.RayTaskError)


# --- situations ---------------------------------------------------------------------------------


@needs_processes
@pytest.mark.parametrize("how", ["sigkill", "os._exit", "segfault", "sys.exit", "abort"])
def test_a_dead_worker_is_a_worker_crashed_error(how):
    @ray.remote(max_retries=0)
    def die():
        if how == "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "os._exit":
            os._exit(7)
        elif how == "sys.exit":
            sys.exit(7)
        elif how == "abort":
            os.abort()
        import ctypes

        ctypes.string_at(0)

    with pytest.raises(exceptions.WorkerCrashedError):
        ray.get(die.remote())


@needs_processes
@minray_only("it has no death certificates")
@pytest.mark.parametrize(("how", "word"), [("sigkill", "SIGKILL"), ("exit", "7"), ("segfault", "SIGSEGV")])
def test_the_death_certificate_of_a_task(how, word):
    @ray.remote(max_retries=0)
    def doomed():
        print("famous last words", flush=True)
        if how == "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "exit":
            os._exit(7)
        import ctypes

        ctypes.string_at(0)

    with pytest.raises(exceptions.WorkerCrashedError) as caught:
        ray.get(doomed.remote())
    text = str(caught.value)
    assert word in text
    assert "doomed" in text
    assert "famous last words" in text
    assert "MB" in text or "MiB" in text  # its peak memory


@needs_processes
def test_neighbours_of_a_crash_are_unharmed():
    @ray.remote(max_retries=0)
    def die():
        os._exit(1)

    @ray.remote
    def echo(i):
        return i

    refs = [echo.remote(i) for i in range(20)]
    failed = die.remote()
    refs += [echo.remote(i) for i in range(20)]
    assert ray.get(refs) == [*range(20), *range(20)]
    with pytest.raises(exceptions.WorkerCrashedError):
        ray.get(failed)


@needs_concurrency
def test_get_timeout_error(gate):
    with pytest.raises(exceptions.GetTimeoutError):
        ray.get(gate.ref(), timeout=0.01)


@needs_processes
def test_owner_died_error_for_a_tasks_result():
    """A task that dies leaves the refs it gave away without an owner."""

    @ray.remote
    class Box:
        def keep(self, refs):
            self.refs = refs

        def read(self):
            return ray.get(self.refs[0])

    @ray.remote(max_retries=0)
    def give_and_die(box):
        ray.get(box.keep.remote([ray.put(np.zeros(300_000))]))
        os._exit(0)

    box = Box.remote()
    with pytest.raises(exceptions.WorkerCrashedError):
        ray.get(give_and_die.remote(box))

    def died():
        try:
            ray.get(box.read.remote())
        except exceptions.OwnerDiedError:
            return True
        except exceptions.RayTaskError:
            return False
        return False

    eventually(died, "the owner's death was noticed", limit=20)


@needs_processes
def test_pending_calls_and_unschedulable_are_not_raised_by_chance():
    assert not issubclass(exceptions.PendingCallsLimitExceeded, exceptions.RayActorError)
    assert not issubclass(exceptions.TaskUnschedulableError, exceptions.RayTaskError)


# --- last: a small store; restarts the runtime ----------------------------------------------------


@not_local("objects stay in this process's heap")
@minray_only("it gives out mapped files then")
def test_a_store_that_is_full_of_what_is_read_is_an_object_store_full_error(monkeypatch):
    stop()
    monkeypatch.setenv("MINRAY_STORE_FULL_GRACE_S", "0.2")
    start(object_store_memory=80 * 1024 * 1024)
    held = [ray.get(ray.put(np.zeros(2_500_000))) for _ in range(3)]  # 20 MB each
    with pytest.raises(exceptions.ObjectStoreFullError) as caught:
        held += [ray.get(ray.put(np.zeros(2_500_000))) for _ in range(4)]
    assert any(unit in str(caught.value) for unit in ("MB", "MiB", "bytes"))
    del held[:2]
    again = ray.put(np.ones(2_500_000))
    assert ray.get(again)[0] == 1


@not_local("objects stay in this process's heap")
def test_objects_far_beyond_the_store_one_after_the_other():
    if not IS_RAY:
        stop()
        start(object_store_memory=80 * 1024 * 1024)
    for i in range(20):
        assert ray.get(ray.put(np.full(2_500_000, i)))[0] == i
