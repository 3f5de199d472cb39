"""The head's process. First its composition with a node that only notes what it is told, in this process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minray._base.config import Config
from minray._base.process import own_identity
from minray.daemon import BOOT_LIMIT, Daemon, read_boot
from minray.wire.codec import encode
from minray.wire.messages import (
    ActorEnded,
    ActorStarted,
    ActorUpdate,
    Hello,
    Message,
    Reply,
    Request,
    StartActor,
    StopActor,
    Trim,
    Watch,
    pack,
    unpack,
)
from minray.wire.reactor import Connection, Reactor, Waiter
from tests.gcs.support import actor_id, spec

TOKEN = b"t" * 32
WAIT_S = 20.0


class FakeNode:
    """Starts and stops actors at once; notes everything else."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.got: list[Message] = []
        self.closed = threading.Event()
        self.shut_down: list[str] = []

    def start(self) -> None:
        info = {"node_id": self.daemon.node_id, "resources": {"CPU": 20_000}}
        self.daemon.gcs.send(Request(1, "add_node", (info,)))

    def available(self) -> dict[str, int]:
        return {"CPU": 10_000}

    def on_accept(self, conn: Connection) -> FakeNode:
        return self

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        self.got += [unpack(raw) for raw in messages]

    def on_close(self, conn: Connection, error: Exception | None) -> None:
        self.closed.set()

    def on_gcs(self, message: Message) -> None:
        if isinstance(message, StartActor):
            address = (self.daemon.node_id, b"w", "unix:/w")
            self.daemon.gcs.send(ActorStarted(message.actor_id, message.incarnation, address, None))
        elif isinstance(message, StopActor):
            self.daemon.gcs.send(ActorEnded(message.actor_id, message.incarnation, {"intended": True}))

    def shutdown(self, reason: str, done: Callable[[], None]) -> None:
        self.shut_down.append(reason)
        done()


class Head:
    """A Daemon on a thread, and the means to talk to it."""

    def __init__(self, folder: Path, driver: tuple[int, float] | None) -> None:
        listener = socket.socket(socket.AF_INET)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        self.endpoint = f"tcp:127.0.0.1:{listener.getsockname()[1]}"
        life, self.life = os.pipe()
        boot = {
            "config": Config().to_dict(),
            "session_dir": str(folder),
            "token": TOKEN,
            "endpoint": self.endpoint,
            "listen_fds": [listener.detach()],
            "driver": driver,
            "node_id": os.urandom(28),
            "cluster": None,
            "gcs": None,
        }
        self.daemon = Daemon(boot, life, FakeNode)
        self.node: FakeNode = self.daemon.node
        self.daemon.start()
        self.thread = threading.Thread(target=self.daemon.reactor.run_forever)
        self.thread.start()
        self.reactor = Reactor(token=TOKEN, max_frame=1 << 20, background=True, name="test")

    def connect(self, role: str = "worker", pid: int = 0) -> Client:
        return Client(self, Hello(role, os.urandom(28), b"", b"", pid or os.getpid(), 0.0, ""))

    def close(self) -> None:
        self.reactor.close()
        self.daemon.reactor.call_soon(lambda: self.daemon.end("the test is over"))
        assert self.ended()
        self.daemon.reactor.close()
        os.close(self.life)

    def ended(self) -> bool:
        self.thread.join(WAIT_S)
        return not self.thread.is_alive()


class Client:
    def __init__(self, head: Head, hello: Hello) -> None:
        self.head = head
        self.got: list[Message] = []
        self.wanted = 0
        self.waiter = Waiter()
        self.conn = head.reactor.dial(head.endpoint, hello, self)

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        self.got += [unpack(raw) for raw in messages]
        if len(self.got) >= self.wanted:
            self.head.reactor.notify(self.waiter)

    def on_close(self, conn: Connection, error: Exception | None) -> None:
        self.head.reactor.notify(self.waiter)

    def ask(self, method: str, *args: Any, answers: int = 1) -> list[Message]:
        """Send one Request; the next ``answers`` messages, of any kind."""
        self.got.clear()
        self.wanted, self.waiter = answers, Waiter()
        self.conn.send(pack(Request(7, method, args)))
        assert self.head.reactor.wait(self.waiter, WAIT_S)
        return list(self.got)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    made = Head(tmp_path, own_identity())
    yield made
    made.close()


def test_requests_go_to_the_gcs_and_the_rest_to_the_node_in_order(head: Head) -> None:
    client = head.connect()
    for message in (Watch(b"1", b""), Request(3, "node_info", ()), Trim()):
        client.conn.send(pack(message))
    assert client.ask("available_resources") == [Reply(7, True, {"CPU": 1.0})]
    assert head.node.got == [Watch(b"1", b""), Request(3, "node_info", ()), Trim()]
    assert client.ask("cluster_resources") == [Reply(7, True, {"CPU": 2.0})]


def test_an_actor_between_client_gcs_and_node(head: Head) -> None:
    client = head.connect()
    created, alive = client.ask("create_actor", spec(1), answers=2)
    assert isinstance(created, Reply) and created.ok
    assert isinstance(alive, ActorUpdate) and alive.state == "ALIVE"
    killed = client.ask("kill_actor", actor_id(1), True, answers=2)
    assert {getattr(message, "state", "reply") for message in killed} == {"reply", "DEAD"}


def test_a_tool_may_end_it(head: Head) -> None:
    assert head.connect("tool").ask("end_session") == [Reply(7, True, True)]
    assert head.ended() and head.node.shut_down == ["it was told to"]


def test_it_ends_when_its_driver_hangs_up(head: Head) -> None:
    os.close(head.life)
    assert head.ended() and head.node.shut_down == ["its driver hung up"]
    head.life = os.open(os.devnull, os.O_RDONLY)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfds")
def test_it_ends_with_its_driver_though_somebody_holds_the_pipe(tmp_path: Path) -> None:
    driver = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
    from minray._base.process import start_time

    head = Head(tmp_path, (driver.pid, start_time(driver.pid) or 0.0))
    driver.kill()
    assert head.ended() and head.node.shut_down == ["its driver has ended"]
    assert driver.stdin is not None
    driver.stdin.close()
    driver.wait()
    head.close()


def test_it_ends_at_once_if_its_driver_was_dead_before(tmp_path: Path) -> None:
    head = Head(tmp_path, (os.getpid(), own_identity()[1] - 100.0))  # our pid in an earlier life
    assert head.ended() and head.node.shut_down == ["its driver has ended"]
    head.close()


def test_a_lost_connection_of_a_living_driver_is_not_its_end(head: Head) -> None:
    driver = head.connect("driver")
    driver.ask("nodes")
    driver.conn.close()
    assert head.node.closed.wait(WAIT_S)
    assert head.connect().ask("nodes") and not head.node.shut_down


def test_one_that_stays_has_no_driver(tmp_path: Path) -> None:
    head = Head(tmp_path, None)
    os.close(head.life)
    assert head.connect().ask("nodes")
    head.life = os.open(os.devnull, os.O_RDONLY)
    head.close()


def pipe_with(data: bytes) -> int:
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return reader


def test_the_boot_blob() -> None:
    blob = encode(({"listen_fds": [3], "token": b"x"},))
    reader = pipe_with(len(blob).to_bytes(4, "little") + blob + b"more")
    assert read_boot(reader) == {"listen_fds": [3], "token": b"x"}
    assert os.read(reader, 10) == b"more"
    os.close(reader)


@pytest.mark.parametrize(
    ("data", "error"),
    [(b"", EOFError), (b"\5\0\0\0abc", EOFError), ((BOOT_LIMIT + 1).to_bytes(4, "little"), ValueError)],
)
def test_a_broken_boot_blob(data: bytes, error: type[Exception]) -> None:
    reader = pipe_with(data)
    with pytest.raises(error):
        read_boot(reader)
    os.close(reader)
