"""One suite over every transport (unix, tcp, mem) and every poller (epoll, selectors)."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minray.wire import transports
from minray.wire.auth import MAGIC, ClientHandshake, ServerHandshake
from minray.wire.codec import decode, encode
from minray.wire.errors import ConnectionLost, HandshakeError, ProtocolError
from minray.wire.framing import FrameDecoder, encode_frame
from minray.wire.messages import Request, pack
from minray.wire.reactor import Connection, Reactor, Waiter
from tests.wire.support import LONG, MAX_FRAME, TOKEN, Echo, Recorder, hello, served, spin_until

numbers = itertools.count()


@pytest.fixture(params=["unix", "tcp", "mem"])
def request_of(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "unix":
        # Not under tmp_path: pytest's folders are too deep for a socket's path.
        path = Path("/tmp") / f"minray-test-{os.getpid()}-{next(numbers)}"
        yield f"unix:{path}"
        path.unlink(missing_ok=True)
    elif request.param == "tcp":
        yield "tcp:127.0.0.1:0"
    else:
        yield f"mem:test-{next(numbers)}"


@pytest.fixture(params=["auto", "selectors"])
def poller(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def server(request_of: str, poller: str) -> Iterator[str]:
    """An echoing process, as far as anybody can tell."""
    with served(lambda reactor: reactor.listen(request_of, lambda conn: Echo()), poller=poller) as (
        _,
        endpoint,
    ):
        yield endpoint


@pytest.fixture
def client(make: Callable[..., Reactor], poller: str) -> Reactor:
    return make("client", poller=poller)


def connect(client: Reactor, endpoint: str) -> tuple[Connection, Recorder]:
    recorder = Recorder(client)
    return client.dial(endpoint, hello(), recorder), recorder


def test_messages_go_there_and_back_in_order(server: str, client: Reactor) -> None:
    conn, got = connect(client, server)
    sent = [(1, i, b"x" * i) for i in range(200)]
    for message in sent:
        conn.send(message)
    got.until_messages(len(sent))
    assert got.messages == sent


def test_send_many_keeps_order_between_sends(server: str, client: Reactor) -> None:
    conn, got = connect(client, server)
    conn.send((1, 0))
    conn.send_many([(1, 1), (1, 2)])
    conn.send((1, 3))
    got.until_messages(4)
    assert [message[1] for message in got.messages] == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [0, 60_000, 70_000, 300_000, 5_000_000])
def test_messages_of_any_size(server: str, client: Reactor, size: int) -> None:
    conn, got = connect(client, server)
    data = os.urandom(size)
    conn.send_many([(1, data), (1, b"after")])
    got.until_messages(2)
    assert got.messages == [(1, data), (1, b"after")]


def test_the_accepting_side_knows_who_speaks(request_of: str, client: Reactor) -> None:
    seen = Recorder(client)
    endpoint = client.listen(request_of, seen.accept)
    mine = hello("driver", endpoint="unix:/somewhere")
    client.dial(endpoint, mine, Recorder(client))
    seen.until(lambda: bool(seen.connections))
    assert seen.connections[0].hello == mine
    assert seen.messages == []


def test_the_accepting_side_may_speak_first(request_of: str, client: Reactor) -> None:
    class Greeter(Echo):
        def __init__(self, conn: Connection) -> None:
            conn.send((1, "welcome"))

    with served(lambda reactor: reactor.listen(request_of, Greeter)) as (_, endpoint):
        _conn, got = connect(client, endpoint)
        got.until_messages(1)
        assert got.messages == [(1, "welcome")]


def test_close_is_told_to_both_sides_once(
    request_of: str, client: Reactor, make: Callable[..., Reactor]
) -> None:
    there = make("there")
    accepted = Recorder(there)
    conn, got = connect(client, there.listen(request_of, accepted.accept))
    conn.send((1, "last words"))
    conn.close()
    conn.close()
    conn.send((1, "too late"))
    assert conn.closed
    accepted.until(lambda: bool(accepted.closed))
    assert got.until_closed() is None
    assert accepted.messages == [(1, "last words")]
    assert isinstance(accepted.closed[0], ConnectionLost)
    assert len(accepted.closed) == len(got.closed) == 1


def test_what_was_sent_before_close_arrives(
    request_of: str, client: Reactor, make: Callable[..., Reactor]
) -> None:
    there = make("there")
    accepted = Recorder(there)
    conn, got = connect(client, there.listen(request_of, accepted.accept))
    conn.send((1, "open"))
    accepted.until_messages(1)
    data = os.urandom(4_000_000)
    conn.send((1, data))
    conn.close()
    accepted.until(lambda: bool(accepted.closed))
    assert accepted.messages[1:] == [(1, data)]
    assert got.until_closed() is None


def test_nobody_listens(request_of: str, client: Reactor) -> None:
    endpoint = {"tcp": "tcp:127.0.0.1:1"}.get(request_of.partition(":")[0], request_of)
    conn, got = connect(client, endpoint)
    conn.send((1, "into the void"))
    error = got.until_closed()
    assert isinstance(error, ConnectionLost)
    assert endpoint in str(error)
    assert conn.closed


def test_a_wrong_token_is_named(server: str, make: Callable[..., Reactor]) -> None:
    stranger = make("stranger", token=b"guessed")
    conn, got = connect(stranger, server)
    conn.send((1, "let me in"))
    error = got.until_closed()
    assert isinstance(error, HandshakeError)
    assert "wrong token" in str(error)


def raw(endpoint: str) -> socket.socket:
    """A client that need not keep to the protocol."""
    dialled = transports.dial(endpoint)
    assert dialled.sock is not None
    dialled.sock.setblocking(True)
    dialled.sock.settimeout(LONG)
    return dialled.sock


def read_to_end(sock: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            data += piece
    return data


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", bytes(100), MAGIC + b"\xff" * 40, b"\xff" * 300_000],
)
def test_garbage_is_cut_off_and_others_are_served(server: str, client: Reactor, garbage: bytes) -> None:
    with raw(server) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(garbage)
        read_to_end(sock)
    conn, got = connect(client, server)
    conn.send((1, "still there"))
    got.until_messages(1)


def authenticated(endpoint: str) -> socket.socket:
    sock = raw(endpoint)
    handshake = ClientHandshake(TOKEN)
    sock.sendall(handshake.start())
    while not handshake.done:
        answer = handshake.feed(sock.recv(1))
        if answer:
            sock.sendall(answer)
    return sock


def test_a_client_that_sends_byte_by_byte(server: str) -> None:
    with raw(server) as sock:
        handshake = ClientHandshake(TOKEN)
        for i in range(len(handshake.start())):
            sock.sendall(handshake.start()[i : i + 1])
        while not handshake.done:
            answer = handshake.feed(sock.recv(1))
        from_here = answer + encode_frame(encode(pack(hello()))) + encode_frame(encode((1, "slowly")))
        for i in range(len(from_here)):
            sock.sendall(from_here[i : i + 1])
        assert sock.recv(1000) == encode_frame(encode((1, "slowly")))


class Betrayer:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("proven", [False, True])
def test_a_planted_pickle_never_runs(server: str, tmp_path: Path, proven: bool) -> None:
    planted = tmp_path / "betrayed"
    frame = encode_frame(pickle.dumps((1, Betrayer(str(planted))), 5))
    with authenticated(server) if proven else raw(server) as sock:
        if proven:
            sock.sendall(encode_frame(encode(pack(hello()))))
        sock.sendall(frame)
        assert read_to_end(sock) == b""
    assert not planted.exists()


@pytest.mark.parametrize(
    "first", [(1, "no Hello"), pack(Request(1, "m", ())), (99, "unknown"), (20, "arity")]
)
def test_the_first_message_must_be_hello(server: str, first: tuple[Any, ...]) -> None:
    with authenticated(server) as sock:
        sock.sendall(encode_frame(encode(first)))
        assert read_to_end(sock) == b""


def test_a_frame_beyond_the_bound_ends_the_connection(server: str) -> None:
    with authenticated(server) as sock:
        sock.sendall(encode_frame(encode(pack(hello()))) + (MAX_FRAME + 1).to_bytes(4, "little"))
        assert read_to_end(sock) == b""


def test_a_message_beyond_the_bound_raises_where_it_is_sent(
    request_of: str, make: Callable[..., Reactor]
) -> None:
    small = make("small", max_frame=1000)
    conn, got = connect(small, small.listen(request_of, lambda conn: Echo()))
    with pytest.raises(ProtocolError, match="beyond the bound of 1000 bytes"):
        conn.send((1, bytes(1000)))
    with pytest.raises(ProtocolError, match="beyond the bound of 1000 bytes"):
        conn.send_many([(1, b""), (1, bytes(1000))])
    conn.send((1, "fits"))
    got.until_messages(1)
    assert got.messages == [(1, "fits")]


def test_the_handshake_has_a_deadline(request_of: str, make: Callable[..., Reactor]) -> None:
    endpoint = make(handshake_s=0.02).listen(request_of, lambda conn: Echo())
    with raw(endpoint) as silent, raw(endpoint) as partial:
        partial.sendall(MAGIC[:5])
        assert read_to_end(silent) == b""
        assert read_to_end(partial) == b""


@pytest.mark.parametrize("own", [True, False])
def test_a_dialler_gives_up_a_silent_server(request_of: str, make: Callable[..., Reactor], own: bool) -> None:
    client = make(handshake_s=LONG if own else 0.02)
    listener, endpoint = transports.make_listener(request_of)
    try:
        got = Recorder(client)
        conn = client.dial(endpoint, hello(), got, within_s=0.02 if own else None)
        conn.send((1, "hello?"))
        error = got.until_closed()
        assert isinstance(error, HandshakeError)
        assert endpoint in str(error)
    finally:
        listener.close()


def test_a_connection_that_opened_in_time_has_no_deadline(request_of: str, client: Reactor) -> None:
    conn, got = connect(client, client.listen(request_of, lambda conn: Echo()))
    conn.send((1, "a"))
    got.until_messages(1)
    assert conn._deadline is not None
    assert not conn._deadline.pending


def test_a_slow_reader_holds_nobody_up(request_of: str, client: Reactor) -> None:
    listener, endpoint = transports.make_listener(request_of)
    if isinstance(listener, socket.socket):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # else TCP may buffer more than is sent
    sockets = []

    def serve() -> None:
        """A peer that shakes hands and then does not read."""
        while True:
            try:
                sock = listener.accept()[0]
                break
            except BlockingIOError:
                continue
        sock.setblocking(True)
        handshake = ServerHandshake(TOKEN)
        while not handshake.done:
            sock.sendall(handshake.feed(sock.recv(10)))
        sockets.append((sock, handshake.leftover))

    thread = threading.Thread(target=serve)
    thread.start()
    conn, got = connect(client, endpoint)
    # The client's own loop must run for the handshake; nobody waits here, so the background thread does it.
    thread.join(LONG)
    payload = os.urandom(1_000_000)
    count = 32  # more than a sender's kernel buffers
    for i in range(count):
        conn.send((1, i, payload))
    spin_until(lambda: conn.buffered > 1_000_000)  # the thread that opened it may be at it still
    ((sock, leftover),) = sockets
    frames: list[tuple[Any, ...]] = []
    decoder = FrameDecoder(MAX_FRAME)
    assert decoder.feed(leftover) == []
    while len(frames) < count + 1:
        frames += [decode(bytes(frame)) for frame in decoder.feed(sock.recv(200_000))]
    assert [frame[1] for frame in frames[1:]] == list(range(count))
    assert got.closed == []
    sock.close()
    assert isinstance(got.until_closed(), ConnectionLost)
    listener.close()


def test_order_is_kept_per_thread_when_many_send_at_once(server: str, client: Reactor) -> None:
    conn, got = connect(client, server)
    count = 300

    def sender(who: int) -> None:
        for i in range(count):
            conn.send((1, who, i, b"x" * (i * 37 % 3000)))

    threads = [threading.Thread(target=sender, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    got.until_messages(4 * count)
    for thread in threads:
        thread.join()
    for who in range(4):
        assert [message[2] for message in got.messages if message[1] == who] == list(range(count))


def test_a_failing_handler_closes_its_connection_only(
    request_of: str, client: Reactor, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Echo):
        def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
            if (1, "fail") in messages:
                raise LookupError("on purpose")
            super().on_messages(conn, messages)

    with served(lambda reactor: reactor.listen(request_of, lambda conn: Failing())) as (_, endpoint):
        good, got = connect(client, endpoint)
        bad, lost = connect(client, endpoint)
        bad.send((1, "fail"))
        assert isinstance(lost.until_closed(), ConnectionLost)
        good.send((1, "fine"))
        got.until_messages(1)
    assert "on purpose" in caplog.text


def test_an_on_accept_that_fails_refuses(
    request_of: str, client: Reactor, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(conn: Connection) -> Echo:
        raise PermissionError("not you")

    with served(lambda reactor: reactor.listen(request_of, refuse)) as (_, endpoint):
        _conn, got = connect(client, endpoint)
        assert isinstance(got.until_closed(), ConnectionLost)
    assert "not you" in caplog.text


def test_unlisten_keeps_connections(request_of: str, client: Reactor, make: Callable[..., Reactor]) -> None:
    there = make("there")
    endpoint = there.listen(request_of, lambda conn: Echo())
    conn, got = connect(client, endpoint)
    conn.send((1, 1))
    got.until_messages(1)
    there.unlisten(endpoint)
    done = Waiter()
    there.call_soon(lambda: there.call_soon(lambda: client.notify(done)))
    assert client.wait(done, LONG)
    conn.send((1, 2))
    got.until_messages(2)
    _late, refused = connect(client, endpoint)
    assert isinstance(refused.until_closed(), ConnectionLost)


def test_many_connections_at_once(server: str, client: Reactor) -> None:
    pairs = [connect(client, server) for _ in range(50)]
    for conn, _ in pairs:
        conn.send((1, "hi"))
    for _, got in pairs:
        got.until_messages(1)
