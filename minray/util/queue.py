"""``Queue``: first in, first out, shared by any number of tasks, actors and drivers.

The queue is an asyncio actor around ``asyncio.Queue``, so that thousands of blocked ``put`` and ``get``
calls cost a coroutine each and no thread. ``Queue`` itself is a small picklable front: a copy sent to a
task talks to the same actor, and the actor lives as long as some front does.

Errors: the actor raises this module's ``Full`` and ``Empty``; the front raises them plain, without the
remote traceback, because they are answers and not failures. An item handed out is gone from the queue: if
the process that called ``get`` dies before it uses it, so is the item.
"""

from __future__ import annotations

import asyncio
import queue as standard
from collections.abc import Iterable
from typing import Any

import minray as ray
from minray.exceptions import ActorDiedError


class Empty(standard.Empty):
    """Nothing to get, now or within the timeout."""


class Full(standard.Full):
    """No room to put, now or within the timeout."""


class Queue:
    """A queue of ``maxsize`` items (0 or less: unbounded).

    :param actor_options: options of the actor behind it, such as ``{"name": "jobs", "num_cpus": 1}``.
        By default it needs no CPU, so that a queue can be made while every CPU is taken.
    """

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        self.maxsize = maxsize
        options = {"num_cpus": 0, **(actor_options or {})}
        self.actor: Any = ray.remote(_QueueActor).options(**options).remote(maxsize)

    def __repr__(self) -> str:
        return f"Queue(maxsize={self.maxsize}, actor={self.actor!r})"

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """How many items are in the queue."""
        size: int = ray.get(self._actor().qsize.remote())
        return size

    def qsize(self) -> int:
        """How many items are in the queue."""
        return self.size()

    def empty(self) -> bool:
        """Whether nothing is in the queue."""
        return bool(ray.get(self._actor().empty.remote()))

    def full(self) -> bool:
        """Whether ``maxsize`` items are in the queue."""
        return bool(ray.get(self._actor().full.remote()))

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Append ``item``; with ``block``, wait for room, for at most ``timeout`` seconds.

        :raises Full: no room, at once or after the timeout.
        :raises ValueError: a negative timeout.
        """
        ref = self._put(item, block, timeout)
        try:
            ray.get(ref)
        except Full:
            raise self._full() from None

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """``put`` for coroutines."""
        ref = self._put(item, block, timeout)
        try:
            await ref
        except Full:
            raise self._full() from None

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the oldest item; with ``block``, wait for one, for at most ``timeout`` seconds.

        :raises Empty: no item, at once or after the timeout.
        :raises ValueError: a negative timeout.
        """
        ref = self._get(block, timeout)
        try:
            return ray.get(ref)
        except Empty:
            raise Empty("the queue is empty") from None

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        """``get`` for coroutines."""
        ref = self._get(block, timeout)
        try:
            return await ref
        except Empty:
            raise Empty("the queue is empty") from None

    def put_nowait(self, item: Any) -> None:
        """``put`` that raises Full instead of waiting."""
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        """``get`` that raises Empty instead of waiting."""
        return self.get(block=False)

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Append all of ``items`` in one call, or none of them.

        :raises Full: they do not all fit.
        :raises TypeError: ``items`` is not iterable.
        """
        if not isinstance(items, Iterable):
            raise TypeError(f"Argument 'items' must be an Iterable: {items!r}")
        batch = list(items)
        try:
            ray.get(self._actor().put_nowait_batch.remote(batch))
        except Full:
            raise Full(f"{len(batch)} items do not fit into this queue of {self.maxsize}") from None

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Take the ``num_items`` oldest items in one call, or none.

        :raises Empty: there are fewer.
        :raises TypeError: ``num_items`` is not an int.
        :raises ValueError: it is negative.
        """
        if not isinstance(num_items, int):
            raise TypeError(f"Argument 'num_items' must be an int: {num_items!r}")
        if num_items < 0:
            raise ValueError(f"'num_items' must be nonnegative: {num_items}")
        try:
            items: list[Any] = ray.get(self._actor().get_nowait_batch.remote(num_items))
        except Empty:
            raise Empty(f"there are fewer than {num_items} items in the queue") from None
        return items

    def shutdown(self, force: bool = False, grace_period_s: float = 5) -> None:
        """End the actor: after the calls it has (``force``: at once). Copies of this queue end with it.

        :param grace_period_s: how long queued calls may take before the actor is killed after all.
        """
        if self.actor is None:
            return
        if not force:
            done, _ = ray.wait([self.actor.__ray_terminate__.remote()], timeout=grace_period_s)
            force = not done
        if force:
            ray.kill(self.actor, no_restart=True)
        self.actor = None

    def _actor(self) -> Any:
        if self.actor is None:
            raise ActorDiedError("this queue was shut down: make a new one")
        return self.actor

    def _put(self, item: Any, block: bool, timeout: float | None) -> Any:
        if not block:
            return self._actor().put_nowait.remote(item)
        _check_timeout(timeout)
        return self._actor().put.remote(item, timeout)

    def _get(self, block: bool, timeout: float | None) -> Any:
        if not block:
            return self._actor().get_nowait.remote()
        _check_timeout(timeout)
        return self._actor().get.remote(timeout)

    def _full(self) -> Full:
        return Full(f"the queue is full: it holds {self.maxsize} items")


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None and timeout < 0:
        raise ValueError(f"'timeout' must be a non-negative number: {timeout}")


class _QueueActor:
    """The one copy of the items. Every method is a coroutine: all of them run in one event loop."""

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.queue: asyncio.Queue[Any] = asyncio.Queue(maxsize)

    async def qsize(self) -> int:
        return self.queue.qsize()

    async def empty(self) -> bool:
        return self.queue.empty()

    async def full(self) -> bool:
        return self.queue.full()

    async def put(self, item: Any, timeout: float | None = None) -> None:
        try:
            await asyncio.wait_for(self.queue.put(item), timeout)
        except asyncio.TimeoutError:
            raise Full from None

    async def get(self, timeout: float | None = None) -> Any:
        try:
            return await asyncio.wait_for(self.queue.get(), timeout)
        except asyncio.TimeoutError:
            raise Empty from None

    async def put_nowait(self, item: Any) -> None:
        try:
            self.queue.put_nowait(item)
        except asyncio.QueueFull:
            raise Full from None

    async def get_nowait(self) -> Any:
        try:
            return self.queue.get_nowait()
        except asyncio.QueueEmpty:
            raise Empty from None

    async def put_nowait_batch(self, items: list[Any]) -> None:
        if self.maxsize > 0 and len(items) + self.queue.qsize() > self.maxsize:
            raise Full
        for item in items:
            self.queue.put_nowait(item)

    async def get_nowait_batch(self, num_items: int) -> list[Any]:
        if num_items > self.queue.qsize():
            raise Empty
        return [self.queue.get_nowait() for _ in range(num_items)]
