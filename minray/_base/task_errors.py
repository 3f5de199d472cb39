"""How an exception of user code crosses processes and stays an exception of its own class.

Three problems, each solved in one place here, for ``minray.exceptions.RayTaskError``:

* **Both classes at once**: ``make_dual_exception`` makes (once per class) ``class RayTaskError(ValueError)``,
  a subclass of both, whose instances forward attributes to the cause. Instances are made by the built-in
  ``__new__`` that fits the layout; the user's ``__init__`` never runs a second time.
* **Transport**: a cause travels as pickled bytes of its own (``cause_to_transport``), tried out before it is
  sent, so that a cause that can't be pickled or unpickled costs only itself: a stand-in that says so
  arrives. One whose constructor takes other arguments than ``args`` is rebuilt without calling it.
* **Text**: ``ray::f() (pid=…, ip=…)`` and the remote traceback.

Invariant: nothing here raises because of a strange user exception; what can't be done degrades to a plain
RayTaskError or a stand-in.
"""

from __future__ import annotations

import functools
import pickle
import traceback
import types
from typing import Any, TypeVar

from minray._base.callsite import warn_user

_E = TypeVar("_E", bound=BaseException)
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made by a class statement

_ARGS: Any = vars(BaseException)["args"]

# What a dual keeps of its own even if the cause has attributes of these names.
_OWN = ("cause", "function_name", "traceback_str")
_FIRST_LINE = "Traceback (most recent call last):"


# --- both classes at once -----------------------------------------------------------------------


def make_dual_exception(error: Any, base: Any) -> Any:
    """``error`` (a plain RayTaskError) as an instance of ``base`` and of its cause's class.

    Returns ``error`` itself where it already is one, or, with a warning, where the class does not allow it.
    """
    cause = error.cause
    cause_class = cause.__class__
    if error.__class__ is not base or issubclass(base, cause_class):
        return error
    try:
        return _make_instance(_dual_class(base, cause_class), error, cause)
    except Exception as problem:  # user metaclasses, __init_subclass__ and layouts may raise anything
        warn_user(
            f"the exception {cause_class.__qualname__!r} cannot be subclassed ({type(problem).__name__}: "
            f"{problem}), so a plain RayTaskError is raised: catch RayTaskError and look at its .cause",
            RuntimeWarning,
        )
        return error


@functools.lru_cache(maxsize=256)
def _dual_class(base: Any, cause_class: Any) -> type[Any]:
    def forward(self: Any, name: str) -> Any:
        if name == "_plain" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        return getattr(self.__dict__["cause"], name)

    def reduce(self: Any) -> tuple[Any, ...]:
        return (restore_dual, (self.__dict__["_plain"],))

    def text(self: Any) -> str:
        return str(self.__dict__["_plain"])

    def derive(self: Any, excs: Any) -> Any:
        # except* splits a group by derive(): the parts are groups of the user's kind.
        return self.__dict__["cause"].derive(excs)

    name = f"RayTaskError({cause_class.__name__})"
    members: dict[str, Any] = {
        "__module__": base.__module__,
        "__doc__": f"A {cause_class.__qualname__} raised in a task.",
        "__getattr__": forward,
        "__reduce__": reduce,
        "__reduce_ex__": lambda self, protocol: reduce(self),
        "__str__": text,
        "__init__": lambda self, *args, **kwargs: None,
        "__setattr__": BaseException.__setattr__,
        "__delattr__": BaseException.__delattr__,
    }
    if _is_group(cause_class):
        members["derive"] = derive
    dual = types.new_class(name, (base, cause_class), {}, lambda namespace: namespace.update(members))
    dual.__qualname__ = name
    return dual


def _make_instance(dual: type[Any], error: Any, cause: BaseException) -> Any:
    builtin = _builtin_base(dual)
    if _is_group(type(cause)):
        made: Any = builtin.__new__(dual, *_group_parts(cause))
    else:
        made = builtin.__new__(dual, *cause.args)
    _copy_members(made, cause)
    made.__dict__.update(error.__dict__)
    made.__dict__.update({k: v for k, v in cause.__dict__.items() if k not in _OWN})
    made.__dict__["_plain"] = error
    _set_args(made, cause.args)
    return made


def _builtin_base(cls: type[BaseException]) -> Any:
    """The class made in C that gives ``cls`` its layout: its ``__new__`` wants nothing unusual."""
    layout: Any = cls
    while layout.__flags__ & _HEAP_TYPE:
        layout = layout.__base__
    return layout


def _set_args(error: BaseException, args: tuple[Any, ...]) -> None:
    _ARGS.__set__(error, args)  # past the __setattr__ of a frozen dataclass


def _group_parts(group: Any) -> tuple[str, Any]:
    return group.message, group.exceptions


def _copy_members(made: Any, cause: BaseException) -> None:
    """Copy what lives in slots (OSError's errno, a user's __slots__): __getattr__ never sees them."""
    for cls in type(cause).__mro__:
        for name, member in vars(cls).items():
            if name.startswith("__") or not isinstance(
                member, (types.MemberDescriptorType, types.GetSetDescriptorType)
            ):
                continue
            try:
                member.__set__(made, member.__get__(cause, type(cause)))
            except (AttributeError, TypeError, ValueError):
                continue  # unset in the cause, or read-only: then there is nothing to copy


def _is_group(cls: type[BaseException]) -> bool:
    # By name: the class exists from Python 3.11 on.
    return any(c.__name__ == "BaseExceptionGroup" and c.__module__ == "builtins" for c in cls.__mro__)


def restore_dual(plain: Any) -> Any:
    """Unpickle a dual: the plain error travelled, the class is made again."""
    return plain.as_instanceof_cause()


# --- transport ----------------------------------------------------------------------------------


def rebuild_exception(cls: type[_E], args: tuple[Any, ...], state: dict[str, Any]) -> _E:
    """An exception as it was, without calling its ``__init__``."""
    made: _E = _builtin_base(cls).__new__(cls, *args)
    _set_args(made, args)
    made.__dict__.update(state)
    return made


def cause_to_transport(cause: BaseException, stand_in: type[BaseException]) -> tuple[str, Any, str]:
    """What of a cause is pickled: ``(kind, bytes, description)`` for ``cause_from_transport``.

    Args:
        cause: what user code raised.
        stand_in: the class of the exception that arrives if the cause can't travel.
    """
    import cloudpickle  # only needed when something failed; control processes never come here

    described = _describe(cause)
    try:
        data = cloudpickle.dumps(cause)
        if _same(pickle.loads(data), cause):
            return ("pickle", data, described)
    except Exception as error:  # whatever user code raises in __reduce__, __init__ or __setstate__
        problem = error
    else:
        problem = TypeError("it comes back from pickle as something else")
    try:
        parts = cloudpickle.dumps((type(cause), cause.args, dict(cause.__dict__)))
        if _same(rebuild_exception(*pickle.loads(parts)), cause):
            return ("parts", parts, described)
    except Exception as error:
        problem = error
    text = (
        f"The original cause of the RayTaskError ({type(cause)}) isn't serializable: "
        f"{type(problem).__name__}: {problem}\nThe original error was: {described}"
    )
    return ("text", text, described)


def cause_from_transport(travelled: tuple[str, Any, str], stand_in: type[_E]) -> BaseException:
    """The cause, or an instance of ``stand_in`` that says why it could not come."""
    kind, data, described = travelled
    if kind == "text":
        return stand_in(data)
    try:
        if kind == "parts":
            cause: BaseException = rebuild_exception(*pickle.loads(data))
            return cause
        cause = pickle.loads(data)
        if isinstance(cause, BaseException):
            return cause
        problem: Exception = TypeError(f"it unpickles to a {type(cause).__name__}")
    except Exception as error:  # the class is not importable here, or user code raised
        problem = error
    return stand_in(
        f"The original cause of the RayTaskError could not be unpickled here: {type(problem).__name__}: "
        f"{problem}\nThe original error was: {described}"
    )


def _same(copy: Any, original: BaseException) -> bool:
    """Whether an unpickled copy tells the same story: some constructors eat or decorate their arguments."""
    return (
        type(copy).__qualname__ == type(original).__qualname__
        and len(copy.args) == len(original.args)
        and _safe_str(copy) == _safe_str(original)
    )


def _describe(error: BaseException) -> str:
    return f"{type(error).__qualname__}: {_safe_str(error)}"


def _safe_str(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as problem:  # a user's __str__
        return f"<no text: {type(problem).__name__}>"


# --- text ---------------------------------------------------------------------------------------


def task_error_text(error: Any) -> str:
    """``ray::f() (pid=…, ip=…)`` and the remote traceback below it."""
    where = f"pid={error.pid}, ip={error.ip}"
    if error.actor_id is not None:
        where += f", actor_id={error.actor_id}, repr={error.actor_repr}"
    story = error.traceback_str
    if story.startswith(_FIRST_LINE) and story.count(_FIRST_LINE) == 1:
        story = story[len(_FIRST_LINE) :].lstrip("\n")
    return f"{error.proctitle} ({where})\n{story}".rstrip("\n")


def format_user_traceback(error: BaseException, internal: tuple[str, ...]) -> str:
    """The traceback of ``error`` without frames of files below the ``internal`` folders.

    Chained exceptions are cleaned alike. If nothing would be left of a traceback it stays whole.
    """
    told = traceback.TracebackException.from_exception(error)
    _strip(told, internal, set())
    return "".join(told.format())


def _strip(told: Any, internal: tuple[str, ...], seen: set[int]) -> None:
    if told is None or id(told) in seen:
        return
    seen.add(id(told))
    kept = [frame for frame in told.stack if not frame.filename.startswith(internal)]
    if kept:
        told.stack = traceback.StackSummary.from_list(kept)
    _strip(told.__cause__, internal, seen)
    _strip(told.__context__, internal, seen)
    for member in getattr(told, "exceptions", None) or ():
        _strip(member, internal, seen)
