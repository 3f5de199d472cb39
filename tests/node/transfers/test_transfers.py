"""Objects between real stores over real sockets: pulled once, right to the byte, gone when freed."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minray.node.transfers import channel
from minray.node.transfers.lending import FANOUT
from minray.store.holds import Hold
from minray.wire.messages import PullDone, PullGranted, PullObject, pack
from minray.wire.tls import TlsSocket
from tests.node.transfers.nodes import LARGE, WHOLE, Cluster, HoldBack, cluster, miss, read, wait_for
from tests.store.support import MIB, object_id, pattern
from tests.wire.certificates import make_authority, make_certificate
from tests.wire.support import LONG, Recorder, hello, make_reactor


@pytest.fixture(params=["tcp-shm", "unix-file"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    transport, segments = request.param.split("-")
    with cluster(tmp_path, transport=transport, segments=segments) as made:
        yield made


@pytest.fixture
def hold_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[HoldBack]:
    made = HoldBack(monkeypatch)
    yield made
    made.go_on()


@pytest.mark.parametrize("size", [WHOLE, LARGE])
def test_a_reader_gets_an_object_of_another_node(world: Cluster, size: int) -> None:
    a, b = world.add(), world.add()
    owner, reader = a.client("owner"), b.client("reader")
    oid, location, content = world.put(owner, size)
    held = read(reader, oid, location)
    assert held.view == content
    assert b.do(lambda: b.transfers.copies(oid)) == [b.node_id]
    wait_for(lambda: a.do(lambda: a.transfers.copies(oid)) == [a.node_id, b.node_id])
    held.release()
    again = read(reader, oid, location)  # the copy is still there
    assert again.view == content and b.stats()["pulls"] == 0
    again.release()


def test_it_goes_everywhere_when_its_owner_frees_it(world: Cluster) -> None:
    a, b = world.add(), world.add()
    owner, reader = a.client("owner"), b.client("reader")
    oid, location, content = world.put(owner, LARGE)
    held = read(reader, oid, location)
    wait_for(lambda: len(a.do(lambda: a.transfers.copies(oid))) == 2)
    owner.free([(oid, location)])
    wait_for(lambda: a.objects() == 0)
    assert held.view == content  # a view keeps it
    held.release()
    reader.drain()
    wait_for(lambda: b.objects() == 0)
    assert miss(reader, oid, location).kind == "freed"


def test_many_readers_share_one_transfer(world: Cluster) -> None:
    a, b = world.add(), world.add()
    owner = a.client("owner")
    readers = [b.client(f"r{n}") for n in range(4)]
    objects = [world.put(owner, LARGE) for _ in range(3)]
    asked: list[bytes] = []
    handle = a.transfers.from_puller

    def spy(link: Any, message: Any) -> None:
        if isinstance(message, PullObject):
            asked.append(message.object_id)
        handle(link, message)

    a.transfers.from_puller = spy
    got: list[Any] = []
    for reader in readers:
        for _ in range(2):
            reader.acquire_async([(oid, where) for oid, where, _ in objects], lambda held, error: got.append(held))
    wait_for(lambda: len(got) == 8)
    for held in got:
        assert [hold.view == content for hold, (_, _, content) in zip(held, objects, strict=True)] == [True] * 3
    assert sorted(asked) == sorted(oid for oid, _, _ in objects)


def test_a_large_object_goes_to_two_at_a_time_and_on_from_those_who_have_it(
    world: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, *others = (world.add() for _ in range(7))
    oid, location, content = world.put(a.client("owner"), 6 * MIB)
    gate, send, got = threading.Event(), channel._send, []

    def held(sock: Any, data: Any) -> int:
        if len(data) > 16:
            gate.wait(LONG)
        return send(sock, data)

    monkeypatch.setattr(channel, "_send", held)
    try:
        for node in others:
            reader = node.client("reader")
            reader.acquire_async([(oid, location)], lambda held, error: got.extend(held))
        wait_for(lambda: a.do(lambda: len(a.transfers.lending._loans)) == len(others))
        wait_for(lambda: a.stats()["loans"] == FANOUT)  # its pins
        assert a.stats()["served"] == FANOUT and not any(node.stats()["served"] for node in others)
    finally:
        gate.set()
    wait_for(lambda: len(got) == len(others))
    assert all(hold.view == content for hold in got)
    served = [node.stats()["served"] for node in world.nodes]
    assert sum(served) == len(others) and served[0] < len(others), served
    assert [node.stats()["received_bytes"] for node in others] == [6 * MIB] * len(others)


def test_a_pull_waits_for_what_its_writer_has_not_reported_yet(world: Cluster) -> None:
    a, b = world.add(), world.add()
    writer, reader = a.client("writer"), b.client("reader")
    location = writer.write(LARGE, [(0, pattern(1, LARGE))])
    oid = object_id(1, writer._worker_id)
    got: list[Any] = []
    reader.acquire_async([(oid, location)], lambda held, error: got.extend(held))
    wait_for(lambda: a.stats()["pullers"] == 1)
    assert not got
    writer.report([(oid, location)])
    wait_for(lambda: bool(got))
    assert got[0].view == pattern(1, LARGE)


def test_an_owner_on_another_node_frees_a_result(world: Cluster) -> None:
    a, b, c = world.add(), world.add(), world.add()
    worker, owner, reader = a.client("worker"), b.client("owner"), c.client("reader")
    content = pattern(1, LARGE)
    oid = object_id(1, owner._worker_id)
    location = worker.write(LARGE, [(0, content)])
    worker.report([(oid, location)], owner._worker_id)
    holds = [read(owner, oid, location), read(reader, oid, location)]
    wait_for(lambda: len(a.do(lambda: a.transfers.copies(oid))) == 3)
    owner.free([(oid, location)])
    wait_for(lambda: a.objects() == 0)
    assert all(hold.view == content for hold in holds)
    for hold in holds:
        hold.release()
    owner.drain()
    reader.drain()
    wait_for(lambda: b.objects() == c.objects() == 0)


def test_the_death_of_the_owner_frees_all_copies(world: Cluster) -> None:
    a, b = world.add(), world.add()
    owner, reader = a.client("owner"), b.client("reader")
    oid, location, _ = world.put(owner, LARGE)
    read(reader, oid, location).release()
    reader.drain()
    wait_for(lambda: len(a.do(lambda: a.transfers.copies(oid))) == 2)
    a.kill(owner)
    wait_for(lambda: a.objects() == b.objects() == 0)


def test_when_its_reader_dies_a_transfer_ends(world: Cluster, hold_back: HoldBack) -> None:
    a, b = world.add(), world.add()
    owner, reader = a.client("owner"), b.client("reader")
    oid, location, _ = world.put(owner, LARGE)
    hold_back.after(MIB)
    reader.acquire_async([(oid, location)], lambda held, error: None)
    hold_back.wait()
    b.kill(reader)
    wait_for(lambda: b.stats()["pulls"] == 0)
    hold_back.go_on()
    wait_for(lambda: a.stats()["loans"] == 0)
    assert b.objects() == 0 and b.stats()["rooms"] == 0
    b.do(lambda: b.transfers._client.trim_idle(idle_s=0.0))
    assert b.do(lambda: b.store.stats().segments) == 0


def test_guests_make_room(world: Cluster) -> None:
    a, b = world.add(), world.add(capacity=8 * MIB)
    owner, reader = a.client("owner"), b.client("reader")
    objects = [world.put(owner, LARGE) for _ in range(5)]
    for oid, location, content in objects:
        held = read(reader, oid, location)
        assert held.view == content
        held.release()
        reader.drain()
    assert b.objects() <= 2
    last = objects[-1][0]
    wait_for(lambda: b.node_id in a.do(lambda: a.transfers.copies(last)))
    first = objects[0][0]
    wait_for(lambda: a.do(lambda: a.transfers.copies(first)) == [a.node_id])


def test_without_room_for_a_copy_the_reader_is_told(world: Cluster) -> None:
    a, b = world.add(), world.add(capacity=4 * MIB, grace_s=0.05)
    owner, reader = a.client("owner"), b.client("reader")
    world.put(reader, 3 * MIB)
    oid, location, _ = world.put(owner, LARGE)
    gone = miss(reader, oid, location)
    assert gone.kind == "full" and "no room for an object of 3.15 MB" in gone.reason


# --- nodes die, links break ---------------------------------------------------------------------------


def test_a_dead_node_is_not_asked(world: Cluster) -> None:
    a, b = world.add(), world.add()
    owner, reader = a.client("owner"), b.client("reader")
    oid, location, _ = world.put(owner, LARGE)
    a.stop()
    gone = miss(reader, oid, location)
    assert gone.kind == "lost" and a.node_id.hex()[:8] in gone.reason


def test_when_the_source_dies_another_copy_goes_on_where_it_ended(world: Cluster, hold_back: HoldBack) -> None:
    a, b, c = world.add(), world.add(), world.add()
    owner, first, second = a.client("owner"), b.client("first"), c.client("second")
    oid, location, content = world.put(owner, LARGE)
    read(first, oid, location)
    wait_for(lambda: len(a.do(lambda: a.transfers.copies(oid))) == 2)
    began: list[int] = []
    start = channel.Receiver.start

    def spy(self: Any, sock: Any, *, used: bool) -> None:
        began.append(self.at)
        start(self, sock, used=used)

    hold_back.monkeypatch.setattr(channel.Receiver, "start", spy)
    hold_back.after(MIB)
    got: list[Any] = []
    second.acquire_async([(oid, location)], lambda held, error: got.extend(held))
    hold_back.wait()
    world.lose(a)
    wait_for(lambda: bool(got))
    assert isinstance(got[0], Hold) and got[0].view == content
    assert began[0] == 0 and began[1] > 0
    assert c.stats()["received_bytes"] == LARGE, "nothing came twice"


def test_without_another_copy_it_is_lost(world: Cluster, hold_back: HoldBack) -> None:
    a, b = world.add(), world.add()
    owner, reader = a.client("owner"), b.client("reader")
    oid, location, _ = world.put(owner, LARGE)
    hold_back.after(MIB)
    got: list[Any] = []
    reader.acquire_async([(oid, location)], lambda held, error: got.extend(held))
    hold_back.wait()
    world.lose(a)
    wait_for(lambda: bool(got))
    assert got[0].kind == "lost"
    b.do(lambda: b.transfers._client.trim_idle(idle_s=0.0))
    assert b.do(lambda: b.store.stats().segments) == 0


def test_a_guest_outlives_its_home(world: Cluster) -> None:
    a, b = world.add(), world.add()
    owner, reader = a.client("owner"), b.client("reader")
    oid, location, content = world.put(owner, LARGE)
    read(reader, oid, location).release()
    reader.drain()
    world.lose(a)
    assert read(reader, oid, location).view == content


def test_a_copy_is_found_though_nobody_is_left_who_lists_it(world: Cluster) -> None:
    a, b, c, d = world.add(), world.add(), world.add(), world.add()
    owner, first, second = a.client("owner"), c.client("first"), d.client("second")
    oid, location, content = world.put(owner, LARGE)
    small, where, short = world.put(owner, WHOLE)
    for one, place in ((oid, location), (small, where)):
        read(first, one, place).release()
    world.lose(a)
    assert read(second, oid, location).view == content
    assert read(second, small, where).view == short
    assert b.objects() == 0 and b.stats()["loans"] == 0


def test_a_broken_link_is_made_again(world: Cluster, hold_back: HoldBack) -> None:
    a, b = world.add(), world.add()
    owner, reader = a.client("owner"), b.client("reader")
    old, where, _ = world.put(owner, WHOLE)
    read(reader, old, where).release()
    reader.drain()
    oid, location, content = world.put(owner, LARGE)
    hold_back.after(MIB)
    got: list[Any] = []
    reader.acquire_async([(oid, location)], lambda held, error: got.extend(held))
    hold_back.wait()
    lost: list[Any] = []
    on_lost = b.transfers.source_lost

    def spy(*end: Any) -> None:
        on_lost(*end)
        lost.append(end)

    b.transfers.source_lost = spy
    b.do(lambda: b.transfers._sources[a.node_id].conn.close())
    wait_for(lambda: bool(lost))
    hold_back.go_on()
    wait_for(lambda: bool(got))
    assert got[0].view == content
    assert b.objects() == 1  # nobody would tell us of the end of the old one: it has faded


def test_the_end_of_a_node_in_the_middle_leaves_nothing(world: Cluster, hold_back: HoldBack) -> None:
    a, b = world.add(), world.add()
    owner, reader = a.client("owner"), b.client("reader")
    oid, location, _ = world.put(owner, LARGE)
    hold_back.after(MIB)
    reader.acquire_async([(oid, location)], lambda held, error: None)
    hold_back.wait()
    b.stop()
    hold_back.go_on()
    wait_for(lambda: a.stats()["senders"] == a.stats()["loans"] == 0)


# --- strangers ------------------------------------------------------------------------------------------


def test_a_node_with_another_token_gets_nothing(tmp_path: Path) -> None:
    with cluster(tmp_path) as world:
        a, b = world.add(), world.add(token=b"something else")
        owner, reader = a.client("owner"), b.client("reader")
        oid, location, _ = world.put(owner, LARGE)
        gone = miss(reader, oid, location)
        assert gone.kind == "lost" and "wrong token" in gone.reason
        assert a.stats()["pullers"] == 0


def test_a_data_socket_serves_tickets_only(tmp_path: Path) -> None:
    with cluster(tmp_path) as world:
        a, b = world.add(), world.add()
        oid, location, _ = world.put(a.client("owner"), LARGE)
        read(b.client("reader"), oid, location)
        made: list[Any] = []
        b.do(lambda: b.transfers._sockets.make(a.node_id, lambda sock, reason: made.append((sock, reason))))
        wait_for(lambda: bool(made))
        ((sock, reason),) = made
        with sock:
            assert not reason
            sock.send(bytes(16))
            assert sock.recv(1) == b""
        wait_for(lambda: a.stats()["senders"] <= 1)


def test_a_data_socket_that_was_given_up_is_made_again(tmp_path: Path) -> None:
    with cluster(tmp_path) as world:
        a, b = world.add(), world.add()
        owner, reader = a.client("owner"), b.client("reader")
        first = world.put(owner, LARGE)
        read(reader, *first[:2])
        wait_for(lambda: b.stats()["sockets"] == 1)
        for sender in a.do(lambda: list(a.transfers._senders)):
            sender.stop()
        wait_for(lambda: a.stats()["senders"] == 0)
        oid, location, content = world.put(owner, LARGE)
        assert read(reader, oid, location).view == content
        b.do(lambda: b.transfers._sockets.forget(a.node_id))


def test_with_tls_the_bytes_are_encrypted_too(tmp_path: Path, hold_back: HoldBack) -> None:
    folder = tmp_path / "pki"
    folder.mkdir()
    make_authority(folder, "ours")
    with cluster(tmp_path, tls=make_certificate(folder, "node", "ours")) as world:
        a, b, c = world.add(), world.add(), world.add()
        owner, readers = a.client("owner"), [node.client("reader") for node in (b, c)]
        for size in (WHOLE, 5 * LARGE):
            oid, location, content = world.put(owner, size)
            for reader in readers:
                held = read(reader, oid, location)
                assert held.view == content
        (sender, *_) = a.do(lambda: list(a.transfers._senders))
        assert isinstance(sender._sock, TlsSocket)
        oid, location, _ = world.put(owner, LARGE)  # and one that does not arrive
        hold_back.after(MIB)
        readers[0].acquire_async([(oid, location)], lambda held, error: None)
        hold_back.wait()
        b.kill(readers[0])
        wait_for(lambda: b.stats()["pulls"] == 0)
        hold_back.go_on()


def test_nonsense_closes_a_link(tmp_path: Path) -> None:
    with cluster(tmp_path) as world:
        a = world.add()
        reactor = make_reactor()
        try:
            seen = Recorder(reactor)
            conn = reactor.dial(a.endpoint, hello("node"), seen)
            conn.send(pack(PullDone(77)))  # it may have been free in between
            conn.send(pack(PullGranted(1, 1, b"")))
            assert seen.until_closed() is not None
        finally:
            reactor.close()
        wait_for(lambda: a.stats()["pullers"] == 0)


# --- everything at once ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_many_objects_between_three_small_nodes(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with cluster(tmp_path) as world:
        nodes = [world.add(capacity=12 * MIB) for _ in range(3)]
        clients = [node.client(f"c{n}") for node in nodes for n in range(2)]
        objects: list[Any] = []
        for _ in range(120):
            if len(objects) < 8:
                owner = rng.choice(clients)
                objects.append((owner, *world.put(owner, rng.choice((WHOLE, 300_000, MIB)))))
            owner, oid, location, content = rng.choice(objects)
            reader = rng.choice(clients)
            held = read(reader, oid, location)
            assert held.view == content
            held.release()
            reader.drain()
            if rng.random() < 0.2:
                objects.remove((owner, oid, location, content))
                owner.free([(oid, location)])
        for owner, oid, location, _ in objects:
            owner.free([(oid, location)])
        wait_for(lambda: not any(node.objects() for node in nodes))
        for node in nodes:
            node.check()
            assert node.stats()["loans"] == node.stats()["pulls"] == node.stats()["rooms"] == 0
