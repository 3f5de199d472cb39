"""Waiting for a ref without blocking a thread: what ``await ref`` and ``ref.future()`` are made of.

Both are built on one primitive of the runtime, ``rt.on_ready(ref, callback)``. The callback may come on any
thread, many at a time, so it only posts to a *door*: one queue per asyncio loop, emptied by one wake-up
however many results arrive together; or the queue of the one helper thread that completes
``concurrent.futures`` futures (values are unpickled there, never on the thread that reads sockets).

Loaded on first use, because it needs asyncio.

Invariants: a future is settled once; one that its user cancelled is left alone, and so is the task behind it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from minray._base import current
from minray.exceptions import GetTimeoutError
from minray.object_ref import ObjectRef


class _LoopDoor:
    """Lets any thread run things on one asyncio loop, with one wake-up for many."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._posted: deque[Callable[[], None]] = deque()
        self._woken = False

    def post(self, action: Callable[[], None]) -> None:
        self._posted.append(action)
        if self._woken:  # set before the queue is emptied and cleared first: nothing posted is forgotten
            return
        self._woken = True
        loop = self._loop()
        if loop is None or loop.is_closed():
            return  # nobody can wait there any more
        try:
            loop.call_soon_threadsafe(self._drain)
        except RuntimeError:
            if not loop.is_closed():
                raise

    def _drain(self) -> None:
        self._woken = False
        posted = self._posted
        while posted:
            posted.popleft()()


_doors: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopDoor] = weakref.WeakKeyDictionary()
_doors_lock = threading.Lock()


def _door_of(loop: asyncio.AbstractEventLoop) -> _LoopDoor:
    door = _doors.get(loop)
    if door is None:
        with _doors_lock:
            door = _doors.setdefault(loop, _LoopDoor(loop))
    return door


def asyncio_future_of(ref: ObjectRef[Any]) -> asyncio.Future[Any]:
    """A future on the running loop that gets the value or error of ``ref``."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    door = _door_of(loop)
    rt = _runtime_of(ref)

    def settle() -> None:
        if future.done():
            return
        try:
            future.set_result(rt.get([ref], 0)[0])
        except GetTimeoutError as error:
            if type(error) is not GetTimeoutError:
                future.set_exception(error)  # the task's own
            else:
                rt.on_ready(ref, lambda: door.post(settle))  # its copy here had to make room meanwhile
        except StopIteration as error:  # a future cannot carry it; a coroutine could not raise it either
            _set_error(future, error)
        except BaseException as error:  # whatever the task raised is for who awaits
            future.set_exception(error)

    rt.on_ready(ref, lambda: door.post(settle))
    return future


async def until_ready(rt: Any, ref: ObjectRef[Any]) -> None:
    """Return when ``ref`` has a value or an error here."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    door = _door_of(loop)

    def settle() -> None:
        if not future.done():
            future.set_result(None)

    rt.on_ready(ref, lambda: door.post(settle))
    await future


class _Completer:
    """The one thread that completes ``concurrent.futures`` futures; there only while some are outstanding."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._outstanding = 0

    def expect(self) -> None:
        """One more ``post`` will come."""
        with self._lock:
            self._outstanding += 1
            if self._outstanding == 1:
                threading.Thread(target=self._run, name="minray-futures", daemon=True).start()

    def post(self, action: Callable[[], None]) -> None:
        """Run ``action`` on the thread."""
        self._queue.put(action)

    def _run(self) -> None:
        while True:
            self._queue.get()()
            with self._lock:
                self._outstanding -= 1
                if self._outstanding == 0:
                    return


_completer = _Completer()


def future_of(ref: ObjectRef[Any]) -> Future[Any]:
    """A thread-safe future that gets the value or error of ``ref``."""
    future: Future[Any] = Future()
    rt = _runtime_of(ref)
    _completer.expect()

    def settle() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            value = rt.get([ref], None)[0]
        except BaseException as error:  # whatever the task raised is for who asks the future
            future.set_exception(error)
        else:
            future.set_result(value)

    try:
        rt.on_ready(ref, lambda: _completer.post(settle))
    except BaseException:
        _completer.post(lambda: None)
        raise
    return future


def _runtime_of(ref: ObjectRef[Any]) -> Any:
    return current.ensure() if ref._rt is None else ref._rt


def _set_error(future: asyncio.Future[Any], error: StopIteration) -> None:
    replacement = RuntimeError(f"the task raised StopIteration, which cannot be awaited: {error}")
    replacement.__cause__ = error
    future.set_exception(replacement)
