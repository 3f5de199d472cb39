"""``@remote`` and ``@method``: they decide what was decorated, and leave the rest to its module.

Invariant: a decorator either returns at once what it made, or raises here, where the mistake is written.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, ParamSpec, TypeVar, overload

from minray._base.options import validate_actor_options, validate_method_options, validate_task_options
from minray.actor import ActorClass, make_actor_class
from minray.actor_class_def import METHOD_OPTIONS
from minray.remote_function import RemoteFunction, make_remote_function

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_USAGE = (
    "The @remote decorator must be applied either with no arguments and no parentheses, '@minray.remote', or "
    "with keywords only, for example '@minray.remote(num_cpus=2, max_retries=0)'"
)


@overload
def remote(target: type[T], /) -> ActorClass[..., T]: ...  # type: ignore[overload-overlap]
@overload
def remote(target: Callable[P, R], /) -> RemoteFunction[P, R]: ...
@overload
def remote(**options: Any) -> Callable[[Any], Any]: ...


def remote(*targets: Any, **options: Any) -> Any:
    """Make a function a remote function, or a class an actor class.

    Use it bare (``@remote``) or with options (``@remote(num_cpus=2)``); ``.options(…)`` changes them.

    Args:
        targets: the function or class, where no options are given.
        options: for functions ``num_cpus`` (1), ``num_gpus`` (0), ``memory`` (bytes), ``resources``,
            ``num_returns`` (1), ``max_retries`` (3), ``retry_exceptions`` (False), ``max_calls`` (0: no
            limit), ``name``, ``runtime_env``, ``scheduling_strategy``; for classes the same resources, and
            ``name``, ``namespace``, ``lifetime``, ``get_if_exists``, ``max_concurrency``,
            ``concurrency_groups``, ``max_restarts`` (0), ``max_task_retries`` (0), ``max_pending_calls``
            (-1: no limit).

    Raises:
        TypeError: the target is neither a function nor a class, or an option has the wrong type.
        ValueError: an option is unknown or has a wrong value; the function is ``async def``.
        NotImplementedError: an option that minray does not have yet.
    """
    if len(targets) == 1 and not options:
        return _decorate(targets[0], {})
    if targets or not options:
        raise TypeError(f"{_USAGE}; got {len(targets)} positional argument(s) {targets!r} and {options!r}")
    _check_early(options)
    return lambda target: _decorate(target, options)


def _check_early(options: dict[str, Any]) -> None:
    """What is right neither for a function nor for a class fails here already, on the decorator's line."""
    written = {name: value for name, value in options.items() if name != "num_return_vals"}
    try:
        validate_task_options(written)
    except (TypeError, ValueError) as as_function:
        try:
            validate_actor_options(written)
        except (TypeError, ValueError) as as_class:
            raise (as_class if "invalid option" in str(as_function) else as_function) from None


def _decorate(target: Any, options: dict[str, Any]) -> Any:
    if isinstance(target, (RemoteFunction, ActorClass)):
        raise TypeError(f"{target!r} is remote already: use .options(…) to change its options")
    if inspect.isclass(target):
        return make_actor_class(target, options)
    if isinstance(target, FunctionType) or type(target).__name__ == "cython_function_or_method":
        return make_remote_function(target, options)
    raise TypeError(
        f"The @remote decorator must be applied to either a function or a class, got {target!r}"
        + (". Wrap it in a function: def f(*args): …" if callable(target) else f". {_USAGE}")
    )


@overload
def method(function: F, /) -> F: ...
@overload
def method(**options: Any) -> Callable[[F], F]: ...


def method(*functions: Any, **options: Any) -> Any:
    """Set options of one method of an actor class: ``@method(num_returns=2)``.

    Args:
        functions: the method, where no options are given.
        options: ``num_returns``, ``concurrency_group``, ``max_task_retries``, ``retry_exceptions``,
            ``enable_task_events``, ``_generator_backpressure_num_objects``.

    Raises:
        TypeError: not applied to a function, or an option has the wrong type.
        ValueError: an option is unknown or has a wrong value.
    """
    if functions and (len(functions) > 1 or options or not callable(functions[0])):
        raise TypeError(
            f"The @method decorator takes keywords only, for example '@minray.method(num_returns=2)'; "
            f"got {functions!r}"
        )
    validate_method_options(options)

    def annotate(function: F) -> F:
        if not callable(function):
            raise TypeError(f"@method decorates a method of a class, got {function!r}")
        setattr(function, METHOD_OPTIONS, options)
        return function

    return annotate(functions[0]) if functions else annotate
