"""``ActorPool``: work handed to whichever actor of a fixed set is free.

State is three containers, owned by the pool and touched only by its caller's thread:

* ``_idle``     actors with nothing to do (a stack: the warmest first)
* ``_waiting``  ``(fn, value)`` pairs that found no idle actor, in order
* ``_running``  first reference of a call → its ``_Call``, in the order of submission

Invariants: an actor is idle or runs one call that the pool waits for; nothing waits while an actor is
idle; an actor that was seen dead is in neither. A pool is not thread-safe and not picklable.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import minray as ray
from minray.exceptions import ActorDiedError

_TIMED_OUT = "Timed out waiting for result"


@dataclass(frozen=True)
class _Call:
    actor: Any
    result: Any  # what fn returned: a reference, or a list of them


class ActorPool:
    """A pool over ``actors``: each runs one call at a time, further calls wait for a free one.

    >>> pool = ActorPool([Worker.remote(), Worker.remote()])         # doctest: +SKIP
    >>> list(pool.map(lambda worker, n: worker.double.remote(n), [1, 2, 3]))  # doctest: +SKIP
    [2, 4, 6]
    """

    def __init__(self, actors: Iterable[Any]) -> None:
        self._idle: list[Any] = list(actors)
        self._waiting: deque[tuple[Callable[[Any, Any], Any], Any]] = deque()
        self._running: dict[Any, _Call] = {}

    def __repr__(self) -> str:
        idle, running, waiting = len(self._idle), len(self._running), len(self._waiting)
        return f"ActorPool(idle={idle}, running={running}, waiting={waiting})"

    def map(self, fn: Callable[[Any, Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        """Submit ``fn(actor, value)`` for each value; iterate over the results in the values' order.

        Work starts at once, results of earlier ``submit`` calls that nobody fetched are dropped.
        ``fn`` returns the reference of the call that it made. Iterating drives the pool.
        """
        self._discard_unfetched()
        for value in values:
            self.submit(fn, value)
        return self._results(self.get_next)

    def map_unordered(self, fn: Callable[[Any, Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        """Like ``map``, but the results come as they finish."""
        self._discard_unfetched()
        for value in values:
            self.submit(fn, value)
        return self._results(self.get_next_unordered)

    def _results(self, fetch: Callable[[], Any]) -> Iterator[Any]:
        while self.has_next():
            yield fetch()

    def _discard_unfetched(self) -> None:
        """Forget what was submitted before and not fetched. It still runs, ahead of what comes now."""
        self._start_waiting()
        while self._running:
            self._finish(self._running.pop(next(iter(self._running))).actor)

    def submit(self, fn: Callable[[Any, Any], Any], value: Any) -> None:
        """Run ``fn(actor, value)`` on a free actor, now or as soon as there is one."""
        if not self._idle:
            self._waiting.append((fn, value))
            return
        actor = self._idle.pop()
        try:
            result = fn(actor, value)
            ref = result[0] if isinstance(result, list) else result
        except BaseException:
            self._idle.append(actor)
            raise
        self._running[ref] = _Call(actor, result)

    def has_next(self) -> bool:
        """Whether a submitted result was not fetched yet."""
        return bool(self._running or self._waiting)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The next result in the order of submission.

        :param timeout: seconds to wait; None waits as long as it takes.
        :param ignore_if_timedout: on a timeout, give that result up and go on to the one after it.
        :raises StopIteration: nothing was submitted, or all was fetched.
        :raises TimeoutError: it is not there within ``timeout``.
        :raises ValueError: calls wait, but the pool has no actor (left) to run them.
        """
        self._check_running()
        return self._fetch([next(iter(self._running))], timeout, ignore_if_timedout)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Any finished result, waiting for one if there is none. Arguments and errors as in ``get_next``."""
        self._check_running()
        return self._fetch(list(self._running), timeout, ignore_if_timedout)

    def _check_running(self) -> None:
        self._start_waiting()
        if self._running:
            return
        if self._waiting:
            raise ValueError(
                f"{len(self._waiting)} submitted calls wait, and this ActorPool has no live actor: push() one"
            )
        raise StopIteration("No more results to get")

    def _fetch(self, among: list[Any], timeout: float | None, ignore: bool) -> Any:
        ready, _ = ray.wait(among, num_returns=1, timeout=timeout)
        if not ready:
            if not ignore:
                raise TimeoutError(_TIMED_OUT)
            # The actor counts as free although it is still busy: its own queue holds its next call.
            self._finish(self._running.pop(among[0]).actor)
            raise TimeoutError(f"{_TIMED_OUT}. The task {among[0]} has been ignored.")
        call = self._running.pop(ready[0])
        try:
            value = ray.get(call.result)
        except ActorDiedError:
            raise  # the dead actor leaves the pool
        except BaseException:
            self._finish(call.actor)
            raise
        self._finish(call.actor)
        return value

    def _finish(self, actor: Any) -> None:
        self._idle.append(actor)
        self._start_waiting()

    def _start_waiting(self) -> None:
        while self._idle and self._waiting:
            self.submit(*self._waiting.popleft())

    def has_free(self) -> bool:
        """Whether an actor is idle, so that a submitted call would start at once."""
        return bool(self._idle) and not self._waiting

    def pop_idle(self) -> Any:
        """Take an idle actor out of the pool; None if all are busy."""
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: Any) -> None:
        """Add an actor, which starts with what waits.

        :raises ValueError: the actor is in the pool already.
        """
        if actor in self._idle or any(call.actor == actor for call in self._running.values()):
            raise ValueError(f"Actor already belongs to current ActorPool: {actor!r}")
        self._finish(actor)
