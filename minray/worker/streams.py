"""Streaming generators at the process that called them. See object_ref.ObjectRefGenerator."""

from __future__ import annotations

from functools import partial
from typing import Any

from minray.exceptions import GetTimeoutError
from minray.object_ref import ObjectRef, make_ref
from minray.wire.reactor import Waiter
from minray.worker.core import END_OF_STREAM, PICKLED_NONE
from minray.worker.references import ERROR, INLINE, PENDING
from minray.worker.submission import Submission
from minray.worker.tasks import Stream


class _StreamWaiter(Waiter):
    __slots__ = ("reactor",)

    def __init__(self, reactor: Any) -> None:
        super().__init__()
        self.reactor = reactor

    def ready(self, _id: bytes | None, _stream: Any) -> None:
        self.reactor.notify(self)


class StreamOps(Submission):
    """stream_* of the contract."""

    def _stream(self, stream_id: bytes) -> Stream | None:
        seq = self.core.seq_of(stream_id)
        return None if seq is None else self.core.streams.get(seq)

    def stream_next(self, stream_id: bytes, timeout: float | None) -> ObjectRef[Any] | None:
        """See the contract."""
        self.must_not_wait("next() of a generator")
        while True:
            waiter = _StreamWaiter(self.reactor)
            with self.lock:
                if self.closed:
                    raise self.over()
                stream = self._stream(stream_id)
                if stream is None or stream.ended():
                    return None
                object_id = self.core.stream_take(stream)
                if object_id is None:
                    stream.waiters.append(waiter)
                    self.core.calls.flush()
                self.leave()
            if object_id is not None:
                return make_ref(object_id, None, self)
            if timeout is not None and not self.wait_in_user_code(self.reactor.wait, waiter, timeout):
                with self.lock:
                    stream.waiters = [w for w in stream.waiters if w is not waiter]
                raise GetTimeoutError(f"the generator's next item was not there after {timeout} s")
            if timeout is None:
                self._sleep(waiter, None, list)

    def stream_peek(self, stream_id: bytes) -> ObjectRef[Any]:
        """See the contract."""
        with self.lock:
            stream = self._stream(stream_id)
            seq = self.core.seq_of(stream_id)
            assert seq is not None
            index = stream.consumed if stream is not None else 0
            object_id = self.core.object_id(seq, 2 + index)
            record = self.core.objects.get(object_id)
            if record is None:
                record = self.core.refs.own(object_id, local=0)
                task = self.core.owner.tasks.get(seq) or self.core.calls.tasks.get(seq)
                record.task = task
                if stream is None or stream.ended() or task is None:
                    record.status, record.value = ERROR, END_OF_STREAM
            record.local += 1
            self.leave()
        return make_ref(object_id, None, self)

    def stream_finished(self, stream_id: bytes) -> bool:
        """See the contract."""
        stream = self._stream(stream_id)
        return stream is None or stream.ended()

    def stream_completed_ref(self, stream_id: bytes) -> ObjectRef[Any]:
        """See the contract."""
        with self.lock:
            seq = self.core.seq_of(stream_id)
            assert seq is not None
            object_id = self.core.object_id(seq, 1)
            record = self.core.objects.get(object_id)
            if record is None:
                record = self.core.refs.own(object_id, local=0)
                stream = self._stream(stream_id)
                if stream is None or stream.outcome is not None:
                    outcome = stream.outcome if stream is not None else None
                    record.status, record.value = outcome or (INLINE, PICKLED_NONE)
                else:
                    record.task = self.core.owner.tasks.get(seq) or self.core.calls.tasks.get(seq)
            assert record.status != PENDING or record.task is not None
            record.local += 1
            self.leave()
        return make_ref(object_id, None, self)

    def release_stream(self, stream_id: bytes) -> None:
        """See the contract."""
        seq = self.core.seq_of(stream_id)
        if seq is not None:
            self.post(partial(self.core.release_stream, seq))
