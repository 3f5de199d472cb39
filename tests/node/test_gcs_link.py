"""The connection of a node to its head, against a head that is a listener of this test."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from minray.node.gcs_link import GcsLink
from minray.wire.errors import WireError
from minray.wire.messages import Died, Fenced, Hello, Message, NodeReport, Reply, Request, pack, unpack
from minray.wire.reactor import Connection, Reactor

from .processes import wait_for

TOKEN = b"t" * 32
NODE = b"n" * 28
INFO = {"node_id": NODE}


class Head:
    """Takes everybody in, or does what the test says."""

    def __init__(self, token: bytes = TOKEN, endpoint: str = "tcp:127.0.0.1:0") -> None:
        self.reactor = Reactor(token=token, max_frame=1 << 20, background=True, name="head")
        self.endpoint = self.reactor.listen(endpoint, self.accept)
        self.got: list[Message] = []
        self.conns: list[Connection] = []
        self.answer: Message = Reply(0, True, {"heartbeat_s": 0.5})

    def accept(self, conn: Connection) -> Head:
        self.conns.append(conn)
        return self

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        for raw in messages:
            message = unpack(raw)
            self.got.append(message)
            if isinstance(message, Request) and message.method == "add_node":
                conn.send(pack(self.answer))

    def on_close(self, conn: Connection, error: WireError | None) -> None:
        self.conns.remove(conn)

    def close(self) -> None:
        self.reactor.close()


class Node:
    """A link on a thread of its own."""

    def __init__(self, endpoint: str, patience_s: float = 20.0) -> None:
        self.reactor = Reactor(token=TOKEN, max_frame=1 << 20, background=True, name="node")
        self.delivered: list[Message] = []
        self.joined: list[dict[str, Any]] = []
        self.lost: list[str] = []
        self.has: dict[str, Any] = {}
        self.link = GcsLink(
            self.reactor,
            endpoint,
            Hello("node", NODE, NODE, b"", os.getpid(), 0.0, ""),
            patience_s=patience_s,
            silence_s=5.0,
            deliver=self.delivered.append,
            joined=self.joined.append,
            lost=self.lost.append,
            inventory=lambda: dict(self.has),
        )

    def do(self, fn: Any) -> None:
        done = threading.Event()
        self.reactor.call_soon(lambda: (fn(), done.set()))  # type: ignore[func-returns-value]
        assert done.wait(20)

    def join(self) -> None:
        self.do(lambda: self.link.join(INFO))


@pytest.fixture
def head() -> Iterator[Head]:
    made = Head()
    yield made
    made.close()


@pytest.fixture
def node(head: Head) -> Iterator[Node]:
    made = Node(head.endpoint)
    yield made
    made.reactor.close()


def requests(head: Head) -> list[str]:
    return [message.method for message in head.got if isinstance(message, Request)]


def test_it_joins_and_then_says_what_has_waited(head: Head, node: Node) -> None:
    died = Died(b"w", -1, -1, -1, {})
    node.do(lambda: node.link.send(died))
    node.do(lambda: node.link.send(NodeReport({}, {}, 0, [])))  # stale when it could leave
    node.join()
    wait_for(lambda: len(head.got) == 2)
    assert head.got == [Request(0, "add_node", (INFO,)), died]
    assert node.joined == [{"heartbeat_s": 0.5}] and node.link.joined
    head.conns[0].send(pack(Reply(3, True, "x")))
    assert wait_for(lambda: node.delivered) == [Reply(3, True, "x")]


def test_it_leaves_in_good_order(head: Head, node: Node) -> None:
    node.join()
    wait_for(lambda: node.joined)
    node.do(lambda: node.link.leave("signal 15"))
    wait_for(lambda: not head.conns)
    assert head.got[-1] == Request(0, "leave", ("signal 15",))
    assert node.lost == []


def test_fenced_is_the_end(head: Head, node: Node) -> None:
    node.join()
    wait_for(lambda: node.joined)
    head.conns[0].send(pack(Fenced("no heartbeat", False)))
    assert "no heartbeat" in wait_for(lambda: node.lost)[0]
    wait_for(lambda: not head.conns)
    node.do(lambda: node.link.send(Died(b"w", -1, -1, -1, {})))
    assert len(node.lost) == 1


@pytest.mark.parametrize("dismissed", [False, True])
def test_it_knows_whether_the_cluster_has_ended_in_good_order(head: Head, node: Node, dismissed: bool) -> None:
    node.join()
    wait_for(lambda: node.joined)
    head.conns[0].send(pack(Fenced("over", dismissed)))
    wait_for(lambda: node.lost)
    assert node.link.dismissed == dismissed


def test_a_lost_connection_is_found_again(head: Head, node: Node) -> None:
    node.join()
    wait_for(lambda: node.joined)
    head.conns[0].close()
    wait_for(lambda: len(node.joined) == 2)
    assert requests(head) == ["add_node", "add_node"] and node.lost == []
    assert [message.args for message in head.got] == [(INFO,), ({**INFO, "again": True},)]


def test_a_head_that_counts_it_as_dead_says_so_when_it_comes_back(head: Head, node: Node) -> None:
    node.join()
    wait_for(lambda: node.joined)
    head.answer = Fenced("its connection was lost", False)
    head.conns[0].close()
    assert "its connection was lost" in wait_for(lambda: node.lost)[0]


def test_a_head_that_comes_back_hears_all_that_the_old_one_may_have_lost(head: Head, node: Node) -> None:
    """Requests without an answer, and what there is now instead of what was said about it meanwhile."""
    node.join()
    wait_for(lambda: node.joined)
    node.do(lambda: node.link.send(Request(7, "job_end", (b"j",))))
    node.do(lambda: node.link.send(Request(8, "finish_job", (b"k",))))
    wait_for(lambda: len(head.got) == 3)
    head.conns[0].send(pack(Reply(8, True, True)))
    wait_for(lambda: node.delivered)
    endpoint = head.endpoint
    head.close()
    wait_for(lambda: not node.link.joined)
    node.do(lambda: node.link.send(Died(b"w", -1, -1, -1, {})))
    node.do(lambda: node.link.send(Request(9, "add_job", ({},))))
    node.has["processes"] = [b"v"]
    again = Head(endpoint=endpoint)
    try:
        wait_for(lambda: len(again.got) == 3)
        node.do(lambda: node.link.send(Died(b"v", -1, -1, -1, {})))
        wait_for(lambda: len(again.got) == 4)
    finally:
        again.close()
    joined = Request(0, "add_node", ({**INFO, "again": True, "processes": [b"v"]},))
    later = Died(b"v", -1, -1, -1, {})
    assert again.got == [joined, Request(7, "job_end", (b"j",)), Request(9, "add_job", ({},)), later]


def test_a_head_that_does_not_come_back(head: Head) -> None:
    node = Node(head.endpoint, patience_s=0.3)
    try:
        node.join()
        wait_for(lambda: node.joined)
        head.close()
        assert head.endpoint in wait_for(lambda: node.lost)[0]
    finally:
        node.reactor.close()


def test_a_wrong_token_is_not_tried_again(head: Head) -> None:
    other = Head(token=b"x" * 32)
    node = Node(other.endpoint)
    try:
        node.join()
        assert "token" in wait_for(lambda: node.lost)[0]
    finally:
        node.reactor.close()
        other.close()


def test_a_refusal_names_its_reason(head: Head, node: Node) -> None:
    head.answer = Reply(0, False, ("ValueError", "no room"))
    node.join()
    assert "no room" in wait_for(lambda: node.lost)[0]


def test_somebody_else_at_the_heads_port_is_outlasted(head: Head, node: Node) -> None:
    """What does not speak our protocol may be gone again in a moment; only a head that does not fit is final."""
    node.join()
    wait_for(lambda: node.joined)
    head.close()
    host, _, port = head.endpoint.removeprefix("tcp:").rpartition(":")
    with socket.create_server((host, int(port))) as stranger:
        stranger.settimeout(20)
        for _ in range(2):
            with stranger.accept()[0] as sock:
                sock.recv(1000)
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    again = Head(endpoint=head.endpoint)
    try:
        wait_for(lambda: len(node.joined) == 2)
        assert node.lost == []
    finally:
        again.close()
