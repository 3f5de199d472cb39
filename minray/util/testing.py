"""Actors that make tests of concurrent programs deterministic, and one bounded wait.

``SignalActor`` holds tasks back until a test lets them go; ``Semaphore`` lets so many through at a time.
Both need no CPU, so they never take the place of what they coordinate, and both run in an asyncio actor,
so any number of callers can wait at once. They live here, and not in ``minray.testing``, because they are
for users' tests as well as ours and use only public names.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import minray as ray


@ray.remote(num_cpus=0)
class SignalActor:
    """A gate: ``wait`` returns once ``send`` was called."""

    def __init__(self) -> None:
        self.ready_event = asyncio.Event()
        self.num_waiters = 0

    async def send(self, clear: bool = False) -> None:
        """Open the gate. With ``clear``, let through who waits now and close it again."""
        self.ready_event.set()
        if clear:
            self.ready_event.clear()

    async def wait(self, should_wait: bool = True) -> None:
        """Return when the gate is open, or at once if not ``should_wait``."""
        if not should_wait:
            return
        self.num_waiters += 1
        try:
            await self.ready_event.wait()
        finally:
            self.num_waiters -= 1

    async def cur_num_waiters(self) -> int:
        """How many calls of ``wait`` have not returned."""
        return self.num_waiters


@ray.remote(num_cpus=0)
class Semaphore:
    """``value`` permits: ``acquire`` waits for one, ``release`` gives one back."""

    def __init__(self, value: int = 1) -> None:
        self.permits = asyncio.Semaphore(value)

    async def acquire(self) -> None:
        """Take a permit, waiting for one if none is free."""
        await self.permits.acquire()

    async def release(self) -> None:
        """Give a permit back, to the one who has waited longest."""
        self.permits.release()

    async def locked(self) -> bool:
        """Whether no permit is free."""
        return self.permits.locked()


def wait_for_condition(
    condition: Callable[..., Any],
    timeout: float = 10,
    retry_interval_ms: float = 20,
    **arguments: Any,
) -> None:
    """Call ``condition(**arguments)`` until it is true.

    :raises RuntimeError: it is still false after ``timeout`` seconds; names the condition.
    """
    deadline = time.monotonic() + timeout
    while not condition(**arguments):
        if time.monotonic() >= deadline:
            name = getattr(condition, "__qualname__", repr(condition))
            raise RuntimeError(f"{name} was not true within {timeout} s")
        time.sleep(retry_interval_ms / 1000)
