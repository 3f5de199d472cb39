"""TLS: what goes through, who gets in, and what both sides say where one of them has none."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minray.wire import transports
from minray.wire.auth import MAGIC
from minray.wire.errors import ConnectionLost, HandshakeError, Misfit, WireError, WrongToken
from minray.wire.poller import IN, OUT
from minray.wire.reactor import Connection, Reactor
from minray.wire.tls import Tls, TlsFileError, TlsLost, TlsSocket
from tests.wire.certificates import Files, make_authority, make_certificate, openssl
from tests.wire.support import LONG, Echo, Recorder, hello, served, spin_until


class Pki:
    """Two authorities; ``ours`` has signed two certificates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("ours", "theirs"):
            make_authority(folder, name)
        self.head = make_certificate(folder, "head", "ours")
        self.node = make_certificate(folder, "node", "ours")
        self.stranger = make_certificate(folder, "stranger", "theirs")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def server(pki: Pki) -> Iterator[str]:
    """An echo that takes TLS only."""

    def start(reactor: Reactor) -> str:
        return reactor.listen("tcp:127.0.0.1:0", lambda conn: Echo())

    with served(start, tls=pki.head) as (_, endpoint):
        yield endpoint


def connect(client: Reactor, endpoint: str) -> tuple[Connection, Recorder]:
    got = Recorder(client)
    return client.dial(endpoint, hello(), got), got


def outcome(client: Reactor, endpoint: str) -> WireError:
    error = connect(client, endpoint)[1].until_closed()
    assert error is not None
    return error


# --- what goes through


@pytest.mark.parametrize("size", [0, 1, 16_000, 70_000, 300_000, 5_000_000])
def test_messages_of_any_size(server: str, pki: Pki, make: Callable[..., Reactor], size: int) -> None:
    conn, got = connect(make(tls=pki.node), server)
    data = os.urandom(size)
    conn.send_many([(1, data), (1, b"after")])
    conn.send((1, size))
    got.until_messages(3)
    assert got.messages == [(1, data), (1, b"after"), (1, size)]


def test_many_threads_send_while_answers_come(server: str, pki: Pki, make: Callable[..., Reactor]) -> None:
    """Two threads are never inside OpenSSL with one connection: it would crash."""
    conn, got = connect(make(tls=pki.node), server)
    count = 300

    def sender(who: int) -> None:
        for i in range(count):
            conn.send((1, who, i, b"x" * (i * 997 % 40_000)))

    threads = [threading.Thread(target=sender, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    got.until_messages(4 * count)
    for thread in threads:
        thread.join()
    for who in range(4):
        assert [message[2] for message in got.messages if message[1] == who] == list(range(count))


def test_a_peer_that_does_not_read_holds_nobody_up(server: str, pki: Pki, make: Callable[..., Reactor]) -> None:
    here = make(tls=pki.node)
    conn, got = connect(here, server)
    data = os.urandom(1_000_000)
    for i in range(40):  # far more than both kernels' buffers hold, there and back
        conn.send((1, i, data))
    got.until_messages(40)
    assert [message[1] for message in got.messages] == list(range(40))
    assert all(message[2] == data for message in got.messages)


def test_what_was_sent_before_close_arrives(pki: Pki, make: Callable[..., Reactor]) -> None:
    there = make("there", tls=pki.head)
    accepted = Recorder(there)
    conn, got = connect(make(tls=pki.node), there.listen("tcp:127.0.0.1:0", accepted.accept))
    data = os.urandom(3_000_000)
    conn.send((1, data))
    accepted.until_messages(1)
    conn.send((1, "last words"))
    conn.close()
    accepted.until(lambda: bool(accepted.closed))
    assert accepted.messages == [(1, data), (1, "last words")]
    assert got.until_closed() is None


def test_nothing_readable_travels(pki: Pki, make: Callable[..., Reactor]) -> None:
    there = make("there", tls=pki.head)
    endpoint = there.listen("tcp:127.0.0.1:0", lambda conn: Echo())
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as tap:

        def relay(source: socket.socket, target: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    seen.append(data)
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)

        got = Recorder(there)
        conn = there.dial(f"tcp:127.0.0.1:{tap.getsockname()[1]}", hello(), got)
        near = tap.accept()[0]
        far = socket.create_connection(transports.split_tcp(transports.split_endpoint(endpoint)[1]))
        with near, far:
            threads = [threading.Thread(target=relay, args=pair) for pair in ((near, far), (far, near))]
            for thread in threads:
                thread.start()
            conn.send((1, b"the secret of the recipe"))
            got.until_messages(1)
            conn.close()
            for thread in threads:
                thread.join(LONG)
    stream = b"".join(seen)
    assert len(stream) > 1000
    assert b"recipe" not in stream
    assert MAGIC not in stream


def test_unix_sockets_stay_plain(pki: Pki, tmp_path: Path, make: Callable[..., Reactor]) -> None:
    there = make("there", tls=pki.head)
    conn, got = connect(make("plain"), there.listen(f"unix:{tmp_path}/sock", lambda conn: Echo()))
    conn.send((1, "plain"))
    got.until_messages(1)
    assert conn._tls is None


# --- who gets in


def test_the_token_is_still_needed(server: str, pki: Pki, make: Callable[..., Reactor]) -> None:
    assert isinstance(outcome(make(token=b"another", tls=pki.node), server), WrongToken)


def test_a_certificate_of_another_authority_is_refused_on_both_sides(
    server: str, pki: Pki, make: Callable[..., Reactor], caplog: pytest.LogCaptureFixture
) -> None:
    alien = Files(pki.stranger.cert, pki.stranger.key, pki.head.ca)  # it trusts us, we do not trust it
    error = outcome(make(tls=alien), server)
    assert isinstance(error, Misfit)  # so nobody tries again
    assert "the other side refuses this side's certificate" in str(error)
    error = outcome(make(tls=pki.stranger), server)  # nobody trusts anybody
    assert isinstance(error, Misfit)
    assert "the other side's certificate is refused" in str(error) and "MINRAY_TLS_CA" in str(error)
    conn, got = connect(make(tls=pki.node), server)
    conn.send((1, "still there"))
    got.until_messages(1)
    spin_until(lambda: "the other side's certificate is refused" in caplog.text)
    spin_until(lambda: "the other side refuses this side's certificate" in caplog.text)


def test_a_client_without_tls_and_the_server_are_told(
    server: str, make: Callable[..., Reactor], caplog: pytest.LogCaptureFixture
) -> None:
    error = outcome(make(), server)
    assert isinstance(error, HandshakeError)
    assert "the other side speaks TLS and this side does not: set MINRAY_TLS_CERT" in str(error)
    spin_until(lambda: "this side takes only TLS and the other side does not speak it" in caplog.text)


def test_a_server_without_tls_and_the_client_are_told(
    pki: Pki, make: Callable[..., Reactor], caplog: pytest.LogCaptureFixture
) -> None:
    with served(lambda reactor: reactor.listen("tcp:127.0.0.1:0", lambda conn: Echo())) as (_, endpoint):
        error = outcome(make(tls=pki.node), endpoint)
    assert isinstance(error, HandshakeError)
    assert "this side takes only TLS and the other side does not speak it" in str(error)
    spin_until(lambda: "the other side speaks TLS and this side does not: set MINRAY_TLS_CERT" in caplog.text)


@pytest.mark.parametrize(
    "garbage", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(300), bytes(70_000), b"\x16" * 9]
)
def test_garbage_is_cut_off_and_others_are_served(
    server: str, pki: Pki, make: Callable[..., Reactor], garbage: bytes
) -> None:
    with socket.create_connection(transports.split_tcp(transports.split_endpoint(server)[1])) as sock:
        sock.settimeout(LONG)
        with contextlib.suppress(OSError):
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
    conn, got = connect(make(tls=pki.node), server)
    conn.send((1, "still there"))
    got.until_messages(1)


def test_a_handshake_that_does_not_end_has_a_deadline(pki: Pki, make: Callable[..., Reactor]) -> None:
    there = make("there", tls=pki.head, handshake_s=0.02)
    host = transports.split_tcp(transports.split_endpoint(there.listen("tcp:127.0.0.1:0", lambda conn: Echo()))[1])
    with socket.create_connection(host) as silent, socket.create_connection(host) as slow:
        slow.sendall(b"\x16\x03\x01")
        for sock in (silent, slow):
            sock.settimeout(LONG)
            assert sock.recv(10) == b""
    listener, endpoint = transports.make_listener("tcp:127.0.0.1:0")
    assert "within 0.02 s" in str(outcome(there, endpoint))
    listener.close()


def test_nobody_listens(pki: Pki, make: Callable[..., Reactor]) -> None:
    error = outcome(make(tls=pki.node), "tcp:127.0.0.1:1")
    assert isinstance(error, ConnectionLost)
    assert "tcp:127.0.0.1:1" in str(error)


# --- the socket by itself


class Pair:
    """Two TlsSockets over a pair of sockets, hands shaken."""

    def __init__(self, pki: Pki) -> None:
        self.again: list[str] = []
        self.raw = socket.socketpair()
        for sock in self.raw:
            sock.setblocking(False)
        self.client = Tls(*pki.node).wrap(self.raw[0], False, lambda: self.again.append("client"))
        self.server = Tls(*pki.head).wrap(self.raw[1], True, lambda: self.again.append("server"))
        waits = [IN, IN]
        while any(waits):
            waits = [self.client.shake_hands(), self.server.shake_hands()]

    def close(self) -> None:
        for sock in self.raw:
            sock.close()


@pytest.fixture
def pair(pki: Pki) -> Iterator[Pair]:
    made = Pair(pki)
    yield made
    made.close()


def read_all(sock: TlsSocket, piece: int) -> bytes:
    data, target = b"", bytearray(piece)
    with contextlib.suppress(BlockingIOError):
        while count := sock.recv_into(target):
            data += target[:count]
    return data


def test_what_was_not_taken_comes_again_and_arrives_once(pair: Pair) -> None:
    data = os.urandom(3_000_000)
    arrived, sent = b"", 0
    blocked = 0
    while sent < len(data):
        try:
            sent += pair.client.send(memoryview(data)[sent:])
        except BlockingIOError:
            blocked += 1
            arrived += read_all(pair.server, 5_000)
    arrived += read_all(pair.server, 5_000)
    assert blocked
    assert arrived == data


def test_a_full_target_is_told_to_come_again(pair: Pair) -> None:
    pair.client.send(b"x" * 100)
    target = bytearray(60)
    assert pair.server.recv_into(target) == 60
    assert pair.again == ["server"]  # the kernel knows nothing of the other 40
    assert pair.server.recv_into(target) == 40
    assert pair.again == ["server"]
    with pytest.raises(BlockingIOError):
        pair.server.recv_into(target)


def test_a_socket_that_has_left_its_connection_tells_nobody(pair: Pair) -> None:
    pair.server.reads_alone = True
    pair.client.send(b"x" * 100)
    target = bytearray(50)
    assert [pair.server.recv_into(target), pair.server.recv_into(target)] == [50, 50]
    assert pair.again == []


def test_whoever_finds_it_taken_is_told_to_come_again(pair: Pair) -> None:
    with pair.client._lock:
        with pytest.raises(BlockingIOError):
            pair.client.send(b"x")
        with pytest.raises(BlockingIOError):
            pair.client.recv_into(bytearray(10))
    assert pair.again == ["client"]


def test_the_end_of_the_stream_is_one(pair: Pair) -> None:
    pair.client.send(b"last")
    pair.raw[0].close()
    target = bytearray(10)
    assert pair.server.recv_into(target) == 4
    for _ in range(2):
        assert pair.server.recv_into(target) == 0


def test_a_damaged_record_is_the_end(pair: Pair) -> None:
    pair.client.send(b"x" * 100)
    record = bytearray(pair.raw[1].recv(1000))
    record[-1] ^= 1
    pair.raw[0].send(record)
    with pytest.raises(TlsLost, match="bad record mac"):
        pair.server.recv_into(bytearray(10))


def test_a_handshake_that_cannot_write_waits_until_it_can(pki: Pki) -> None:
    here, there = socket.socketpair()
    with here, there:
        for sock in (here, there):
            sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                here.send(bytes(65536))
        assert Tls(*pki.node).wrap(here, False, lambda: None).shake_hands() == OUT


# --- the files


def test_files_that_cannot_be_used(pki: Pki, tmp_path: Path) -> None:
    cert, key, ca = pki.head
    nothing = str(tmp_path / "nothing.pem")
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("not a certificate")
    locked = tmp_path / "locked.key"
    openssl("ec", "-in", key, "-out", str(locked), "-aes128", "-passout", "pass:word")
    wrong: list[tuple[Files, str]] = [
        (Files(nothing, key, ca), "certificate .*nothing.pem' cannot be read: No such file"),
        (Files(cert, nothing, ca), "key .*nothing.pem' cannot be read: No such file"),
        (Files(cert, key, nothing), "authority .*nothing.pem' cannot be read: No such file"),
        (Files(cert, pki.node.key, ca), "cannot be used: key values mismatch"),
        (Files(cert, str(locked), ca), "the key is encrypted"),
        (Files(str(garbage), key, ca), "certificate .*garbage.pem' with key"),
        (Files(cert, key, str(garbage)), "authority .*garbage.pem' cannot be used"),
    ]
    for files, text in wrong:
        with pytest.raises(TlsFileError, match=text):
            Tls(*files)


def test_wrong_files_are_told_where_somebody_wants_to_listen_or_dial(
    pki: Pki, tmp_path: Path, make: Callable[..., Reactor]
) -> None:
    reactor = make(tls=Files(pki.node.cert, str(tmp_path / "nothing.key"), pki.node.ca))
    for call in (
        lambda: reactor.listen("tcp:127.0.0.1:0", lambda conn: Echo()),
        lambda: reactor.dial("tcp:127.0.0.1:1", hello(), Echo()),
    ):
        with pytest.raises(TlsFileError, match=r"nothing.key' cannot be read"):
            call()


def test_without_a_use_for_it_ssl_is_not_even_loaded() -> None:
    code = """
import sys
from minray._base.config import Config
from minray.wire.reactor import Reactor
config = Config(tls_cert="/c", tls_key="/k", tls_ca="/a", handshake_s=3.0, max_frame=1 << 20)
reactor = Reactor.configured(config, token=b"t", background=False, name="test")
reactor.listen("mem:x", lambda conn: None)
print("ssl" in sys.modules, reactor._tls_files, reactor._handshake_s, reactor._max_frame)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False ('/c', '/k', '/a') 3.0 1048576"


def test_a_forked_child_lets_go(pki: Pki, make: Callable[..., Reactor]) -> None:
    there = make("there", tls=pki.head)
    conn, got = connect(there, there.listen("tcp:127.0.0.1:0", lambda conn: Echo()))
    conn.send((1, "before"))
    got.until_messages(1)
    pid = os.fork()
    if pid == 0:
        there.after_fork_child()
        os._exit(0 if conn.closed else 1)
    assert os.waitpid(pid, 0)[1] == 0
    conn.send((1, "after"))
    got.until_messages(2)


def test_a_lost_machine_is_noticed_with_tls_too(server: str, pki: Pki, make: Callable[..., Reactor]) -> None:
    conn, got = connect(make(tls=pki.node), server)
    conn.send((1, "open"))
    got.until_messages(1)
    conn.limit_silence(5.0)
    sock: Any = conn._sock
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
