"""Results in the order in which they come, instead of the order in which they were asked for.

``as_completed`` serves references that exist already; ``map_unordered`` makes them, a bounded number at
a time, so that an endless iterable keeps memory flat. Both are plain generators over ``wait`` and
``get``.

Invariants: a finished result is never held back by an unfinished one; an argument error is raised by the
call itself, not by the first ``next()``; of ``map_unordered``'s items never more than
``backpressure_size`` are submitted and not yet handed out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import minray as ray


def as_completed(
    refs: Iterable[Any], *, chunk_size: int = 10, yield_obj_refs: bool = False, **wait_options: Any
) -> Iterator[Any]:
    """Yield the value of each reference as soon as it is there.

    Results that finish between two steps of the iteration come in the order of ``refs``. The first task
    that failed raises its error here and ends the iteration.

    :param refs: the references to wait for; no duplicates.
    :param chunk_size: accepted for compatibility, and checked (at least 1): results never wait here
        until a chunk of them is complete.
    :param yield_obj_refs: yield the references instead of their values (errors are then the caller's).
    :param wait_options: ``timeout`` and ``fetch_local``, passed on to ``wait``. A timeout bounds one
        inner wait, not the iteration.
    :raises ValueError: ``chunk_size`` below 1, or duplicates in ``refs``.
    :raises TypeError: something in ``refs`` is not a reference.
    """
    _check_chunk_size(chunk_size)
    _check_wait_options("as_completed", wait_options)
    return _drain(list(refs), yield_obj_refs, wait_options)


def _drain(pending: list[Any], yield_obj_refs: bool, wait_options: dict[str, Any]) -> Iterator[Any]:
    while pending:
        ready, pending = _take_ready(pending, wait_options)
        # From here on only this list keeps the finished ones alive: each is let go as it is yielded.
        ready.reverse()
        while ready:
            ref = ready.pop()
            yield ref if yield_obj_refs else ray.get(ref)


def map_unordered(
    fn: Any,
    items: Iterable[Any],
    *,
    backpressure_size: int | None = 100,
    chunk_size: int = 10,
    yield_obj_refs: bool = False,
    **wait_options: Any,
) -> Iterator[Any]:
    """Call ``fn.remote(item)`` for each item and yield the results as they finish.

    Items are taken lazily: the iterable may be endless. The first task that failed raises its error here
    and ends the iteration.

    :param fn: a remote function, or an actor's method.
    :param items: one argument each.
    :param backpressure_size: how many items may be submitted and not yet handed out; None for no limit.
    :param chunk_size: accepted for compatibility, and checked (at least 1); see ``as_completed``.
    :param yield_obj_refs: yield references instead of values.
    :param wait_options: ``timeout`` and ``fetch_local``, passed on to ``wait``.
    :raises TypeError: ``fn`` has no ``.remote()``.
    :raises ValueError: ``backpressure_size`` or ``chunk_size`` below 1.
    """
    if not hasattr(fn, "remote"):
        raise TypeError(
            f"map_unordered needs a remote function, and {fn!r} has no .remote(): "
            "decorate it with @remote, or pass remote(fn)"
        )
    if backpressure_size is not None and backpressure_size < 1:
        raise ValueError(f"backpressure_size must be positive, or None for no limit: {backpressure_size!r}")
    _check_chunk_size(chunk_size)
    _check_wait_options("map_unordered", wait_options)
    return _map(fn, iter(items), backpressure_size, yield_obj_refs, wait_options)


def _map(
    fn: Any,
    items: Iterator[Any],
    limit: int | None,
    yield_obj_refs: bool,
    wait_options: dict[str, Any],
) -> Iterator[Any]:
    running: list[Any] = []
    ready: deque[Any] = deque()
    while True:
        room = None if limit is None else limit - len(running) - len(ready)
        running.extend(fn.remote(item) for item in islice(items, room))
        if not ready:
            if not running:
                return
            finished, running = _take_ready(running, wait_options)
            ready.extend(finished)
        if ready:
            # Taken out before it is yielded: the next step may submit in its place.
            ref = ready.popleft()
            yield ref if yield_obj_refs else ray.get(ref)


def _take_ready(pending: list[Any], wait_options: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Wait for one, then take all that are there: a step costs O(pending) for as many as finished."""
    ready, pending = ray.wait(pending, num_returns=1, **wait_options)
    if ready and pending:
        more, pending = ray.wait(pending, num_returns=len(pending), timeout=0)
        ready += more
    return ready, pending


def _check_chunk_size(chunk_size: int) -> None:
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be >= 1: {chunk_size!r}")


def _check_wait_options(function: str, options: dict[str, Any]) -> None:
    unknown = set(options) - {"timeout", "fetch_local"}
    if unknown:
        raise TypeError(
            f"{function}() got unexpected keyword arguments {sorted(unknown)}: "
            "only those of wait(), timeout and fetch_local, are passed on"
        )
