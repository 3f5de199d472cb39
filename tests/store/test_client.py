"""StoreClient: a put loop stays warm, views keep what they cover and nothing else, nobody is left waiting."""

from __future__ import annotations

import errno
import gc
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minray.store.client import IDLE_S, StoreClient
from minray.store.errors import StoreClosed, StoreError, StoreFull, StoreWouldBlock
from minray.store.holds import Gone, Hold
from minray.store.segments import Segments, choose
from minray.wire.messages import ExtentRequest, Free, Message, Narrow, Pin, Sealed, Unpin
from tests.store.support import KIB, MIB, NODE, World, object_id, pattern


@pytest.fixture
def world(shm: Segments) -> Iterator[World]:
    made = World(shm)
    yield made
    made.settle()
    made.check()
    made.close()


def sent(world: World, kind: type[Message]) -> list[Any]:
    return [message for to, message in world.log if to == "node" and isinstance(message, kind)]


def put(client: StoreClient, data: bytes) -> Any:
    return client.write(len(data), [(0, data)])


def hold(client: StoreClient, oid: bytes, location: Any) -> Hold:
    (held,) = client.acquire([(oid, location)])
    assert isinstance(held, Hold), held
    return held


X, Y = object_id(1), object_id(2)


# --- private objects ------------------------------------------------------------------------------


def test_a_put_loop_costs_one_message_and_reuses_its_memory(world: World) -> None:
    client = world.client("a")
    seen = set()
    for number in range(20):
        location = put(client, pattern(number, 300 * KIB))
        seen.add(location)
        held = hold(client, X, location)
        assert held.view == pattern(number, 300 * KIB)
        held.release()
        client.free([(X, location)])
    assert len(seen) == 1
    assert [type(m) for to, m in world.log if to == "node"] == [ExtentRequest]


def test_references_are_dropped_before_room_is_looked_for(shm: Segments) -> None:
    world = World(shm, capacity=MIB, extent_size=MIB, grace_s=0.0)
    old: list[Any] = []

    def drop_references() -> None:
        while old:
            client.free([(X, old.pop())])

    client = world.client("a", before_allocate=drop_references)
    for _ in range(5):  # only one fits at a time
        location = put(client, b"x" * (MIB - KIB))
        old.append(location)
    world.close()


def test_a_private_object_dies_with_its_last_view(world: World) -> None:
    client = world.client("a")
    location = put(client, b"x" * 1000)
    held = hold(client, X, location)
    assert client.free_own(X, location) is True
    assert client.stats()["allocated_bytes"] > 0
    assert held.view == b"x" * 1000
    held.release()
    client.drain()
    assert client.stats()["allocated_bytes"] == 0
    assert client.free_own(X, location) is False


def test_an_empty_object(world: World) -> None:
    client = world.client("a")
    location = put(client, b"")
    held = hold(client, X, location)
    assert held.view is not None and held.view.nbytes == 0
    held.release()
    client.free([(X, location)])
    client.drain()
    assert client.stats()["allocated_bytes"] == 0


def test_idle_extents_go_back(world: World) -> None:
    client = world.client("a")
    location = put(client, b"x")
    now = world.clock.monotonic()
    assert client.trim_idle() is None
    client.free([(X, location)])
    assert client.trim_idle() == now + IDLE_S
    world.clock.advance(IDLE_S)
    assert client.trim_idle() is None
    world.settle()
    assert world.table.stats().segments == 0 and client.stats()["mappings"] == 0


def test_memory_that_others_need_goes_back_at_once(shm: Segments) -> None:
    world = World(shm, capacity=MIB, extent_size=MIB)
    first, second = world.client("a"), world.client("b")
    first.free([(X, put(first, b"x" * (MIB - KIB)))])
    put(second, b"y" * (MIB - KIB))
    assert world.table.stats().waiting == 0
    world.close()


# --- shared objects -------------------------------------------------------------------------------


def test_a_reported_object_is_read_elsewhere_and_comes_back_when_freed(world: World) -> None:
    writer, reader, owner = world.client("w"), world.client("r"), world.client("o")
    location = put(writer, pattern(1, 5000))
    writer.report([(X, location), (Y, (b"m" * 28, 1, 0, 1))], owner._worker_id)
    writer.report([(X, location)], owner._worker_id)
    held = hold(reader, X, location)
    assert held.view == pattern(1, 5000) and held.view.readonly
    assert reader.is_here(X, location) and not owner.is_here(X, location)
    again = hold(reader, X, location)
    assert len(sent(world, Sealed)) == len(sent(world, Pin)) == 1
    owner.free([(X, location)])
    world.settle()
    assert world.table.stats().objects == 1
    held.release()
    again.release()
    world.settle()
    assert sent(world, Unpin) == [Unpin([X])] and sent(world, Free)
    assert world.table.stats().objects == 0
    assert writer.stats()["allocated_bytes"] == reader.stats()["held"] == 0


def test_one_message_pins_many(world: World) -> None:
    writer, reader = world.client("w"), world.client("r")
    objects = [(object_id(n), put(writer, pattern(n, 200))) for n in range(50)]
    writer.report(objects)
    missing = (object_id(99), (NODE, 99, 0, 10))
    held = reader.acquire([*objects, missing])
    assert len(sent(world, Pin)) == 1
    assert all(isinstance(h, Hold) and h.view == pattern(n, 200) for n, h in enumerate(held[:-1]))
    assert isinstance(held[-1], Gone) and "not on this node" in repr(held[-1])
    for one in held[:-1]:
        assert isinstance(one, Hold)
        one.release()


def test_a_writer_that_reads_its_freed_result_waits_with_the_reuse(world: World) -> None:
    writer, owner = world.client("w"), world.client("o")
    location = put(writer, pattern(1, 5000))
    writer.report([(X, location)], owner._worker_id)
    held = hold(writer, X, location)
    owner.free([(X, location)])
    world.settle()
    assert world.table.stats().objects == 0
    put(writer, pattern(2, 5000))
    assert held.view == pattern(1, 5000)
    (gone,) = writer.acquire([(X, location)])
    assert isinstance(gone, Gone) and "freed" in gone.reason
    held.release()
    writer.drain()
    assert writer.stats()["written"] == 1


def test_gone_when_nobody_knows_it(world: World) -> None:
    reader = world.client("r")
    (gone,) = reader.acquire([(X, (NODE, 5, 0, 10))])
    assert isinstance(gone, Gone)
    world.settle()


def test_a_segment_that_vanished(world: World) -> None:
    writer, reader = world.client("w"), world.client("r")
    location = put(writer, b"x" * 100)
    writer.report([(X, location)])
    (name,) = world.segments.list(world.table._prefix)
    world.segments.unlink(name)
    (gone,) = reader.acquire([(X, location)])
    assert isinstance(gone, Gone) and "could not be mapped" in gone.reason
    world.settle()
    assert sent(world, Unpin) == [Unpin([X])]


def test_readers_unmap_what_is_unlinked(world: World) -> None:
    writer, reader = world.client("w"), world.client("r")
    location = put(writer, b"x" * 100)
    writer.report([(X, location)])
    held = hold(reader, X, location)
    held.release()
    world.settle()
    assert reader.stats()["mappings"] == 1  # kept, for the next read
    writer.free([(X, location)])
    world.settle()
    writer.trim_idle(world.clock.monotonic() + 100)
    world.settle()
    assert reader.stats()["mappings"] == writer.stats()["mappings"] == 0


# --- one kept part does not keep the others -------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_a_kept_part_keeps_only_itself(world: World, shared: bool) -> None:
    writer = world.client("w")
    reader = world.client("r") if shared else writer
    location = put(writer, pattern(1, 64 * KIB))
    if shared:
        writer.report([(X, location)])
    held = hold(reader, X, location)
    kept = held.view[8 * KIB : 12 * KIB]  # type: ignore[index]
    held.also_parts([(0, 8 * KIB), (8 * KIB, 12 * KIB), (12 * KIB, 64 * KIB)])
    held.release()
    held.release_part(0)
    held.release_part(2)
    world.settle()
    writer.free([(X, location)])
    world.settle()
    assert writer.stats()["allocated_bytes"] == 4 * KIB
    put(writer, b"z" * (50 * KIB))  # into what came back
    assert kept == pattern(1, 64 * KIB)[8 * KIB : 12 * KIB]
    held.release_part(1)
    del kept
    world.settle()
    assert writer.stats()["allocated_bytes"] == 50 * KIB


def test_a_list_that_shrinks_item_by_item_sends_few_messages(world: World) -> None:
    writer, reader = world.client("w"), world.client("r")
    location = put(writer, bytes(256 * KIB))
    writer.report([(X, location)])
    held = hold(reader, X, location)
    held.also_parts([(n * KIB, (n + 1) * KIB) for n in range(256)])
    held.release()
    for n in range(256):
        held.release_part(n)
        world.settle()
    assert 4 <= len(sent(world, Narrow)) <= 9
    assert sent(world, Unpin) == [Unpin([X])]


def test_reading_the_whole_again_after_narrowing_takes_a_new_pin(world: World) -> None:
    writer, reader = world.client("w"), world.client("r")
    location = put(writer, pattern(1, 64 * KIB))
    writer.report([(X, location)])
    held = hold(reader, X, location)
    held.also_parts([(0, KIB)])
    held.release()
    world.settle()
    assert len(sent(world, Narrow)) == 1
    again = hold(reader, X, location)
    assert len(sent(world, Pin)) == 2
    writer.free([(X, location)])
    world.settle()
    assert world.table.stats().objects == 1 and again.view == pattern(1, 64 * KIB)
    again.release()
    held.release_part(0)
    world.settle()
    assert world.table.stats().objects == 0


def test_no_narrowing_while_a_pin_of_the_whole_is_under_way(world: World) -> None:
    writer, reader = world.client("w"), world.client("r")
    location = put(writer, pattern(1, 64 * KIB))
    writer.report([(X, location)])
    held = hold(reader, X, location)
    held.also_parts([(0, KIB)])
    held.release()
    got: list[Any] = []
    reader.acquire_async([(X, location)], lambda held, error: got.extend(held))
    reader.drain()
    writer.free([(X, location)])
    world.settle()
    if isinstance(got[0], Hold):
        assert got[0].view == pattern(1, 64 * KIB)
        assert world.table.stats().object_bytes == 64 * KIB
        assert sent(world, Narrow) == []
        got[0].release()
    held.release_part(0)
    world.settle()
    assert world.table.stats().objects == 0


# --- waiting --------------------------------------------------------------------------------------


def test_full_is_an_error_that_says_with_what(shm: Segments) -> None:
    world = World(shm, capacity=MIB, grace_s=1.0)
    client = world.client("a")
    with pytest.raises(StoreFull, match=r"2\.1 MB; the store holds 0 B of 1\.05 MB") as caught:
        put(client, bytes(2 * MIB))
    assert caught.value.requested == 2 * MIB
    world.close()


def test_without_waiting(world: World) -> None:
    client = world.client("a")
    with pytest.raises(StoreWouldBlock, match="100 bytes"):
        client.write(100, [(0, bytes(100))], may_wait=False)
    put(client, b"x")
    client.write(100, [(0, bytes(100))], may_wait=False)


def test_a_timeout_leaves_nothing_held(world: World) -> None:
    writer, reader = world.client("w"), world.client("r")
    location = put(writer, b"x" * 100)  # not reported: the pin waits
    with pytest.raises(TimeoutError, match=r"1\.0 s"):
        reader.acquire([(X, location)], timeout=1.0)
    writer.report([(X, location)])
    world.settle()
    assert sent(world, Unpin) == [Unpin([X])]
    assert reader.stats()["held"] == 0


def test_a_write_that_timed_out_keeps_the_extent_for_the_next(shm: Segments) -> None:
    world = World(shm, capacity=MIB, extent_size=MIB)
    first, second = world.client("a"), world.client("b")
    location = put(first, bytes(900 * KIB))
    with pytest.raises(TimeoutError):
        second.write(900 * KIB, [], timeout=2.0)
    first.free([(X, location)])
    world.advance_to(world.clock.monotonic() + 1.0)  # the next Trim
    world.settle()
    assert second.stats()["extents"] == 1 and second.stats()["allocated_bytes"] == 0
    second.write(900 * KIB, [], may_wait=False)
    world.close()


def test_who_waits_gets_what_is_freed_here_meanwhile(shm: Segments) -> None:
    """In an extent that cannot go back, since something else lives in it."""
    world = World(shm, capacity=MIB, extent_size=16 * MIB, grace_s=10.0)
    writer, owner = world.client("w"), world.client("o")
    put(writer, bytes(100))
    locations = [put(writer, bytes(10 * KIB)) for _ in range(6)]
    for n, location in enumerate(locations):
        writer.report([(object_id(n), location)], owner._worker_id)
    while world.table.stats().reserved < MIB:
        put(owner, bytes(60 * KIB))
    world.settle()
    before = world.clock.monotonic()
    owner.free([(object_id(n), location) for n, location in enumerate(locations)])
    put(writer, bytes(40 * KIB))
    assert world.clock.monotonic() == before
    world.close()


class _Interrupting:
    """Waits that a KeyboardInterrupt ends: before the answer, or after it came."""

    def __init__(self, world: World, settle: bool) -> None:
        self.world, self.settle = world, settle

    def make(self) -> None:
        return None

    def notify(self, waiter: None) -> None:
        return None

    def wait(self, waiter: None, timeout: float | None) -> bool:
        if self.settle:
            while self.world.deliver():
                pass
        raise KeyboardInterrupt


@pytest.mark.parametrize("answered", [False, True])
def test_an_interrupted_wait_leaves_nothing_held(world: World, answered: bool) -> None:
    writer, reader = world.client("w"), world.client("r")
    location = put(writer, b"x" * 100)
    writer.report([(X, location)])
    world.settle()
    reader._waits = reader._memory_waits = _Interrupting(world, answered)
    with pytest.raises(KeyboardInterrupt):
        reader.acquire([(X, location)])
    with pytest.raises(KeyboardInterrupt):
        reader.write(100, [(0, bytes(100))])
    world.settle()
    stats = reader.stats()
    assert stats["held"] == stats["pending"] == stats["allocated_bytes"] == 0
    assert len(sent(world, Unpin)) == 1


def test_acquire_async_runs_its_callback_once(world: World) -> None:
    writer, reader = world.client("w"), world.client("r")
    location = put(writer, b"x" * 100)
    writer.report([(X, location)])
    got: list[Any] = []
    reader.acquire_async([(X, location)], lambda held, error: got.append((held, error)))
    assert got == []
    world.settle()
    ((held, error),) = got
    assert error is None and held[0].view == b"x" * 100
    writer.acquire_async([(X, location)], lambda held, error: got.append((held, error)))
    assert len(got) == 2
    for one, _ in got:
        one[0].release()


def test_a_lost_node_ends_every_wait(world: World) -> None:
    writer, reader = world.client("w"), world.client("r")
    location = put(writer, b"x" * 100)
    got: list[Any] = []
    reader.acquire_async([(X, location)], lambda held, error: got.append(error))
    lost = StoreClosed("the node is gone")
    reader.fail(lost)
    assert got == [lost]
    with pytest.raises(StoreClosed, match="the node is gone"):
        reader.acquire([(X, location)])
    with pytest.raises(StoreClosed):
        put(reader, b"x")
    world.to_node[reader._worker_id].clear()
    world.kill(reader)


# --- shortage, failures ---------------------------------------------------------------------------


def test_a_full_file_system_is_an_error_and_nothing_leaks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = world.client("a")
    put(client, b"x")
    if client._maps[1]._fd < 0:
        pytest.skip("segments are not written through descriptors here")

    def full(fd: int, data: Any, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(StoreFull, match="No space left on device"):
            put(client, bytes(500 * KIB))
    put(client, bytes(500 * KIB))
    assert client.stats()["allocated_bytes"] == 64 + 500 * KIB


def test_a_failing_source_leaks_nothing(world: World) -> None:
    client = world.client("a")
    with pytest.raises(TypeError):
        client.write(100, [(0, b"ok"), (10, object())])
    assert client.stats()["allocated_bytes"] == 0
    client.check_invariants()


def test_an_extent_that_cannot_be_mapped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    client = world.client("a")

    def no_more(name: str, size: int, *, writable: bool = False) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(world.segments, "open", no_more)
        with pytest.raises(StoreError, match="Too many open files"):
            put(client, b"x")
    world.settle()
    assert world.table.stats().segments == 0


# --- finalizers, closing, forks -------------------------------------------------------------------


def test_finalizers_ask_once_for_a_drain(world: World) -> None:
    calls: list[int] = []
    client = world.client("a", wake=lambda: calls.append(1))
    locations = [put(client, b"x" * 100) for _ in range(3)]
    held = [hold(client, object_id(n), location) for n, location in enumerate(locations)]
    for one in held:
        one.release()
    assert calls == [1]
    client.drain()
    client.drain()
    hold(client, X, locations[0]).release()
    assert calls == [1, 1]


def test_close_keeps_live_views(world: World) -> None:
    client = world.client("a")
    held = hold(client, X, put(client, pattern(3, 10_000)))
    array = np.frombuffer(held.view, np.uint8)  # type: ignore[arg-type]
    client.close()
    with pytest.raises(StoreClosed, match="shut down"):
        put(client, b"x")
    assert array.tobytes() == pattern(3, 10_000)
    held.release()
    del array
    gc.collect()
    client.close()
    assert client.stats()["mappings"] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_touches_nothing(world: World) -> None:
    client = world.client("a")
    location = put(client, pattern(1, 1000))
    held = hold(client, X, location)
    read_end, write_end = os.pipe()
    with client._lock:  # whoever held it in the parent does not exist in the child
        child = os.fork()
        if child == 0:
            try:
                client.after_fork_child()
                ok = held.view == pattern(1, 1000)
                held.release()
                client.drain()
                for call in (lambda: put(client, b"x"), lambda: client.acquire([(X, location)])):
                    try:
                        call()
                        ok = False
                    except StoreClosed as error:
                        ok = ok and "forked" in str(error)
                os.write(write_end, b"1" if ok else b"0")
            finally:
                os._exit(0)
    os.close(write_end)
    assert os.read(read_end, 1) == b"1"
    os.close(read_end)
    os.waitpid(child, 0)
    assert not world.to_node[client._worker_id]
    held.release()


def test_many_threads(tmp_path: Path) -> None:
    """Real threads against a node on a thread of its own."""
    world = World(choose("auto", str(tmp_path)), capacity=64 * MIB)
    lock = threading.RLock()  # the node's thread is whoever sends
    clients: list[StoreClient] = []

    def send_from(worker_id: bytes) -> Any:
        def send(message: Message) -> None:
            with lock:
                world.authority.on_message(worker_id, message, world.clock.monotonic())

        return send

    by_id: dict[bytes, StoreClient] = {}
    world.authority._send = lambda worker, message: by_id[worker].on_message(message)
    for name in ("a", "b"):
        worker_id = name.encode() * 28
        client = StoreClient(
            world.segments, node_id=NODE, worker_id=worker_id, send=send_from(worker_id),
            before_allocate=None, clock=world.clock.monotonic,
        )  # fmt: skip
        by_id[worker_id] = client
        clients.append(client)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            writer, reader = clients[number % 2], clients[1 - number % 2]
            for step in range(40):
                oid = object_id(number * 1000 + step)
                content = pattern(number * 1000 + step, 1000 + 5000 * (step % 7))
                location = put(writer, content)
                writer.report([(oid, location)])
                (held,) = reader.acquire([(oid, location)])
                assert isinstance(held, Hold)
                assert held.view == content
                writer.free([(oid, location)])
                assert held.view == content
                held.release()
                reader.drain()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(before)
    assert not errors, errors
    for client in clients:
        client.drain()
        client.check_invariants()
        assert client.stats()["allocated_bytes"] == client.stats()["held"] == 0
        client.close()
    world.table.check_invariants()
    assert world.table.stats().objects == 0
    world.authority.shutdown()
