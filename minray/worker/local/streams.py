"""Local mode's streaming generators.

Two ways to feed one: a **pulled** stream (tasks and ordinary actors) runs the user's generator only when
the next item is asked for, on the asking thread: an endless generator is no problem, and a debugger sees
consumer and producer on one stack. A **pushed** one (asyncio and threaded actors) is fed by the actor's own
loop or thread, held back by the option for backpressure.

Called by ``worker.local``; under ``ObjectTable.changed`` where state is shared between threads.

Invariants: item i is the object of index i + 2, and is made once; after the end nothing is added; the object
of index 1 settles at the end, last.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from minray.exceptions import GetTimeoutError, RaySystemError
from minray.object_ref import ObjectRef
from minray.worker.local.calls import CONTEXT, NONE, Call, environment, result_id
from minray.worker.local.objects import ERROR, VALUE, Encoded, encode

END_OF_STREAM = ("end_of_stream",)


class LocalStream:
    """The stream of one call, at its consumer."""

    def __init__(self, call: Call, backpressure: int) -> None:
        self.call = call
        self.backpressure = backpressure  # items that may wait; -1: any number
        self.ended = False
        self.abandoned = False
        self.on_taken: Callable[[], None] | None = None  # tells a held-back producer
        self._objects = call.rt.objects
        self._items: deque[ObjectRef[Any]] = deque()
        self._produced = 0
        self._peeked: ObjectRef[Any] | None = None  # handed out before its item was there
        self._completed = self._objects.new(result_id(call.task_id, 1))
        call.stream = self

    # --- producer ---------------------------------------------------------------------------------

    def full(self) -> bool:
        """Whether the producer has to wait."""
        return 0 < self.backpressure <= len(self._items)

    def add(self, status: int, value: Encoded | tuple[Any, ...]) -> None:
        """One more item."""
        with self._objects.changed:
            if self.ended or self.abandoned:
                return
            ref = self._slot()
            self._produced += 1
            self._peeked = None
            self._items.append(ref)
        self._objects.settle(ref._id, status, value)

    def end(self, error_value: tuple[Any, ...] | None = None) -> None:
        """No more items; an error is one last item."""
        if self.ended:
            return
        if error_value is not None:
            self.call.rt.note_error(error_value, self.call.name)
            self.add(ERROR, error_value)
        with self._objects.changed:
            self.ended = True
            peeked, self._peeked = self._peeked, None
            self._objects.changed.notify_all()
        if peeked is not None:
            self._objects.settle(peeked._id, ERROR, END_OF_STREAM)
        self.call.finish()
        body_ran = error_value is None or error_value[0] == "task"
        outcome = (VALUE, NONE) if body_ran else (ERROR, error_value)
        self._objects.settle(self._completed._id, *outcome)

    def _slot(self) -> ObjectRef[Any]:
        return self._peeked or self._objects.new(result_id(self.call.task_id, 2 + self._produced))

    # --- consumer ---------------------------------------------------------------------------------

    def advance(self) -> None:
        """Make the next item, where that is the consumer's business."""

    def cancel(self) -> None:
        """End it with TaskCancelledError as its last item."""
        self.call.context.canceled = True
        self.end(("cancelled", self.call.name))

    def abandon(self) -> None:
        """The consumer is gone."""
        self.abandoned = True
        self._items.clear()
        if self.on_taken is not None:
            self.on_taken()

    def take(self, timeout: float | None) -> ObjectRef[Any] | None:
        """See contract.Runtime.stream_next."""
        if not self._items and not self.ended:
            self.advance()
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._objects.changed:
            while not self._items:
                if self.ended:
                    return None
                if self.call.rt.closed:
                    raise RaySystemError("the session has ended")
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise GetTimeoutError(f"{self.call.name} did not yield its next item within {timeout} s")
                self._objects.changed.wait(left)
            ref = self._items.popleft()
        if self.on_taken is not None:
            self.on_taken()
        return ref

    def peek(self) -> ObjectRef[Any]:
        """See contract.Runtime.stream_peek."""
        if not self._items and not self.ended:
            self.advance()
        with self._objects.changed:
            if self._items:
                return self._items[0]
            ref: ObjectRef[Any] = self._slot()
            if not self.ended:
                self._peeked = ref
                return ref
        self._objects.settle(ref._id, ERROR, END_OF_STREAM)
        return ref

    def finished(self) -> bool:
        """See contract.Runtime.stream_finished."""
        return self.ended and not self._items

    def completed(self) -> ObjectRef[Any]:
        """See contract.Runtime.stream_completed_ref."""
        ref: ObjectRef[Any] = self._completed
        return ref


class PulledStream(LocalStream):
    """Runs the user's generator function when an item is asked for."""

    def __init__(self, call: Call, start: Callable[..., Any]) -> None:
        super().__init__(call, -1)
        self._start: Callable[..., Any] | None = start
        self._generator: Iterator[Any] | None = None
        self._running = threading.RLock()
        self.exhausted: Callable[[], None] | None = None  # told once, after the end

    def advance(self) -> None:
        """Run the generator to its next item."""
        with self._running:
            if self.ended or self.abandoned:
                return
            call = self.call
            call.rt.wait_for_arguments(call)
            token = CONTEXT.set(call.context)
            try:
                with environment(call.context):
                    if self._generator is None and self._start is not None:
                        args, kwargs = call.arguments()
                        start, self._start = self._start, None
                        self._generator = iter(start(*args, **kwargs))
                    assert self._generator is not None
                    item = encode(next(self._generator))
            except StopIteration:
                self._stop(None)
            except BaseException as error:  # all that user code raises is the task's outcome
                self._stop(call.error_value(error))
            else:
                self.add(VALUE, item)
            finally:
                CONTEXT.reset(token)

    def run_to_end(self) -> None:
        """What an actor does before its next call, and whoever waits for ``completed()``."""
        while not self.ended:
            self.advance()

    def abandon(self) -> None:
        """The consumer is gone, so the generator ends where it is (its ``finally`` clauses run)."""
        super().abandon()
        with self._running:
            if not self.ended:
                self._close()
                self._stop(None)

    def cancel(self) -> None:
        """End it with TaskCancelledError as its last item."""
        with self._running:
            if not self.ended:
                self._close()
                self.call.context.canceled = True
                self._stop(("cancelled", self.call.name))

    def _close(self) -> None:
        close = getattr(self._generator, "close", None)
        if close is not None:
            token = CONTEXT.set(self.call.context)
            try:
                close()
            except BaseException as error:  # raised by a ``finally`` of user code: told, as nobody awaits it
                self.call.rt.note_error(self.call.error_value(error), self.call.name)
            finally:
                CONTEXT.reset(token)

    def _stop(self, error_value: tuple[Any, ...] | None) -> None:
        self._generator = self._start = None
        self.end(error_value)
        if self.exhausted is not None:
            told, self.exhausted = self.exhausted, None
            told()
