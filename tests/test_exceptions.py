"""The hierarchy of errors, and how a task's error stays an exception of its own class."""

from __future__ import annotations

import builtins
import copy
import dataclasses
import inspect
import pickle
import sys
import threading
import traceback
import warnings
from typing import Any

import cloudpickle
import pytest

from minray import exceptions
from minray._base.task_errors import format_user_traceback
from minray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

CERTIFICATE = {
    "text": "killed",
    "exit_code": -9,
    "signal": 9,
    "oom": True,
    "peak_rss": 3 * 1024**2,
    "log_tail": ["one", "two"],
    "stack": "Thread 1:\n  File x, line 3 in f",
    "task": "f",
}


def error_of(cause: BaseException, **where: Any) -> RayTaskError:
    try:
        raise cause
    except BaseException as caught:
        text = "".join(traceback.format_exception(type(caught), caught, caught.__traceback__))
    return RayTaskError("f", text, cause, **{"pid": 7, **where})


def dual_of(cause: BaseException) -> Any:
    return error_of(cause).as_instanceof_cause()


def sent(error: BaseException) -> Any:
    """What arrives in another process."""
    return pickle.loads(cloudpickle.dumps(error))


# --- the hierarchy ------------------------------------------------------------------------------

PARENTS = {
    "GetTimeoutError": {"RayError", "TimeoutError"},
    "ActorDiedError": {"RayActorError"},
    "ActorUnavailableError": {"RayActorError"},
    "ObjectFetchTimedOutError": {"ObjectLostError"},
    "ReferenceCountingAssertionError": {"ObjectLostError", "AssertionError"},
    "ObjectFreedError": {"ObjectLostError"},
    "OwnerDiedError": {"ObjectLostError"},
    "ObjectReconstructionFailedError": {"ObjectLostError"},
    "ActorAlreadyExistsError": {"ValueError", "RayError"},
    "ActorHandleNotFoundError": {"ValueError", "RayError"},
}


@pytest.mark.parametrize("name", exceptions.__all__)
def test_every_error_is_a_ray_error(name: str) -> None:
    cls = getattr(exceptions, name)
    assert issubclass(cls, RayError)
    for parent in PARENTS.get(name, {"RayError"}):
        assert issubclass(cls, getattr(exceptions, parent, None) or getattr(builtins, parent))
    assert cls.__doc__


def test_nothing_else_is_public() -> None:
    made_here = {
        name
        for name, value in vars(exceptions).items()
        if inspect.isclass(value) and value.__module__ == exceptions.__name__ and not name.startswith("_")
    }
    assert made_here == set(exceptions.__all__)


def example(name: str) -> RayError:
    cls: Any = getattr(exceptions, name)
    error: RayError = _example(cls)
    return error


def _example(cls: Any) -> Any:
    if cls is RayTaskError:
        return error_of(ValueError("x"), actor_id="ab", actor_repr="A()", ip="10.0.0.1")
    if issubclass(cls, ObjectLostError):
        return cls("ab" * 28, ("n", "w", "e"), "file.py:3", "its node died")
    if issubclass(cls, exceptions.RayActorError):
        return cls("gone", "cd" * 16, CERTIFICATE)
    if cls is WorkerCrashedError:
        return cls("crashed", CERTIFICATE)
    if cls is exceptions.ObjectStoreFullError:
        return cls("full", {"used": 3})
    if cls is exceptions.RpcError:
        return cls("failed", 14)
    return cls("some text")


@pytest.mark.parametrize("name", exceptions.__all__)
def test_every_error_travels_with_its_attributes(name: str) -> None:
    error = example(name)
    for arrived in (sent(error), copy.copy(error), pickle.loads(pickle.dumps(error, 2))):
        assert type(arrived) is type(error)
        assert str(arrived) == str(error)
        mine, theirs = dict(vars(error)), dict(vars(arrived))
        assert repr(mine.pop("cause", None)) == repr(theirs.pop("cause", None))
        assert mine == theirs
        assert repr(arrived.args) == repr(error.args)


@pytest.mark.parametrize(
    "name", [n for n in exceptions.__all__ if n not in ("RayTaskError", "UnserializableException")]
)
def test_every_error_can_be_made_from_one_string(name: str) -> None:
    assert "some text" in str(getattr(exceptions, name)("some text"))


def test_a_users_subclass_of_ours_travels() -> None:
    class Mine(RayError):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(f"{a}/{b}")
            self.a = a

    arrived = sent(Mine(1, 2))
    assert (str(arrived), arrived.a) == ("1/2", 1)


def test_the_certificate_is_told() -> None:
    text = str(WorkerCrashedError("The worker died.", CERTIFICATE))
    for part in (
        "The worker died.",
        "SIGKILL",
        "3.0 MiB",
        "out of memory",
        "one",
        "two",
        "line 3 in f",
        "killed",
    ):
        assert part in text
    assert "exit code 3" in str(ActorDiedError("", "ab", {"exit_code": 3}))
    assert "signal 77" in str(ActorDiedError("", None, {"signal": 77}))
    assert str(WorkerCrashedError("The worker died.")) == "The worker died."


def test_actor_errors_name_the_actor() -> None:
    assert "abcd" in str(ActorDiedError(actor_id_hex="abcd"))
    assert "may or may not have run" in str(ActorUnavailableError(actor_id_hex="abcd"))
    assert ActorDiedError("x", None, {"init_failed": True}).actor_init_failed
    assert not ActorDiedError("x").actor_init_failed


def test_lost_objects_say_why() -> None:
    text = str(exceptions.OwnerDiedError("abcd", reason="worker 7 was killed", call_site="a.py:3"))
    assert "abcd" in text
    assert "owns it has died" in text
    assert "worker 7 was killed" in text
    assert "a.py:3" in text


# --- the text -----------------------------------------------------------------------------------


def test_text_of_a_task() -> None:
    text = str(error_of(ValueError("boom")))
    assert text.startswith("ray::f() (pid=7, ip=127.0.0.1)\n  File ")
    assert text.endswith("ValueError: boom")
    assert "Traceback" not in text


def test_text_of_an_actors_task() -> None:
    error = RayTaskError(
        "A.f",
        "tb",
        ValueError(),
        proctitle="ray::A.f()",
        pid=7,
        ip="1.2.3.4",
        actor_repr="A(3)",
        actor_id="ab",
    )
    assert str(error).startswith("ray::A.f() (pid=7, ip=1.2.3.4, actor_id=ab, repr=A(3))\n")
    assert error.actor_name == "A"
    assert error_of(ValueError()).actor_name is None


def test_text_of_a_chain_is_whole() -> None:
    try:
        try:
            raise KeyError("first")
        except KeyError as first:
            raise ValueError("second") from first
    except ValueError as caught:
        text = "".join(traceback.format_exception(type(caught), caught, caught.__traceback__))
        error = RayTaskError("f", text, caught)
    assert str(error).count("Traceback") == 2
    assert "KeyError: 'first'" in str(error)


def test_internal_frames_are_stripped() -> None:
    namespace: dict[str, Any] = {}
    exec(compile("def run(f):\n    f()\n", "/pkg/minray/executor.py", "exec"), namespace)

    def body() -> None:
        raise ValueError("mine")

    try:
        namespace["run"](body)
    except ValueError as caught:
        error = caught
    text = format_user_traceback(error, ("/pkg/minray/",))
    assert "executor.py" not in text
    assert "in body" in text
    assert text.endswith("ValueError: mine\n")
    # If nothing else were left, all of it is shown.
    assert "in body" in format_user_traceback(error, ("/",))


# --- both classes at once -----------------------------------------------------------------------


def test_it_is_both() -> None:
    error: Any = dual_of(ValueError("boom"))
    assert type(error).__name__ == "RayTaskError(ValueError)"
    assert isinstance(error, RayTaskError)
    assert isinstance(error.cause, ValueError)
    assert isinstance(error, ValueError)
    assert error.args == ("boom",)
    assert str(error).startswith("ray::f() (pid=7")
    assert repr(error) == "RayTaskError(ValueError)(ValueError('boom'))"


def test_an_error_that_is_already_both_stays_itself() -> None:
    error = error_of(Exception("x"))
    assert error.as_instanceof_cause() is error
    dual = dual_of(ValueError("x"))
    assert dual.as_instanceof_cause() is dual


def test_the_class_is_made_once() -> None:
    assert type(dual_of(ValueError(1))) is type(dual_of(ValueError(2)))


class WithInit(Exception):
    """Its constructor takes other arguments than it passes on."""

    def __init__(self, code: int, *, where: str) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.where = where
        self.pid = "the user's own pid"

    def describe(self) -> str:
        return f"{self.code} at {self.where}"

    @property
    def doubled(self) -> int:
        return self.code * 2


class WithSlots(Exception):
    __slots__ = ("code", "unset")

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Decorates(Exception):
    """Calling it again with its args would decorate the text twice."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no such thing: {name}")


class WithText(Exception):
    def __str__(self) -> str:
        return "own text"


class NeedsKeywordNew(Exception):
    def __new__(cls, *, code: int) -> NeedsKeywordNew:
        made = super().__new__(cls)
        made.code = code
        return made

    def __init__(self, *, code: int) -> None:
        super().__init__()

    code: int


class BareException(BaseException):
    pass


CAUSES: list[BaseException] = [
    ValueError("x"),
    KeyError("k"),
    OSError(5, "io", "name"),
    FileNotFoundError(2, "none", "file"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    StopIteration(3),
    SystemExit(4),
    KeyboardInterrupt(),
    SyntaxError("bad", ("file", 3, 1, "text")),
    AttributeError("a"),
    ImportError("m", name="mod"),
    MemoryError(),
    RecursionError("deep"),
    AssertionError(),
    WithInit(3, where="here"),
    WithSlots(3),
    Frozen(3),
    Decorates("x"),
    WithText("x"),
    NeedsKeywordNew(code=3),
    BareException("x"),
    GetTimeoutError("late"),
    WorkerCrashedError("crashed", CERTIFICATE),
    ActorDiedError("dead", "ab", CERTIFICATE),
    ObjectLostError("ab", reason="why"),
]
ATTRIBUTES = (
    "errno", "strerror", "filename", "value", "code", "lineno", "name", "start", "object", "where",
    "cause_info", "actor_id", "reason",
)  # fmt: skip


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: type(cause).__name__)
def test_any_cause_is_kept_through_two_processes(cause: BaseException) -> None:
    error = error_of(cause)
    arrived = sent(error)
    assert type(arrived) is RayTaskError
    assert type(arrived.cause) is type(cause)
    assert str(arrived.cause) == str(cause)
    dual: Any = arrived.as_instanceof_cause()
    for one in (dual, sent(dual), sent(sent(dual))):
        assert isinstance(one, type(cause))
        assert isinstance(one, RayTaskError)
        assert str(one) == str(error)
        assert repr(one.args) == repr(cause.args)
        assert type(one.cause) is type(cause)
        for name in ATTRIBUTES:
            if hasattr(cause, name):
                assert getattr(one, name) == getattr(cause, name), name
        with pytest.raises(type(cause)):
            raise one


def test_attributes_methods_and_properties_are_forwarded() -> None:
    error = sent(dual_of(WithInit(3, where="here")))
    assert (error.code, error.where, error.describe(), error.doubled) == (3, "here", "3 at here", 6)
    assert error.pid == "the user's own pid"
    assert "pid=7" in str(error)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = error.nothing_like_it
    assert copy.deepcopy(error).code == 3


def test_slots_are_copied_and_what_is_unset_stays_unset() -> None:
    error = dual_of(WithSlots(3))
    assert error.code == 3
    with pytest.raises(AttributeError):
        _ = error.unset


def test_the_users_init_does_not_run_again() -> None:
    calls: list[int] = []

    class Counted(Exception):
        def __init__(self) -> None:
            calls.append(1)

    dual_of(Counted())
    assert calls == [1]


def test_errors_are_equal_to_themselves_only() -> None:
    one, other = dual_of(Frozen(3)), dual_of(Frozen(3))
    assert one == one
    assert one != other
    assert len({one, other}) == 2


def test_classes_that_exist_only_here_travel() -> None:
    class Local(ValueError):
        pass

    arrived = sent(dual_of(Local("x")))
    assert type(arrived.cause).__name__ == "Local"
    assert isinstance(arrived, ValueError)


def test_a_raised_and_caught_error_can_be_raised_again() -> None:
    error = dual_of(KeyError("k"))
    for _ in range(2):
        with pytest.raises(KeyError) as raised:
            raise error
        assert raised.value is error
    with pytest.raises(ValueError) as chained:
        raise ValueError("outer") from error
    assert chained.value.__cause__ is error


# --- where that is not possible -----------------------------------------------------------------


def test_a_class_that_forbids_subclasses() -> None:
    class Final(Exception):
        def __init_subclass__(cls) -> None:
            raise TypeError("final")

    error = error_of(Final("x"))
    with pytest.warns(RuntimeWarning, match=r"Final' cannot be subclassed \(TypeError: final\).*\.cause"):
        plain = error.as_instanceof_cause()
    assert plain is error
    assert type(plain) is RayTaskError
    assert isinstance(plain.cause, Final)


def test_a_metaclass_that_raises() -> None:
    class Meta(type):
        def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, Any], **kw: Any) -> Any:
            if len(bases) > 1:
                raise RuntimeError("one base only")
            return super().__new__(mcs, name, bases, body)

    class Strange(Exception, metaclass=Meta):
        pass

    with pytest.warns(RuntimeWarning, match="one base only"):
        assert type(error_of(Strange("x")).as_instanceof_cause()) is RayTaskError


class HoldsLock(Exception):
    def __init__(self) -> None:
        super().__init__("with a lock")
        self.lock = threading.Lock()


class ReduceRaises(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("I do not travel")


class RestoresAsSomethingElse(Exception):
    def __reduce__(self) -> Any:
        return (str, ("not an exception",))


class StrRaises(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("cause", "problem"),
    [(HoldsLock(), "lock"), (HoldsLock().with_traceback(None), "HoldsLock")],
)
def test_a_cause_that_cannot_be_pickled_still_arrives(cause: BaseException, problem: str) -> None:
    arrived = sent(error_of(cause))
    assert type(arrived) is RayTaskError
    assert type(arrived.cause) is RayError
    assert "isn't serializable" in str(arrived.cause)
    assert problem in str(arrived.cause)
    assert "HoldsLock: with a lock" in str(arrived)
    assert type(arrived.as_instanceof_cause()) is RayTaskError


@pytest.mark.parametrize("cause", [ReduceRaises("x"), RestoresAsSomethingElse("x")])
def test_a_cause_with_a_strange_reduce_is_rebuilt_from_its_parts(cause: BaseException) -> None:
    arrived = sent(error_of(cause))
    assert type(arrived.cause) is type(cause)
    assert arrived.cause.args == ("x",)


def test_a_cause_without_text() -> None:
    error = RayTaskError("f", "the story", StrRaises("x"))
    arrived = sent(error.as_instanceof_cause())
    assert isinstance(arrived, StrRaises)
    assert "the story" in str(arrived)


def test_a_cause_whose_class_is_unknown_where_it_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps(error_of(WithInit(3, where="here")))
    monkeypatch.delattr(sys.modules[__name__], "WithInit")
    arrived = pickle.loads(data)
    assert type(arrived) is RayTaskError
    assert type(arrived.cause) is RayError
    assert "could not be unpickled here: AttributeError" in str(arrived.cause)
    assert "WithInit: code 3" in str(arrived.cause)


# --- nesting ------------------------------------------------------------------------------------


def test_an_error_of_a_nested_task_is_flat() -> None:
    inner = dual_of(KeyError("k"))
    outer = error_of(inner)
    assert type(outer.cause) is KeyError
    assert isinstance(outer.as_instanceof_cause(), KeyError)
    assert "ray::f()" in str(outer)


def test_a_failed_dependency() -> None:
    inner = error_of(KeyError("k"))
    error = RayTaskError.for_failed_dependency("g", inner.as_instanceof_cause(), pid=8)
    assert type(error.cause) is KeyError
    assert isinstance(error.as_instanceof_cause(), KeyError)
    text = str(error)
    assert text.startswith("ray::g() (pid=8")
    assert "At least one of the input arguments for this task could not be computed:" in text
    assert "ray::f() (pid=7" in text
    assert text.endswith("KeyError: 'k'")


def test_a_dependency_that_crashed() -> None:
    error = RayTaskError.for_failed_dependency("g", WorkerCrashedError("crashed", CERTIFICATE))
    assert isinstance(error.as_instanceof_cause(), WorkerCrashedError)
    assert "WorkerCrashedError: crashed" in str(error)
    assert "SIGKILL" in str(error)


# --- groups -------------------------------------------------------------------------------------

needs_groups = pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups are new in 3.11")


@needs_groups
def test_groups() -> None:
    group = getattr(builtins, "ExceptionGroup")("several", [ValueError(1), KeyError("k")])  # noqa: B009
    for error in (dual_of(group), sent(dual_of(group))):
        assert isinstance(error, type(group))
        assert error.message == "several"
        assert [type(member) for member in error.exceptions] == [ValueError, KeyError]
        matched, rest = error.split(ValueError)
        assert [repr(member) for member in matched.exceptions] == ["ValueError(1)"]
        assert not isinstance(rest, RayTaskError)


@needs_groups
def test_a_group_of_base_exceptions_is_a_plain_error() -> None:
    group = getattr(builtins, "BaseExceptionGroup")("several", [KeyboardInterrupt()])  # noqa: B009
    with pytest.warns(RuntimeWarning, match="cannot be subclassed"):
        assert type(dual_of(group)) is RayTaskError


def test_no_warning_in_the_ordinary_case() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sent(dual_of(ValueError("x")))
