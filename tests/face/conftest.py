"""Fixtures: a fake runtime that records what the face asks, and a local session checked at its end."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import minray
from minray._base import current
from minray.object_ref import ObjectRef, make_generator, make_ref
from minray.worker.contract import ActorRecord, TaskContext


class FakeRuntime:
    """Keeps the contract's shape and remembers what the face asked. Values are put in by the test."""

    mode = "driver"
    job_id = b"\x01\0\0\0"
    worker_id = b"w" * 28
    node_id = b"n" * 28
    namespace = "fake"

    def __init__(self) -> None:
        self.session: dict[str, Any] = {"gcs_endpoint": "tcp:127.0.0.1:1", "node_address": "127.0.0.1"}
        self.asked: list[tuple[Any, ...]] = []
        self.released: list[bytes] = []
        self.released_streams: list[bytes] = []
        self.pinned: list[bytes] = []
        self.values: dict[bytes, Any] = {}
        self.callbacks: dict[bytes, list[Callable[[], None]]] = {}
        self.stream: list[Any] = []
        self._numbers = itertools.count()
        self.release = self.released.append
        self.release_stream = self.released_streams.append
        self.task = TaskContext()

    def new_ref(self) -> ObjectRef[Any]:
        return make_ref(next(self._numbers).to_bytes(28, "big"), None, self)

    def settle(self, ref: ObjectRef[Any], value: Any) -> None:
        self.values[ref.binary()] = value
        for callback in self.callbacks.pop(ref.binary(), []):
            callback()

    def prepare_task(self, function: Any, options: Any) -> Any:
        self.asked.append(("prepare_task", function, options))
        return (function, options)

    def submit_task(self, prepared: Any, args: Any, kwargs: Any) -> Any:
        self.asked.append(("submit_task", prepared, args, kwargs))
        return self.new_ref()

    def create_actor(self, actor_class: Any, options: Any, args: Any, kwargs: Any) -> ActorRecord:
        self.asked.append(("create_actor", actor_class, options, args, kwargs))
        ref = self.new_ref()
        actor_id = b"a" * 12 + self.job_id
        return ActorRecord(actor_id, self.job_id, actor_class.name, actor_class.methods, {}, ref, self)

    def adopt_actor(self, actor_id: bytes, *rest: Any) -> ActorRecord:
        return ActorRecord(actor_id, *rest, self)

    def prepare_method(self, actor: Any, method: str, options: Any, meta: Any) -> Any:
        self.asked.append(("prepare_method", method, options))
        return (method, options)

    def submit_actor_task(self, prepared: Any, args: Any, kwargs: Any) -> Any:
        self.asked.append(("submit_actor_task", prepared, args, kwargs))
        return self.new_ref()

    def get(self, refs: list[ObjectRef[Any]], timeout: float | None) -> list[Any]:
        found = [self.values[ref.binary()] for ref in refs]
        for value in found:
            if isinstance(value, BaseException):
                raise value
        return found

    def wait(self, refs: list[Any], num_returns: int, timeout: Any, fetch_local: bool) -> Any:
        self.asked.append(("wait", refs, num_returns, timeout, fetch_local))
        ready = [ref for ref in refs if ref.binary() in self.values][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def on_ready(self, ref: ObjectRef[Any], callback: Callable[[], None]) -> None:
        if ref.binary() in self.values:
            callback()
        else:
            self.callbacks.setdefault(ref.binary(), []).append(callback)

    def cancel(self, ref: Any, force: bool, recursive: bool) -> None:
        self.asked.append(("cancel", ref, force, recursive))

    def kill_actor(self, actor_id: bytes, no_restart: bool) -> None:
        self.asked.append(("kill_actor", actor_id, no_restart))

    def pin_forever(self, ref: ObjectRef[Any]) -> Any:
        self.pinned.append(ref.binary())
        return (self.node_id, self.worker_id, "unix:/x")

    def adopt_ref(self, object_id: bytes, owner: Any) -> ObjectRef[Any]:
        self.asked.append(("adopt_ref", object_id, owner))
        return make_ref(object_id, owner, self)

    def new_generator(self) -> Any:
        return make_generator(b"s" * 24, self)

    def stream_next(self, stream_id: bytes, timeout: float | None) -> Any:
        return self.stream.pop(0) if self.stream else None

    def stream_peek(self, stream_id: bytes) -> Any:
        return self.stream[0] if self.stream else self.new_ref()

    def stream_finished(self, stream_id: bytes) -> bool:
        return not self.stream

    def stream_completed_ref(self, stream_id: bytes) -> Any:
        return make_ref(stream_id + b"\x01\0\0\0", None, self)

    def context(self) -> TaskContext:
        return self.task

    def gcs(self, method: str, *args: Any) -> Any:
        self.asked.append(("gcs", method, *args))
        return []

    def shutdown(self, exiting: bool = False) -> None:
        self.asked.append(("shutdown",))


@pytest.fixture
def rt() -> Iterator[FakeRuntime]:
    """This process's runtime is a fake."""
    assert minray.is_initialized() is False
    fake = FakeRuntime()
    current.set(fake)
    yield fake
    current.set(None)


@pytest.fixture
def local() -> Iterator[Any]:
    """A local session; at its end its invariants hold."""
    with minray.init(local_mode=True, num_cpus=4, num_gpus=2):
        runtime = current.get()
        yield runtime
        gc.collect()
        runtime.collect()
        runtime.check_invariants()
