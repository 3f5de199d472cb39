"""Local mode's asyncio actors: one daemon thread with an event loop of its own per actor.

Ordinary methods run on the loop too, as they do in a worker. Everything of the actor happens on the loop's
thread; others reach it by ``call_soon_threadsafe`` alone.

Called by ``worker.local``.

Invariants: calls start in the order of submission, ``__init__`` first; at most ``max_concurrency`` (per
concurrency group) are between their first and last step; a stopped loop leaves no task behind.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import Any

from minray.awaiting import until_ready
from minray.worker.local.actors import DEAD, LocalActor
from minray.worker.local.calls import CONTEXT, Call
from minray.worker.local.objects import VALUE, encode
from minray.worker.local.streams import LocalStream


class AsyncioActor(LocalActor):
    """An actor with at least one ``async def`` method."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_created: asyncio.Event | None = None
        self._slots: dict[str | None, asyncio.Semaphore] = {}

    def _boot(self, creation: Call) -> None:
        self._loop = loop = asyncio.new_event_loop()
        sizes: dict[str | None, int] = {
            None: self.options["max_concurrency"],
            **self.options["concurrency_groups"],
        }
        self._slots = {group: asyncio.Semaphore(size) for group, size in sizes.items()}
        self._is_created = asyncio.Event()
        name = f"minray-{self.definition.name}-loop"
        threading.Thread(target=_serve, args=(loop,), name=name, daemon=True).start()
        self._post(lambda: loop.create_task(self._construct(creation, self._is_created)))

    def _post(self, action: Callable[[], Any]) -> None:
        loop = self._loop
        if loop is None:
            return
        try:
            loop.call_soon_threadsafe(action)
        except RuntimeError:
            if not loop.is_closed():
                raise

    async def _construct(self, creation: Call, is_created: asyncio.Event | None) -> None:
        CONTEXT.set(creation.context)
        try:
            for _, ref in creation.top:
                await until_ready(self.rt, ref)
            args, kwargs = creation.arguments()
            self.construct(*args, **kwargs)
        except BaseException as error:  # all that user code raises is the outcome
            creation.fail(creation.error_value(error))
        else:
            creation.succeed([])
        self.created(creation)
        if is_created is not None:
            is_created.set()
        self.end_if_idle()

    def _take(self, call: Call) -> None:
        self._post(lambda: self._start(call))

    def _start(self, call: Call) -> None:
        if self.state == DEAD or self._loop is None:
            call.fail(self.death_of(call))
        elif not call.done:
            task = call.asyncio_task = self._loop.create_task(self._run(call))
            task.add_done_callback(lambda _: self._done(call))

    def _done(self, call: Call) -> None:
        call.asyncio_task = None
        if not call.done:  # cancelled, perhaps before its first step
            call.fail(self.death_of(call) if self.state == DEAD else ("cancelled", call.name))
        self.answered(call)

    async def _run(self, call: Call) -> None:
        CONTEXT.set(call.context)
        try:
            if self._is_created is not None:
                await self._is_created.wait()
            async with self._slots[call.group]:
                await self._call(call)
        except asyncio.CancelledError:
            raise  # told by _done
        except BaseException as error:  # all that user code raises is the call's outcome
            call.fail(call.error_value(error))

    async def _call(self, call: Call) -> None:
        while True:
            for _, ref in call.top:
                await until_ready(self.rt, ref)
            try:
                args, kwargs = call.arguments()
                result = self.function(call.method)(*args, **kwargs)
                if call.stream is not None:
                    await self._feed(call.stream, result)
                    call.stream.end()
                    return
                if inspect.isawaitable(result):
                    result = await result
                encoded = call.encode_result(result)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                if call.should_retry(error):
                    continue
                raise
            call.succeed(encoded)
            return

    async def _feed(self, stream: LocalStream, items: Any) -> None:
        room = asyncio.Event()
        stream.on_taken = lambda: self._post(room.set)
        if hasattr(items, "__aiter__"):
            async for item in items:
                await _add(stream, item, room)
        else:
            for item in items:
                await _add(stream, item, room)
                await asyncio.sleep(0)  # others get their turn between the items of an ordinary generator

    def add_stream(self, call: Call, backpressure: int) -> LocalStream:
        """A generator method: fed from the loop."""
        return LocalStream(call, backpressure)

    def cancel(self, call: Call) -> None:
        """Cancel its asyncio task."""
        super().cancel(call)

        def cancel() -> None:  # on the loop, so after its ``_start``
            if call.asyncio_task is not None:
                call.asyncio_task.cancel()

        self._post(cancel)

    def die(self, cause: dict[str, Any]) -> None:
        """As in the base class."""
        super().die(cause)
        self._stop_serving()

    def _stop_serving(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(loop.stop)
            except RuntimeError:
                if not loop.is_closed():
                    raise


async def _add(stream: LocalStream, item: Any, room: asyncio.Event) -> None:
    stream.add(VALUE, encode(item))
    while stream.full() and not stream.abandoned:
        room.clear()
        if stream.full():
            await room.wait()
    if stream.abandoned:
        raise asyncio.CancelledError


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
