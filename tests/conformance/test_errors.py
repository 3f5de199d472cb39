"""How errors arrive: B7 to B14."""

from __future__ import annotations

import os
import pickle
import re
import signal
import sys
import warnings

import pytest

from .target import (
    IS_RAY,
    exceptions,
    load_cloudpickle,
    minray_only,
    needs_concurrency,
    needs_processes,
    not_local,
    ray,
)


class OwnInit(Exception):
    """Its ``__init__`` takes two arguments and passes one on, so that plain unpickling of it fails."""

    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class NeedsAttribute(Exception):
    def __init__(self, detail):
        super().__init__("detailed")
        self.detail = detail

    def shout(self):
        return self.detail.upper()


@ray.remote
def raise_it(error):
    raise error


@ray.remote
def boom(text="boom"):
    raise ValueError(text)


@ray.remote
def passes(value):
    return value


def failure_of(ref, timeout=None):
    """The exception that ``get`` raises for ``ref``."""
    with pytest.raises(BaseException) as caught:
        ray.get(ref, timeout=timeout)
    return caught.value


# --- B7 -----------------------------------------------------------------------------------------


def test_b07_an_error_is_both_its_own_type_and_a_ray_task_error():
    error = failure_of(boom.remote())
    assert isinstance(error, ValueError)
    assert isinstance(error, exceptions.RayTaskError)
    assert isinstance(error, exceptions.RayError)
    assert type(error).__name__ == "RayTaskError(ValueError)"


def test_b07_the_cause_is_the_original():
    error = failure_of(boom.remote("original"))
    assert type(error.cause) is ValueError
    assert error.cause.args == ("original",)


def test_b07_the_original_attributes_and_methods_are_there():
    error = failure_of(raise_it.remote(NeedsAttribute("so it was")))
    assert isinstance(error, NeedsAttribute)
    assert error.detail == "so it was"
    assert error.shout() == "SO IT WAS"


def test_b07_args_are_forwarded():
    error = failure_of(raise_it.remote(KeyError("missing")))
    assert error.cause.args == ("missing",)
    # Of all attributes, Ray keeps this one for itself.
    assert error.args == ((error.cause,) if IS_RAY else ("missing",))


PICKLES = [
    pytest.param(pickle, marks=minray_only("only its cloudpickle takes a class made on the fly"), id="pickle"),
    pytest.param(load_cloudpickle(), id="cloudpickle"),
]


@pytest.mark.parametrize("pickler", PICKLES)
def test_b07_an_arrived_error_pickles(pickler):
    error = pickler.loads(pickler.dumps(failure_of(boom.remote("again"))))
    assert isinstance(error, exceptions.RayTaskError)
    assert isinstance(error, ValueError)
    assert "again" in str(error)


def test_b07_an_arrived_error_can_be_raised_again_in_another_task():
    @ray.remote
    def relay():
        ray.get(boom.remote("from within"))

    error = failure_of(relay.remote())
    assert isinstance(error, ValueError)
    assert "from within" in str(error)


@ray.remote
def raise_own_init():
    raise OwnInit(404, "gone")


def test_b07_an_exception_with_its_own_init_arrives():
    error = failure_of(raise_own_init.remote())
    assert isinstance(error, exceptions.RayError)
    assert "404: gone" in str(error)


@minray_only("unpickling an exception with its own __init__ fails there")
def test_b07_an_exception_with_its_own_init_keeps_its_type_and_attributes():
    error = failure_of(raise_own_init.remote())
    assert isinstance(error, OwnInit)
    assert (error.code, error.text) == (404, "gone")


def test_b07_each_get_raises_it_again():
    ref = boom.remote("twice")
    for _ in range(2):
        with pytest.raises(ValueError, match="twice"):
            ray.get(ref)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="ExceptionGroup is of Python 3.11")
def test_b07_an_exception_group_arrives_as_one():
    @ray.remote
    def several():
        raise ExceptionGroup("two", [ValueError("a"), TypeError("b")])  # noqa: F821

    error = failure_of(several.remote())
    assert isinstance(error, ExceptionGroup)  # noqa: F821
    assert isinstance(error, exceptions.RayTaskError)
    assert [type(each) for each in error.exceptions] == [ValueError, TypeError]


def test_b07_an_error_of_an_actor_method_is_of_the_same_kind():
    @ray.remote
    class Thrower:
        def throw(self):
            raise KeyError("k")

        def ok(self):
            return "still alive"

    thrower = Thrower.remote()
    error = failure_of(thrower.throw.remote())
    assert isinstance(error, KeyError)
    assert isinstance(error, exceptions.RayTaskError)
    assert ray.get(thrower.ok.remote()) == "still alive"


def test_b07_a_traceback_shows_the_users_line():
    @ray.remote
    def deep():
        def deeper():
            raise ValueError("at the bottom")

        deeper()

    text = str(failure_of(deep.remote()))
    assert "in deeper" in text
    assert 'raise ValueError("at the bottom")' in text


def test_b07_a_chained_exception_shows_both():
    @ray.remote
    def chained():
        try:
            {}["missing"]
        except KeyError as error:
            raise ValueError("no such thing") from error

    text = str(failure_of(chained.remote()))
    assert "KeyError" in text
    assert "no such thing" in text


# --- B8 -----------------------------------------------------------------------------------------


def test_b08_a_cause_that_cannot_be_subclassed_gives_a_plain_task_error():
    class Final(Exception):
        def __init_subclass__(cls, **kwargs):
            raise TypeError("do not subclass")

    @ray.remote
    def final():
        raise Final("sealed")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        error = failure_of(final.remote())
    assert type(error) is exceptions.RayTaskError
    assert type(error.cause).__name__ == "Final"
    assert "sealed" in str(error)


@minray_only("it logs the warning instead")
def test_b08_a_warning_says_that_the_type_was_lost():
    class Final(Exception):
        def __init_subclass__(cls, **kwargs):
            raise TypeError("do not subclass")

    @ray.remote
    def final():
        raise Final("sealed")

    ref = final.remote()
    with pytest.warns(Warning, match="Final"), pytest.raises(exceptions.RayTaskError):
        ray.get(ref)


# --- B9 -----------------------------------------------------------------------------------------


def plain(error):
    """Its text without terminal colours."""
    return re.sub(r"\x1b\[\d+m", "", str(error))


def test_b09_the_text_of_a_task_error_starts_with_its_function_pid_and_ip():
    text = plain(failure_of(boom.remote("why")))
    assert re.match(r"ray::boom\(\) \(pid=\d+, ip=[\d.]+\)", text), text
    assert text.rstrip().endswith("ValueError: why")


def test_b09_the_text_of_an_actor_error_names_the_method_and_the_actor():
    @ray.remote
    class Thrower:
        def throw(self):
            raise ValueError("why")

        def __repr__(self):
            return "Thrower<one>"

    thrower = Thrower.remote()
    text = plain(failure_of(thrower.throw.remote()))
    head = r"ray::Thrower.throw\(\) \(pid=\d+, ip=[\d.]+, actor_id=([0-9a-f]{32}), repr=Thrower<one>\)"
    match = re.match(head, text)
    assert match, text
    assert match[1] == thrower._actor_id.hex()


def test_b09_internal_frames_are_stripped():
    text = str(failure_of(boom.remote()))
    package = os.path.dirname(ray.__file__)
    assert package not in text
    assert len(re.findall(r'^\s*File "', text, flags=re.MULTILINE)) == 1


def test_b09_pid_is_the_workers():
    @ray.remote
    def raise_pid():
        raise ValueError(os.getpid())

    error = failure_of(raise_pid.remote())
    assert f"pid={error.cause.args[0]}," in plain(error)


# --- B10 ----------------------------------------------------------------------------------------

DEPENDENCY_LINE = "At least one of the input arguments for this task could not be computed:"


def test_b10_a_failed_dependency_keeps_the_body_from_running(tmp_path):
    trace = tmp_path / "ran"

    @ray.remote
    def body(value):
        trace.write_text("ran")

    error = failure_of(body.remote(boom.remote("upstream")))
    assert isinstance(error, ValueError)
    assert "upstream" in str(error)
    assert not trace.exists()


def test_b10_the_error_is_flattened_to_the_original_cause():
    @ray.remote
    def middle(value):
        return value

    error = failure_of(middle.remote(middle.remote(middle.remote(boom.remote("root")))))
    assert type(error).__name__ == "RayTaskError(ValueError)"
    assert type(error.cause) is ValueError
    assert error.cause.args == ("root",)
    assert "root" in str(error)


def test_b10_the_text_says_that_an_argument_failed():
    text = str(failure_of(passes.remote(boom.remote("root"))))
    assert DEPENDENCY_LINE in text


def test_b10_a_failed_dependency_of_an_actor_call_leaves_the_actor_alive():
    @ray.remote
    class Keeper:
        def take(self, value):
            return value

    keeper = Keeper.remote()
    error = failure_of(keeper.take.remote(boom.remote("root")))
    assert isinstance(error, ValueError)
    assert DEPENDENCY_LINE in str(error)
    assert ray.get(keeper.take.remote(1)) == 1


# --- B11 ----------------------------------------------------------------------------------------


def test_b11_a_users_base_exception_propagates():
    class Custom(BaseException):
        pass

    @ray.remote
    def custom():
        raise Custom("odd")

    error = failure_of(custom.remote())
    assert isinstance(error, exceptions.RayTaskError)
    assert type(error.cause).__name__ == "Custom"
    assert "odd" in str(error)


@needs_processes
def test_b11_system_exit_in_a_task_is_a_worker_crash():
    @ray.remote(max_retries=0)
    def leave():
        sys.exit(3)

    assert isinstance(failure_of(leave.remote()), exceptions.WorkerCrashedError)


def test_b11_keyboard_interrupt_in_a_task_is_a_cancellation():
    @ray.remote(max_retries=0)
    def interrupt():
        raise KeyboardInterrupt

    assert isinstance(failure_of(interrupt.remote()), exceptions.TaskCancelledError)


# --- B12 ----------------------------------------------------------------------------------------


def test_b12_an_exception_that_cannot_be_pickled_still_arrives():
    class Unpicklable(Exception):
        def __reduce__(self):
            raise TypeError("I refuse")

    @ray.remote
    def refuse():
        raise Unpicklable("the message")

    error = failure_of(refuse.remote())
    assert isinstance(error, exceptions.RayError)
    assert "the message" in str(error)


def test_b12_an_exception_that_holds_a_lock_still_arrives():
    @ray.remote
    def locked():
        import threading

        error = ValueError("with a lock")
        error.lock = threading.Lock()
        raise error

    error = failure_of(locked.remote())
    assert isinstance(error, exceptions.RayError)
    assert "with a lock" in str(error)


def _explode(*args):
    raise RuntimeError("cannot be rebuilt")


class Unloadable(Exception):
    def __reduce__(self):
        return _explode, ()


def test_b12_an_exception_that_cannot_be_unpickled_still_arrives():
    @ray.remote
    def unloadable():
        raise Unloadable("the message")

    error = failure_of(unloadable.remote())
    assert isinstance(error, exceptions.RayError)
    assert "the message" in str(error) or "cannot be rebuilt" in str(error)


def test_b12_a_result_that_cannot_be_pickled_is_an_error_of_that_task():
    @ray.remote
    def give_lock():
        import threading

        return threading.Lock()

    error = failure_of(give_lock.remote())
    assert isinstance(error, exceptions.RayTaskError)
    assert isinstance(error, TypeError)


def test_b12_a_result_that_cannot_be_unpickled_is_an_error_of_get():
    class Trap:
        def __reduce__(self):
            return _explode, ()

    @ray.remote
    def give_trap():
        return Trap()

    error = failure_of(give_trap.remote())
    assert isinstance(error, exceptions.RayError)
    assert "cannot be rebuilt" in str(error)


# --- B13 ----------------------------------------------------------------------------------------


def test_b13_a_failed_init_raises_actor_died_error_that_shows_why():
    @ray.remote
    class Stillborn:
        def __init__(self):
            raise ValueError("born dead")

        def call(self):
            return 1

    actor = Stillborn.remote()
    for _ in range(2):
        error = failure_of(actor.call.remote())
        assert isinstance(error, exceptions.ActorDiedError)
        assert not isinstance(error, ValueError)
        assert "born dead" in str(error)
        assert "ValueError" in str(error)


def test_b13_a_failed_argument_of_a_constructor_kills_the_actor_too():
    @ray.remote
    class Needs:
        def __init__(self, value):
            self.value = value

        def get(self):
            return self.value

    error = failure_of(Needs.remote(boom.remote("argument")).get.remote())
    assert isinstance(error, exceptions.ActorDiedError)
    assert "argument" in str(error)


def test_b13_remote_itself_does_not_raise_for_a_failed_init():
    @ray.remote
    class Stillborn:
        def __init__(self):
            raise ValueError("born dead")

    Stillborn.remote()


# --- B14 ----------------------------------------------------------------------------------------


@ray.remote
def crash_until(path, limit):
    """Die the first ``limit`` times; count the attempts in the file's length."""
    with open(path, "ab") as file:
        file.write(b".")
    tries = os.path.getsize(path)
    if tries <= limit:
        os.kill(os.getpid(), signal.SIGKILL)
    return tries


@ray.remote
def raise_until(path, limit, kind=ValueError):
    with open(path, "ab") as file:
        file.write(b".")
    tries = os.path.getsize(path)
    if tries <= limit:
        raise kind(f"attempt {tries}")
    return tries


@needs_processes
def test_b14_a_crash_is_retried_three_times_by_default(tmp_path):
    path = tmp_path / "tries"
    assert ray.get(crash_until.remote(path, 3)) == 4


@needs_processes
def test_b14_a_crash_beyond_max_retries_is_a_worker_crashed_error(tmp_path):
    path = tmp_path / "tries"
    error = failure_of(crash_until.options(max_retries=1).remote(path, 99))
    assert isinstance(error, exceptions.WorkerCrashedError)
    assert path.stat().st_size == 2


@needs_processes
def test_b14_max_retries_minus_one_retries_without_end(tmp_path):
    path = tmp_path / "tries"
    assert ray.get(crash_until.options(max_retries=-1).remote(path, 5)) == 6


def test_b14_an_exception_is_not_retried_by_default(tmp_path):
    path = tmp_path / "tries"
    assert isinstance(failure_of(raise_until.remote(path, 1)), ValueError)
    assert path.stat().st_size == 1


def test_b14_an_exception_is_retried_if_asked(tmp_path):
    path = tmp_path / "tries"
    assert ray.get(raise_until.options(retry_exceptions=True).remote(path, 2)) == 3


def test_b14_only_listed_exceptions_are_retried(tmp_path):
    listed = raise_until.options(retry_exceptions=[KeyError, OSError], max_retries=5)
    assert ray.get(listed.remote(tmp_path / "a", 2, OSError)) == 3
    assert ray.get(listed.remote(tmp_path / "b", 2, FileNotFoundError)) == 3
    assert isinstance(failure_of(listed.remote(tmp_path / "c", 2, ValueError)), ValueError)
    assert (tmp_path / "c").stat().st_size == 1


def test_b14_retries_of_exceptions_are_bounded_by_max_retries(tmp_path):
    path = tmp_path / "tries"
    bounded = raise_until.options(retry_exceptions=True, max_retries=2)
    assert "attempt 3" in str(failure_of(bounded.remote(path, 99)))
    assert path.stat().st_size == 3


@needs_concurrency
def test_b14_a_cancelled_task_is_never_retried(gate):
    @ray.remote(max_retries=5, retry_exceptions=True)
    def wait_here(gate):
        gate.arrive()
        gate.wait()

    ref = wait_here.remote(gate)
    gate.arrivals()
    ray.cancel(ref)
    assert isinstance(failure_of(ref), exceptions.TaskCancelledError)
    assert gate.count() == 1


@not_local("an actor there has no process to lose")
def test_b14_an_actor_call_is_not_retried_by_default(tmp_path):
    @ray.remote(max_restarts=1)
    class Fragile:
        def die(self):
            with open(tmp_path / "tries", "ab") as file:
                file.write(b".")
            os.kill(os.getpid(), signal.SIGKILL)

    assert isinstance(failure_of(Fragile.remote().die.remote()), exceptions.RayActorError)
    assert (tmp_path / "tries").stat().st_size == 1
