"""Whoever knocks without the token: slow, many, loud or broken. The others are served meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minray._base.log import LogBudget
from minray.wire import listener as listener_module
from minray.wire import transports
from minray.wire.auth import EARLY_READ, MAGIC, ClientHandshake
from minray.wire.codec import encode
from minray.wire.connection import HELLO_MAX
from minray.wire.errors import ConnectionLost, ProtocolError, WrongToken
from minray.wire.framing import encode_frame
from minray.wire.listener import MAX_STRANGERS, Listener
from minray.wire.messages import pack
from minray.wire.reactor import Connection, Reactor, Waiter
from tests.wire.support import LONG, TOKEN, Echo, Recorder, hello, served, spin_until


@pytest.fixture(params=["unix", "tcp"])
def request_of(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"unix:{tmp_path}/sock" if request.param == "unix" else "tcp:127.0.0.1:0"


@pytest.fixture
def there(request_of: str) -> Iterator[tuple[Reactor, str]]:
    """An echoing process."""
    with served(lambda reactor: reactor.listen(request_of, lambda conn: Echo())) as (reactor, endpoint):
        yield reactor, endpoint


def raw(endpoint: str) -> socket.socket:
    while True:
        dialled = transports.dial(endpoint)
        if dialled.sock is not None:  # else the queue is full
            dialled.sock.setblocking(True)
            dialled.sock.settimeout(LONG)
            return dialled.sock


def ended(sock: socket.socket) -> bool:
    """Whether the other side hangs up."""
    try:
        return sock.recv(65536) == b""
    except ConnectionError:
        return True


def proven(endpoint: str) -> socket.socket:
    """A client that knows the token, and has not said Hello."""
    sock = raw(endpoint)
    handshake = ClientHandshake(TOKEN)
    sock.sendall(handshake.start())
    while not handshake.done:
        sock.sendall(handshake.feed(sock.recv(1)))
    return sock


def echo_of(client: Reactor, endpoint: str) -> tuple[Connection, Recorder]:
    got = Recorder(client)
    conn = client.dial(endpoint, hello(), got)
    conn.send((1, "open"))
    got.until_messages(1)
    return conn, got


def the_listener(reactor: Reactor) -> Listener:
    (one,) = reactor._listeners._all
    return one


# --- many


def test_a_flood_of_silent_connections_costs_the_oldest_ones_and_nobody_else(
    there: tuple[Reactor, str], reactor: Reactor
) -> None:
    serving, endpoint = there
    conn, got = echo_of(reactor, endpoint)
    flood = [raw(endpoint) for _ in range(3 * MAX_STRANGERS)]
    try:
        for sock in flood[: 2 * MAX_STRANGERS]:
            assert ended(sock)
        spin_until(lambda: len(the_listener(serving).strangers) == MAX_STRANGERS)
        conn.send((1, "served"))
        got.until_messages(2)
        echo_of(reactor, endpoint)  # and newcomers who know the token get in
        assert got.closed == []
    finally:
        for sock in flood:
            sock.close()
    spin_until(lambda: not the_listener(serving).strangers)


def test_a_flood_that_goes_on_keeps_nobody_out(there: tuple[Reactor, str], reactor: Reactor) -> None:
    serving, endpoint = there
    over = threading.Event()

    def flood() -> None:
        open_ones: list[socket.socket] = []
        while not over.is_set():
            with contextlib.suppress(OSError, ConnectionLost):
                open_ones.append(raw(endpoint))
            if len(open_ones) > 100:
                open_ones.pop(0).close()
        for sock in open_ones:
            sock.close()

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        for _ in range(5):
            echo_of(reactor, endpoint)
    finally:
        over.set()
        thread.join(LONG)
    assert len(the_listener(serving).strangers) <= MAX_STRANGERS


def test_who_has_proved_himself_is_no_stranger(there: tuple[Reactor, str], reactor: Reactor) -> None:
    serving, endpoint = there
    _conn, got = echo_of(reactor, endpoint)
    first = raw(endpoint)
    known = proven(endpoint)
    spin_until(lambda: len(the_listener(serving).strangers) == 1)
    flood = [raw(endpoint) for _ in range(MAX_STRANGERS)]
    assert ended(first)
    known.sendall(encode_frame(encode(pack(hello()))) + encode_frame(encode((1, "mine"))))
    assert known.recv(1000) == encode_frame(encode((1, "mine")))
    for sock in (first, known, *flood):
        sock.close()
    assert got.closed == []


# --- slow


def test_a_handshake_byte_by_byte_ends_at_the_deadline_of_the_whole(
    request_of: str, make: Callable[..., Reactor]
) -> None:
    serving = make(handshake_s=0.05)
    with raw(serving.listen(request_of, lambda conn: Echo())) as sock:
        with contextlib.suppress(OSError):
            for i in range(len(MAGIC)):
                sock.sendall(MAGIC[i : i + 1])
        assert ended(sock)


def test_who_proves_himself_and_says_nothing_more_has_the_same_deadline(
    request_of: str, make: Callable[..., Reactor], caplog: pytest.LogCaptureFixture
) -> None:
    serving = make(handshake_s=0.2)
    with proven(serving.listen(request_of, lambda conn: Echo())) as sock:
        sock.sendall(b"\x40")
        assert ended(sock)
    spin_until(lambda: "no complete handshake with" in caplog.text)


def test_no_stranger_no_timer(there: tuple[Reactor, str], reactor: Reactor) -> None:
    serving, endpoint = there
    conn, got = echo_of(reactor, endpoint)
    with raw(endpoint) as sock:
        sock.sendall(b"garbage")
        assert ended(sock)
    conn.send((1, "a round later"))
    got.until_messages(2)
    spin_until(lambda: not any(timer.pending for _, _, timer in serving._core.timers))
    assert serving._core.timeout() == -1.0


# --- loud


def test_no_more_is_read_of_a_stranger_than_it_needs(there: tuple[Reactor, str], monkeypatch: Any) -> None:
    _, endpoint = there
    fed: list[int] = []
    from minray.wire.auth import ServerHandshake

    feed = ServerHandshake.feed
    monkeypatch.setattr(ServerHandshake, "feed", lambda self, data: (fed.append(len(data)), feed(self, data))[1])
    with raw(endpoint) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(bytes(1_000_000))
        assert ended(sock)
    assert max(fed) <= EARLY_READ


@pytest.mark.parametrize("size", [HELLO_MAX + 1, 1 << 20, 0xFFFFFFFF])
def test_a_hello_is_short(there: tuple[Reactor, str], size: int, caplog: pytest.LogCaptureFixture) -> None:
    with proven(there[1]) as sock:
        sock.sendall(size.to_bytes(4, "little"))
        assert ended(sock)
    spin_until(lambda: f"announced a first frame of {size} bytes; the bound is {HELLO_MAX}" in caplog.text)


def test_a_long_frame_may_follow_a_hello_at_once(there: tuple[Reactor, str]) -> None:
    frame = encode_frame(encode((1, os.urandom(300_000))))
    with proven(there[1]) as sock:
        sock.sendall(encode_frame(encode(pack(hello()))) + frame)
        got = b""
        while len(got) < len(frame):
            got += sock.recv(65536)
    assert got == frame


@pytest.mark.parametrize(
    "change",
    [("role", ("worker",)), ("worker_id", "text"), ("pid", "1"), ("start_time", b""), ("endpoint", None)],
)
def test_a_hello_has_fields_of_its_types(
    there: tuple[Reactor, str], change: tuple[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    fields = dict(zip(type(hello()).__match_args__, pack(hello())[1:], strict=True))
    fields[change[0]] = change[1]
    with proven(there[1]) as sock:
        sock.sendall(encode_frame(encode((20, *fields.values()))))
        assert ended(sock)
    spin_until(lambda: "fields of wrong types" in caplog.text)


def test_a_read_never_has_a_longer_frame_than_the_bound(request_of: str, make: Callable[..., Reactor]) -> None:
    """One read may bring a whole frame, which then does not pass the decoder."""
    serving = make(max_frame=1000)
    got = Recorder(serving)
    with proven(serving.listen(request_of, got.accept)) as sock:
        sock.sendall(encode_frame(encode(pack(hello()))))
        sock.sendall(encode_frame(encode((1, bytes(2000)))))
        got.until(lambda: bool(got.closed))
    assert isinstance(got.closed[0], ProtocolError)
    assert got.messages == []


# --- scarce


def test_descriptors_run_out_and_come_back(make: Callable[..., Reactor], caplog: pytest.LogCaptureFixture) -> None:
    """For real: strangers take them all; then the oldest ones go, and who knows the token gets in."""
    serving = make(handshake_s=LONG)
    conn, got = echo_of(serving, endpoint := serving.listen("tcp:127.0.0.1:0", lambda conn: Echo()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    flood = [raw(endpoint)]
    spin_until(lambda: len(the_listener(serving).strangers) == 1)
    try:
        used = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40, hard))
        with contextlib.suppress(OSError, ConnectionLost):
            while True:
                flood.append(raw(endpoint))
        spin_until(lambda: "cannot accept connections" in caplog.text)
        conn.send((1, "served"))
        got.until_messages(2)
        assert ended(flood[0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for sock in flood:
            sock.close()
    echo_of(serving, endpoint)
    assert caplog.text.count("cannot accept connections") == 1  # not again with every attempt


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EPERM, errno.EINVAL, errno.ENOMEM])
def test_an_accept_that_fails_for_ever_does_not_spin(
    make: Callable[..., Reactor], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(listener_module, "ACCEPT_PAUSE_S", 0.001)
    serving = make(background=False)
    endpoint = serving.listen("tcp:127.0.0.1:0", lambda conn: Echo())
    one = the_listener(serving)
    real, calls = one._sock, 0

    class Failing:
        def accept(self) -> Any:
            nonlocal calls
            calls += 1
            raise OSError(code, os.strerror(code))

    one._sock = Failing()  # type: ignore[assignment]
    with raw(endpoint):
        for _ in range(3):
            before = calls
            spin_until(lambda: serving.wait(Waiter(), 0.001) or calls > before)  # noqa: B023
        polls = 0
        monkeypatch.setattr(listener_module, "ACCEPT_PAUSE_S", LONG)
        before = calls
        while calls == before:
            serving.wait(Waiter(), 0.001)
        before = calls
        while polls < 20:
            serving.wait(Waiter(), 0)
            polls += 1
        assert calls == before
    one._sock = real


def test_a_newcomer_that_cannot_be_watched_is_dropped_and_the_listener_lives(
    make: Callable[..., Reactor], monkeypatch: pytest.MonkeyPatch
) -> None:
    serving, client = make("serving"), make("client")
    endpoint = serving.listen("tcp:127.0.0.1:0", lambda conn: Echo())
    register, failures = serving._core.register, [OSError(errno.ENOSPC, "no watches left"), ValueError("a bug")]

    def scarce(fd: int, mask: int, entry: Any) -> None:
        if failures:
            raise failures.pop(0)
        register(fd, mask, entry)

    monkeypatch.setattr(serving._core, "register", scarce)
    for _ in range(2):
        with raw(endpoint) as sock:
            assert ended(sock)
    echo_of(client, endpoint)


# --- told


def test_a_wrong_token_is_named_on_both_sides(
    there: tuple[Reactor, str], make: Callable[..., Reactor], caplog: pytest.LogCaptureFixture
) -> None:
    got = Recorder(stranger := make(token=b"of another cluster"))
    stranger.dial(there[1], hello(), got)
    error = got.until_closed()
    assert isinstance(error, WrongToken)
    assert "the other side does not know this cluster's token" in str(error)
    spin_until(lambda: "the other side does not know this cluster's token" in caplog.text)
    (record,) = caplog.records
    assert f"at {there[1]}: wrong token" in record.getMessage()
    if there[1].startswith("tcp"):
        assert record.getMessage().startswith("refused 127.0.0.1:")


def test_who_only_looks_whether_somebody_listens_is_not_told(
    there: tuple[Reactor, str], reactor: Reactor, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        raw(there[1]).close()
    echo_of(reactor, there[1])
    assert caplog.records == []


def test_a_flood_of_garbage_does_not_fill_the_log(
    there: tuple[Reactor, str], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(50):
        with raw(there[1]) as sock:
            sock.sendall(b"garbage")
            assert ended(sock)
    assert len(caplog.records) <= LogBudget.LINES + 1


def test_the_budget_of_the_log() -> None:
    budget = LogBudget()
    assert [budget.take(100.0) for _ in range(7)] == [0, 0, 0, 0, 0, None, None]
    assert budget.take(100.0 + LogBudget.PERIOD_S - 1) is None
    assert budget.take(100.0 + LogBudget.PERIOD_S + 1) == 3
    assert budget.take(1e6) == 0
    assert [budget.take(1e6) for _ in range(6)].count(None) == 2
