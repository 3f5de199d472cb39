"""RemoteFunction: what ``@remote`` makes of a function.

``.remote(…)`` is the hottest line of the public face, so everything that does not depend on the arguments
is done once: options are validated where they are written, the signature is reduced to a range of argument
counts, and what the runtime prepares (pickled code, scheduling key) is kept per runtime in ``_bound``.

Invariants: a RemoteFunction is immutable but for ``_bound``, which is one tuple, replaced as a whole (threads
may race to make it; either result is right). ``.options()`` makes another RemoteFunction over the same
FunctionDef, so that the code is pickled once for all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Generic, NoReturn, ParamSpec, TypeVar, overload

from minray._base import current
from minray._base.options import TaskOptions, resolve_num_returns, validate_task_options
from minray.object_ref import ObjectRef
from minray.worker.call_shape import CallShape
from minray.worker.contract import FunctionDef

P = ParamSpec("P")
R = TypeVar("R")


class RemoteFunction(Generic[P, R]):
    """A function whose calls run as tasks. Made by ``@minray.remote``."""

    _definition: FunctionDef
    _options: TaskOptions

    def __init__(self, definition: FunctionDef, options: TaskOptions) -> None:
        resolve_num_returns(options.num_returns, definition.is_generator, f"{definition.name!r}")
        self._definition = definition
        self._options = options
        self._low = definition.shape.low
        self._high = definition.shape.high
        self._bound: tuple[Any, Callable[..., Any], Any] | None = None  # runtime, its submit_task, prepared
        function = definition.function
        self.__name__: str = getattr(function, "__name__", definition.name)
        self.__qualname__: str = getattr(function, "__qualname__", definition.name)
        self.__module__ = definition.module
        self.__doc__ = function.__doc__
        self.__wrapped__ = function  # inspect.signature and doctest look through it

    @overload
    def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> ObjectRef[R]: ...
    @overload
    def remote(self, /, *args: Any, **kwargs: Any) -> ObjectRef[R]: ...  # refs in place of values

    def remote(self, /, *args: Any, **kwargs: Any) -> Any:
        """Queue one call and return at once.

        Returns an ObjectRef; a list of N for ``num_returns=N``; None for 0; an ObjectRefGenerator for a
        generator function. Arguments that are ObjectRefs are replaced by their values before it runs.

        Raises:
            TypeError: the arguments do not fit the signature, or one cannot be pickled.
            ValueError: the pickled function is over 100 MB.
        """
        bound = self._bound
        if bound is None or bound[0] is not current.get():
            bound = self._bind()
        if kwargs or not self._low <= len(args) <= self._high:
            self._definition.shape.check(args, kwargs)
        return bound[1](bound[2], args, kwargs)

    def options(self, **options: Any) -> RemoteFunction[P, R]:
        """The same function with these options laid over its own, per key. This one does not change.

        Takes what ``@remote`` takes, but for ``max_calls``.

        Raises:
            TypeError, ValueError: an option is unknown or wrong.
            NotImplementedError: an option that minray does not have yet.
        """
        return RemoteFunction(self._definition, self._options.merged(options))

    def _bind(self) -> tuple[Any, Callable[..., Any], Any]:
        rt = current.ensure()
        bound = self._bound
        if bound is None or bound[0] is not rt:
            self._bound = bound = (rt, rt.submit_task, rt.prepare_task(self._definition, self._options))
        return bound

    @property
    def _function(self) -> Callable[..., Any]:
        """The function itself, for whoever wants to call it here."""
        return self._definition.function

    def __call__(self, /, *args: Any, **kwargs: Any) -> NoReturn:
        name = f"{self._definition.module}.{self._definition.name}"
        raise TypeError(
            f"Remote functions cannot be called directly. Instead of running '{name}()', "
            f"try '{name}.remote()'."
        )

    def __repr__(self) -> str:
        return f"RemoteFunction({self._definition.module}.{self._definition.name})"

    # Pickled when another task's code refers to it. As a state, not as arguments: a recursive function
    # refers to its RemoteFunction, which refers to the function.

    def __getstate__(self) -> dict[str, Any]:
        definition = self._definition
        return {
            "function": definition.function,
            "name": definition.name,
            "module": definition.module,
            "shape": definition.shape,
            "is_generator": definition.is_generator,
            "options": self._options.given,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        options = validate_task_options(state.pop("options"))
        RemoteFunction.__init__(self, FunctionDef(**state), options)


def make_remote_function(function: Callable[P, R], options: dict[str, Any]) -> RemoteFunction[P, R]:
    """Decorate ``function``. Raises as ``RemoteFunction.options`` does; ValueError for ``async def``."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ValueError(
            f"'async def' should not be used for remote tasks: {function.__qualname__!r} is a coroutine "
            "function. Run it inside an ordinary function by asyncio.run(…), or make it a method of an actor."
        )
    definition = FunctionDef(
        function=function,
        name=function.__qualname__,
        module=function.__module__,
        shape=CallShape.of(function),
        is_generator=inspect.isgeneratorfunction(function),
    )
    return RemoteFunction(definition, validate_task_options(options))
