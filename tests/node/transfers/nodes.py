"""Real nodes as far as objects go: store, Transfers, reactor on a thread; and processes that read and write there.

All in this process: what a process says to its node is posted to the node's reactor.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minray.node.transfers import channel
from minray.node.transfers.service import Transfers
from minray.store.authority import StoreAuthority
from minray.store.client import StoreClient
from minray.store.extents import ExtentTable
from minray.store.holds import Gone, Hold
from minray.store.segments import choose
from minray.wire.messages import Hello, LeftBehind, Location, Message
from minray.wire.reactor import Reactor
from tests.store.support import MIB, object_id, pattern
from tests.wire.support import LONG, TOKEN, make_reactor

WHOLE, LARGE = 100_000, 3 * MIB  # in one message; through a data socket


class Node:
    """One node."""

    def __init__(self, cluster: Cluster, folder: Path, *, capacity: int, grace_s: float, token: bytes) -> None:
        folder.mkdir()
        self.cluster = cluster
        self.node_id = os.urandom(28)
        self.reactor: Reactor = make_reactor(folder.name, background=False, token=token, tls=cluster.tls)
        self.clients: dict[bytes, StoreClient] = {}
        table = ExtentTable(
            capacity,
            node_id=self.node_id,
            prefix=f"mrt{os.urandom(4).hex()}-",
            extent_size=MIB,
            grace_s=grace_s,
        )
        self.segments = choose(cluster.segments, str(folder))
        self.store = StoreAuthority(table, self.segments, self._to_client)
        self.endpoint = self.reactor.listen(cluster.request(folder), lambda conn: self.transfers.on_peer(conn))
        hello = Hello("node", self.node_id, self.node_id, b"", os.getpid(), 0.0, self.endpoint)
        self.transfers = Transfers(
            self.reactor, self.store, self.node_id, hello, cluster.endpoint_of, self._others, settled=self._settled
        )
        self.alive = True
        self._thread = threading.Thread(target=self.reactor.run_forever, name=folder.name)
        self._thread.start()

    def _others(self) -> list[bytes]:
        return [one.node_id for one in self.cluster.nodes if one.alive and one is not self]

    def _to_client(self, worker_id: bytes, message: Message) -> None:
        client = self.clients.get(worker_id)
        if client is not None and not isinstance(message, LeftBehind):  # that is for its owner: worker.strays
            client.on_message(message)

    def _settled(self) -> None:
        """As node.service does: the store has its time."""
        due = self.store.next_deadline()
        if due is not None and self.alive:
            self.reactor.call_later(max(0.0, due - self.transfers.now()), self._tick)

    def _tick(self) -> None:
        if self.alive:
            self.store.tick(self.transfers.now())
            self._settled()

    def do(self, action: Callable[[], Any]) -> Any:
        """On the reactor's thread; returns what it returns."""
        done = threading.Event()
        result: list[Any] = []

        def run() -> None:
            try:
                result.append(action())
            finally:
                done.set()

        self.reactor.call_soon(run)
        assert done.wait(LONG)
        return result[0]

    def client(self, name: str) -> StoreClient:
        """A process of this node."""
        worker_id = name.encode().ljust(12, b".") + os.urandom(16)

        def send(message: Message) -> None:
            self.reactor.call_soon(lambda: self._from_client(worker_id, message))

        made = StoreClient(self.segments, node_id=self.node_id, worker_id=worker_id, send=send)
        self.do(lambda: self.clients.__setitem__(worker_id, made))
        return made

    def _from_client(self, worker_id: bytes, message: Message) -> None:
        if self.alive:
            self.store.on_message(worker_id, message, self.transfers.now())
            self._settled()

    def kill(self, client: StoreClient) -> None:
        """A process dies."""
        worker_id = client._worker_id
        self.do(lambda: self.clients.pop(worker_id))
        self.do(lambda: self.store.process_died(worker_id, self.transfers.now()))
        client.close()

    def check(self) -> None:
        """All invariants."""
        self.do(self.store.table.check_invariants)
        self.do(self.transfers.check_invariants)

    def stats(self) -> dict[str, int]:
        """Of the transfers."""
        found: dict[str, int] = self.do(self.transfers.stats)
        return found

    def objects(self) -> int:
        """How many are in the store."""
        count: int = self.do(lambda: self.store.stats().objects)
        return count

    def stop(self) -> None:
        """It dies, as far as others can tell."""
        if self.alive:
            self.alive = False
            self.do(self.transfers.close)
            self.reactor.stop()
            self._thread.join(LONG)
            self.reactor.close()
            self.store.shutdown()
            for client in self.clients.values():
                client.close()


class Cluster:
    """Some nodes, which know of each other."""

    def __init__(
        self, folder: Path, *, transport: str = "tcp", segments: str = "auto", tls: Any = None
    ) -> None:
        self.folder = folder
        self.transport = transport
        self.segments = segments
        self.tls = tls
        self.nodes: list[Node] = []
        self.made = 0

    def request(self, folder: Path) -> str:
        return "tcp:127.0.0.1:0" if self.transport == "tcp" else f"unix:{folder}/sock"

    def endpoint_of(self, node_id: bytes) -> str | None:
        return next((one.endpoint for one in self.nodes if one.node_id == node_id and one.alive), None)

    def add(self, *, capacity: int = 64 * MIB, grace_s: float = 10.0, token: bytes = TOKEN) -> Node:
        folder = self.folder / f"n{len(self.nodes)}"
        node = Node(self, folder, capacity=capacity, grace_s=grace_s, token=token)
        self.nodes.append(node)
        return node

    def put(self, client: StoreClient, size: int) -> tuple[bytes, Location, bytes]:
        """A new object of that process, known to its node: (id, location, content)."""
        self.made += 1
        content = pattern(self.made, size)
        oid = object_id(self.made, client._worker_id)
        location = client.write(size, [(0, content)])
        client.report([(oid, location)])
        return oid, location, content

    def lose(self, node: Node) -> None:
        """A node dies, and the others hear of it."""
        node.stop()
        for other in self.nodes:
            if other.alive:
                other.do(lambda other=other: other.transfers.node_gone(node.node_id))

    def close(self) -> None:
        for node in self.nodes:
            node.stop()


class HoldBack:
    """Lets a sender wait in the middle of an object, so that things can happen there."""

    def __init__(self, monkeypatch: Any) -> None:
        self.monkeypatch = monkeypatch
        self._reached = threading.Event()
        self._go_on = threading.Event()
        self._left = -1

    def after(self, count: int) -> None:
        """The next object stops after so many bytes."""
        self._left = count
        send = channel._send

        def held(sock: Any, data: Any) -> int:
            if self._left < 0 or len(data) <= 16:
                return send(sock, data)
            if self._left == 0:
                self._left = -1
                self._reached.set()
                self._go_on.wait(LONG)
                return send(sock, data)
            count = send(sock, data[: self._left])
            self._left -= count
            return count

        self.monkeypatch.setattr(channel, "_send", held)

    def wait(self) -> None:
        """Until it has stopped."""
        assert self._reached.wait(LONG)

    def go_on(self) -> None:
        """The rest may come."""
        self._go_on.set()


@contextlib.contextmanager
def cluster(folder: Path, **options: Any) -> Iterator[Cluster]:
    made = Cluster(folder, **options)
    try:
        yield made
        for node in made.nodes:
            if node.alive:
                node.check()
    finally:
        made.close()


def read(client: StoreClient, oid: bytes, location: Location) -> Hold:
    """It must be had."""
    (held,) = client.acquire([(oid, location)], timeout=LONG)
    assert isinstance(held, Hold), held
    return held


def miss(client: StoreClient, oid: bytes, location: Location) -> Gone:
    """It must not."""
    (held,) = client.acquire([(oid, location)], timeout=LONG)
    assert isinstance(held, Gone), held
    return held


def wait_for(condition: Callable[[], bool]) -> None:
    """Until another thread has done it."""
    pause = threading.Event()
    for _ in range(int(LONG / 0.005)):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it does not happen")
