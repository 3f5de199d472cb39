"""Names, ends and restarts of actors: B28 to B32."""

from __future__ import annotations

import os
import signal

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
    t2,
    util,
)


@ray.remote
class Plain:
    def __init__(self, value=0):
        self.value = value

    def get(self):
        return self.value

    def pid(self):
        return os.getpid()


def is_dead(actor):
    """A condition for ``eventually``: calls of the actor fail for good."""
    try:
        ray.get(actor.get.remote())
    except exceptions.ActorDiedError:
        return True
    except exceptions.RayActorError:
        return False
    return False


# --- B28 ----------------------------------------------------------------------------------------


def test_b28_a_named_actor_is_found_by_its_name():
    actor = Plain.options(name="b28").remote(7)
    found = ray.get_actor("b28")
    assert found == actor
    assert ray.get(found.get.remote()) == 7


def test_b28_a_taken_name_raises_at_remote():
    actor = Plain.options(name="b28-taken").remote()
    with pytest.raises(exceptions.ActorAlreadyExistsError):
        Plain.options(name="b28-taken").remote()
    with pytest.raises(ValueError, match="b28-taken"):
        Plain.options(name="b28-taken").remote()
    assert ray.get(actor.get.remote()) == 0


@pytest.mark.parametrize("option", ["name", "namespace"])
def test_b28_empty_names_are_value_errors_and_others_type_errors(option):
    other = {"name": "fine"} if option == "namespace" else {}
    with pytest.raises(ValueError):
        Plain.options(**{option: ""}, **other).remote()
    with pytest.raises(TypeError):
        Plain.options(**{option: 5}, **other).remote()


@pytest.mark.parametrize(("args", "error"), [(("absent",), ValueError), (("",), ValueError), ((5,), TypeError)])
def test_b28_get_actor_of_no_actor(args, error):
    with pytest.raises(error):
        ray.get_actor(*args)


def test_b28_the_message_of_get_actor_names_the_name():
    with pytest.raises(ValueError, match="'absent'"):
        ray.get_actor("absent")


def test_b28_names_live_in_namespaces():
    here = Plain.options(name="b28-ns").remote("here")
    there = Plain.options(name="b28-ns", namespace="elsewhere").remote("there")
    assert ray.get(ray.get_actor("b28-ns").get.remote()) == "here"
    assert ray.get(ray.get_actor("b28-ns", namespace="elsewhere").get.remote()) == "there"
    assert here != there
    with pytest.raises(ValueError):
        ray.get_actor("b28-ns", namespace="nowhere")


def test_b28_the_default_namespace_is_anonymous():
    namespace = ray.get_runtime_context().namespace
    assert len(namespace) >= 32  # a name that no other job will have
    keep = Plain.options(name="b28-anon").remote(8)
    assert ray.get(ray.get_actor("b28-anon", namespace=namespace).get.remote()) == 8
    del keep


def test_b28_tasks_and_actors_see_their_jobs_namespace():
    @ray.remote
    def find():
        return ray.get(ray.get_actor("b28-shared").get.remote()), ray.get_runtime_context().namespace

    keep = Plain.options(name="b28-shared").remote(3)
    assert ray.get(find.remote()) == (3, ray.get_runtime_context().namespace)
    del keep


def test_b28_get_if_exists_gets_or_creates():
    make = Plain.options(name="b28-maybe", get_if_exists=True)
    first, second = make.remote(1), make.remote(2)
    assert first == second
    assert ray.get(second.get.remote()) == 1


def test_b28_get_if_exists_needs_a_name():
    with pytest.raises(ValueError):
        Plain.options(get_if_exists=True).remote()


@t2("list_named_actors")
def test_b28_list_named_actors():
    keep = [Plain.options(name=f"b28-list-{i}").remote() for i in range(2)]
    other = Plain.options(name="b28-list-other", namespace="b28-other").remote()
    ray.get([actor.get.remote() for actor in [*keep, other]])
    mine = util.list_named_actors()
    assert {"b28-list-0", "b28-list-1"} <= set(mine)
    assert "b28-list-other" not in mine
    assert {"name": "b28-list-other", "namespace": "b28-other"} in util.list_named_actors(all_namespaces=True)


def test_b28_the_name_is_free_after_kill():
    first = Plain.options(name="b28-kill").remote(1)
    ray.get(first.get.remote())
    ray.kill(first)

    def make():
        try:
            return Plain.options(name="b28-kill").remote(2)
        except ValueError:
            return None

    second = eventually(make, "the name was reclaimed")
    assert ray.get(second.get.remote()) == 2


# --- B29 ----------------------------------------------------------------------------------------


@ray.remote
class Quitter:
    def __init__(self, marks=None, at_once=False):
        import atexit

        if marks is not None:
            atexit.register((marks / "atexit").touch)
        if at_once:
            ray.actor.exit_actor()

    def quit(self):
        ray.actor.exit_actor()

    def quit_but_swallow(self):
        try:
            ray.actor.exit_actor()
        except BaseException:
            return "swallowed"

    def block_then_quit(self, gate):
        gate.wait()
        ray.actor.exit_actor()

    def get(self):
        return "alive"


def test_b29_exit_actor_ends_the_actor():
    actor = Quitter.remote()
    assert ray.get(actor.get.remote()) == "alive"
    with pytest.raises(exceptions.RayActorError):
        ray.get(actor.quit.remote())
    with pytest.raises(exceptions.RayActorError):
        ray.get(actor.get.remote())


@needs_processes
def test_b29_it_exits_even_if_the_user_swallows_the_exception():
    actor = Quitter.remote()
    ray.wait([actor.quit_but_swallow.remote()])
    eventually(lambda: is_dead(actor), "the actor died")


def test_b29_it_exits_from_the_constructor():
    actor = Quitter.remote(at_once=True)
    with pytest.raises(exceptions.RayActorError):
        ray.get(actor.get.remote())


@needs_concurrency
def test_b29_queued_calls_fail(gate):
    actor = Quitter.remote()
    last = actor.block_then_quit.remote(gate)
    queued = [actor.get.remote() for _ in range(3)]
    gate.open()
    for ref in [last, *queued]:
        with pytest.raises(exceptions.RayActorError):
            ray.get(ref)


@needs_processes
def test_b29_atexit_runs(tmp_path):
    actor = Quitter.remote(tmp_path)
    with pytest.raises(exceptions.RayActorError):
        ray.get(actor.quit.remote())
    eventually((tmp_path / "atexit").exists, "atexit ran")


def test_b29_outside_an_actor_it_is_a_type_error():
    with pytest.raises(TypeError):
        ray.actor.exit_actor()

    @ray.remote
    def task():
        ray.actor.exit_actor()

    with pytest.raises(TypeError):
        ray.get(task.remote())


@needs_processes
def test_b29_an_exited_actor_is_not_restarted():
    actor = Quitter.options(max_restarts=-1).remote()
    with pytest.raises(exceptions.RayActorError):
        ray.get(actor.quit.remote())
    eventually(lambda: is_dead(actor), "the actor died for good")


def test_b29_exit_actor_in_an_async_actor():
    @ray.remote
    class AsyncQuitter:
        async def quit(self):
            ray.actor.exit_actor()

    with pytest.raises(exceptions.RayActorError):
        ray.get(AsyncQuitter.remote().quit.remote())


# --- B30 ----------------------------------------------------------------------------------------


def test_b30_kill_ends_the_actor():
    actor = Plain.remote()
    ray.get(actor.get.remote())
    ray.kill(actor)
    with pytest.raises(exceptions.RayActorError):
        ray.get(actor.get.remote())
    ray.kill(actor)  # once more is nothing


@needs_processes
def test_b30_kill_runs_no_atexit(tmp_path):
    actor = Quitter.remote(tmp_path)
    assert ray.get(actor.get.remote()) == "alive"
    ray.kill(actor)
    eventually(lambda: is_dead(actor), "the actor died")
    assert not (tmp_path / "atexit").exists()


@needs_concurrency
def test_b30_kill_ends_what_runs_and_what_waits(gate):
    @ray.remote
    class Blocker:
        def block(self, gate):
            gate.wait()

    blocker = Blocker.remote()
    refs = [blocker.block.remote(gate) for _ in range(3)]
    gate.arrivals("go")
    ray.kill(blocker)
    for ref in refs:
        with pytest.raises(exceptions.RayActorError):
            ray.get(ref)


@pytest.mark.parametrize("thing", [5, "name", None, Plain], ids=repr)
def test_b30_kill_of_something_else_is_a_value_error(thing):
    with pytest.raises(ValueError):
        ray.kill(thing)


def test_b30_kill_of_a_ref_is_a_value_error_that_names_cancel():
    with pytest.raises(ValueError, match="cancel"):
        ray.kill(ray.put(1))


@needs_processes
def test_b30_kill_without_no_restart_restarts():
    actor = Plain.options(max_restarts=1, max_task_retries=-1).remote()
    pid = ray.get(actor.pid.remote())
    ray.kill(actor, no_restart=False)
    assert eventually(lambda: ray.get(actor.pid.remote()) != pid, "the actor was restarted")


@needs_processes
def test_b30_kill_prevents_restarts_by_default():
    actor = Plain.options(max_restarts=-1).remote()
    ray.get(actor.pid.remote())
    ray.kill(actor)
    eventually(lambda: is_dead(actor), "the actor died for good")


# --- B31 ----------------------------------------------------------------------------------------


@ray.remote(max_restarts=2)
class Phoenix:
    def __init__(self, marks):
        self.marks = marks
        with open(marks / "births", "ab") as file:
            file.write(b".")
        self.n = 0

    def add(self):
        self.n += 1
        return self.n

    def pid(self):
        return os.getpid()

    def get(self):
        return self.n

    def reconstructed(self):
        return ray.get_runtime_context().was_current_actor_reconstructed

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def die_until(self, name, limit):
        with open(self.marks / name, "ab") as file:
            file.write(b".")
        tries = (self.marks / name).stat().st_size
        if tries <= limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return tries

    def raise_until(self, name, limit):
        with open(self.marks / name, "ab") as file:
            file.write(b".")
        tries = (self.marks / name).stat().st_size
        if tries <= limit:
            raise ValueError(f"try {tries}")
        return tries

    @ray.method(max_task_retries=1)
    def die_until_once(self, name, limit):
        with open(self.marks / name, "ab") as file:
            file.write(b".")
        tries = (self.marks / name).stat().st_size
        if tries <= limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return tries

    @ray.method(retry_exceptions=True, max_task_retries=3)
    def raise_until_retried(self, name, limit):
        with open(self.marks / name, "ab") as file:
            file.write(b".")
        tries = (self.marks / name).stat().st_size
        if tries <= limit:
            raise ValueError(f"try {tries}")
        return tries


def alive_again(actor):
    """Wait until calls of the actor work."""

    def works():
        try:
            ray.get(actor.get.remote())
        except exceptions.ActorUnavailableError:
            return False
        return True

    eventually(works, "the actor is back")


@needs_processes
def test_b31_a_restart_runs_the_constructor_again(tmp_path):
    actor = Phoenix.remote(tmp_path)
    assert ray.get([actor.add.remote() for _ in range(3)]) == [1, 2, 3]
    assert ray.get(actor.reconstructed.remote()) is False
    with pytest.raises(exceptions.RayActorError):
        ray.get(actor.die.remote())
    alive_again(actor)
    assert ray.get(actor.get.remote()) == 0
    assert ray.get(actor.reconstructed.remote()) is True
    assert (tmp_path / "births").stat().st_size == 2


@needs_processes
def test_b31_a_call_in_flight_fails_with_actor_unavailable_error(tmp_path):
    actor = Phoenix.remote(tmp_path)
    ray.get(actor.get.remote())
    with pytest.raises(exceptions.ActorUnavailableError):
        ray.get(actor.die.remote())


@needs_processes
def test_b31_after_max_restarts_it_is_dead(tmp_path):
    actor = Phoenix.options(max_restarts=1).remote(tmp_path)
    with pytest.raises(exceptions.RayActorError):
        ray.get(actor.die.remote())
    alive_again(actor)
    with pytest.raises(exceptions.ActorDiedError):
        ray.get(actor.die.remote())
    eventually(lambda: is_dead(actor), "the actor died for good")


@needs_processes
def test_b31_max_task_retries_of_the_actor_retry_lost_calls(tmp_path):
    actor = Phoenix.options(max_restarts=2, max_task_retries=2).remote(tmp_path)
    assert ray.get(actor.die_until.remote("a", 2)) == 3


@needs_processes
def test_b31_those_of_the_method_beat_the_actors(tmp_path):
    actor = Phoenix.options(max_restarts=-1, max_task_retries=5).remote(tmp_path)
    with pytest.raises(exceptions.RayActorError):
        ray.get(actor.die_until_once.remote("a", 2))
    assert (tmp_path / "a").stat().st_size == 2


@needs_processes
def test_b31_options_beat_both(tmp_path):
    actor = Phoenix.options(max_restarts=-1, max_task_retries=0).remote(tmp_path)
    assert ray.get(actor.die_until_once.options(max_task_retries=3).remote("a", 3)) == 4
    with pytest.raises(exceptions.RayActorError):
        ray.get(actor.die_until_once.options(max_task_retries=0).remote("b", 1))
    assert (tmp_path / "b").stat().st_size == 1


def test_b31_exceptions_are_retried_only_with_retry_exceptions(tmp_path):
    actor = Phoenix.options(max_task_retries=3).remote(tmp_path)
    with pytest.raises(ValueError, match="try 1"):
        ray.get(actor.raise_until.remote("a", 1))
    assert ray.get(actor.raise_until_retried.remote("b", 2)) == 3
    assert ray.get(actor.raise_until.options(retry_exceptions=True, max_task_retries=2).remote("c", 2)) == 3
    assert ray.get(actor.raise_until.options(retry_exceptions=[ValueError], max_task_retries=1).remote("d", 1)) == 2
    with pytest.raises(ValueError, match="try 1"):
        ray.get(actor.raise_until_retried.options(retry_exceptions=False).remote("e", 2))


@needs_processes
def test_b31_calls_queued_behind_a_crash_run_after_the_restart(tmp_path):
    actor = Phoenix.options(max_restarts=1, max_task_retries=1).remote(tmp_path)
    refs = [actor.die_until.remote("a", 1), *[actor.add.remote() for _ in range(3)]]
    assert ray.get(refs[0]) == 2
    sums = ray.get(refs[1:])
    assert sorted(sums) == [1, 2, 3]
    if not IS_RAY:  # which may retry out of order
        assert sums == [1, 2, 3]


@needs_processes
def test_b31_a_detached_actor_restarts_too(tmp_path):
    actor = Phoenix.options(name="b31-detached", lifetime="detached").remote(tmp_path)
    with pytest.raises(exceptions.RayActorError):
        ray.get(actor.die.remote())
    alive_again(actor)
    ray.kill(ray.get_actor("b31-detached"))


# --- B32 ----------------------------------------------------------------------------------------


@ray.remote
class Tidy:
    def __init__(self, marks):
        self.marks = marks

    def __ray_shutdown__(self):
        (self.marks / "shutdown").touch()

    def get(self):
        return 1

    def quit(self):
        ray.actor.exit_actor()


@needs_processes
def test_b32_ray_shutdown_runs_on_exit_actor(tmp_path):
    actor = Tidy.remote(tmp_path)
    with pytest.raises(exceptions.RayActorError):
        ray.get(actor.quit.remote())
    eventually((tmp_path / "shutdown").exists, "__ray_shutdown__ ran")


@needs_processes
def test_b32_ray_shutdown_runs_when_out_of_scope(tmp_path):
    actor = Tidy.remote(tmp_path)
    ray.get(actor.get.remote())
    del actor
    eventually((tmp_path / "shutdown").exists, "__ray_shutdown__ ran")


@needs_processes
def test_b32_ray_shutdown_runs_on_ray_terminate(tmp_path):
    actor = Tidy.remote(tmp_path)
    ray.get(actor.get.remote())
    actor.__ray_terminate__.remote()
    eventually((tmp_path / "shutdown").exists, "__ray_shutdown__ ran")


def test_b32_ray_shutdown_does_not_run_on_kill(tmp_path):
    actor = Tidy.remote(tmp_path)
    ray.get(actor.get.remote())
    ray.kill(actor)
    eventually(lambda: is_dead(actor), "the actor died")
    assert not (tmp_path / "shutdown").exists()


# --- what a dead actor says ---------------------------------------------------------------------


@needs_processes
def test_a_crashed_actor_raises_actor_died_error():
    @ray.remote
    class Crash:
        def crash(self):
            os.kill(os.getpid(), signal.SIGKILL)

        def get(self):
            return 1

    actor = Crash.remote()
    with pytest.raises(exceptions.ActorDiedError):
        ray.get(actor.crash.remote())
    with pytest.raises(exceptions.ActorDiedError):
        ray.get(actor.get.remote())


@needs_processes
@minray_only("it has no death certificates")
def test_the_death_certificate_names_the_signal():
    @ray.remote
    class Crash:
        def crash(self):
            print("last words", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(exceptions.ActorDiedError, match="SIGKILL") as caught:
        ray.get(Crash.remote().crash.remote())
    assert "last words" in str(caught.value)


# --- last: these restart the runtime ------------------------------------------------------------


@not_local("actor ids there are not checked against a session")
def test_b30_a_handle_of_an_earlier_session_is_not_found():
    old = Plain.remote(1)
    ray.get(old.get.remote())
    stop()
    start()
    with pytest.raises(exceptions.ActorHandleNotFoundError):
        ray.kill(old)
    with pytest.raises(Exception if IS_RAY else exceptions.ActorHandleNotFoundError):
        old.get.remote()


def test_b28_a_named_namespace_is_the_one_of_init():
    stop()
    start(namespace="chosen")
    assert ray.get_runtime_context().namespace == "chosen"
    keep = Plain.options(name="inside").remote(1)
    assert ray.get_actor("inside", namespace="chosen") == keep
