"""Endpoints and their errors."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from minray.wire import transports
from minray.wire.codec import encode_framed
from minray.wire.errors import ConnectionLost
from minray.wire.reactor import Reactor
from tests.wire.support import Echo, Recorder, free_range, hello


@pytest.mark.parametrize(
    "endpoint", ["", "unix", "unix:", "http://x", "tcp:", "tcp:host", "tcp:host:", "tcp:h:99999"]
)
def test_senseless_endpoints(endpoint: str) -> None:
    with pytest.raises(transports.EndpointError, match="endpoint"):
        transports.make_listener(endpoint)


@pytest.mark.parametrize(
    ("endpoint", "loopback"),
    [
        ("tcp:127.0.0.1:1", True),
        ("tcp:127.9.9.9:1", True),
        ("tcp:localhost:1", True),
        ("tcp:[::1]:1", True),
        ("unix:/x", True),
        ("mem:x", True),
        ("tcp:0.0.0.0:1", False),
        ("tcp:192.168.1.5:1", False),
        ("tcp:[::]:1", False),
        ("tcp:[::12]:1", False),
        ("tcp:127.0.0.1.evil.example:1", False),
        ("tcp:localhost.evil.example:1", False),
    ],
)
def test_what_is_loopback(endpoint: str, loopback: bool) -> None:
    assert transports.is_loopback(endpoint) is loopback


def test_no_token_no_lan(make: object) -> None:
    reactor: Reactor = make(token=b"")  # type: ignore[operator]
    with pytest.raises(transports.EndpointError, match="without a token"):
        reactor.listen("tcp:0.0.0.0:0", lambda conn: Echo())
    with pytest.raises(transports.EndpointError, match="without a token"):
        reactor.listen("tcp:127.0.0.1:0 tcp:0.0.0.0:0", lambda conn: Echo())
    with socket.create_server(("0.0.0.0", 0)) as sock, pytest.raises(transports.EndpointError, match="without a token"):
        reactor.listen_socket(sock, lambda conn: Echo())


def test_no_lan_with_a_token_that_can_be_guessed(make: object) -> None:
    reactor: Reactor = make(token=b"password")  # type: ignore[operator]
    with pytest.raises(transports.EndpointError, match=r"a token of 8 bytes, which can be guessed.*secrets.token_hex"):
        reactor.listen("tcp:0.0.0.0:0", lambda conn: Echo())
    reactor.listen("tcp:127.0.0.1:0", lambda conn: Echo())


def test_a_long_socket_path_names_the_way_out() -> None:
    with pytest.raises(transports.EndpointError, match="shorter folder"):
        transports.make_listener("unix:/tmp/" + "x" * 120)


def test_a_range_of_ports() -> None:
    low = free_range(3)
    request = f"tcp:127.0.0.1:{low}-{low + 2}"
    made = [transports.make_listener(request) for _ in range(3)]
    try:
        assert sorted(endpoint for _, endpoint in made) == [f"tcp:127.0.0.1:{low + i}" for i in range(3)]
        with pytest.raises(OSError, match=f"all ports of 127.0.0.1:{low}-{low + 2} are in use"):
            transports.make_listener(request)
    finally:
        for listener, _ in made:
            listener.close()


@pytest.mark.parametrize("rest", ["h:1-", "h:-2", "h:x-2", "h-2", "h:1-2-3", "h:70000-70001", "h:1-70000"])
def test_what_is_no_range_of_ports(rest: str) -> None:
    with pytest.raises((transports.EndpointError, OSError)):
        transports.make_listener(f"tcp:{rest}")


def test_a_name_is_taken_once_and_free_after_close() -> None:
    listener, endpoint = transports.make_listener("mem:taken")
    with pytest.raises(transports.EndpointError, match="mem:taken"):
        transports.make_listener("mem:taken")
    listener.close()
    again, _ = transports.make_listener("mem:taken")
    again.close()
    assert endpoint == "mem:taken"


def test_the_kernel_chooses_a_port() -> None:
    listener, endpoint = transports.make_listener("tcp:127.0.0.1:0")
    kind, rest = transports.split_endpoint(endpoint)
    assert kind == "tcp"
    assert transports.split_tcp(rest)[1] > 0
    listener.close()


def test_ipv6() -> None:
    try:
        listener, endpoint = transports.make_listener("tcp:[::1]:0")
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    assert endpoint.startswith("tcp:[::1]:")
    dialled = transports.dial(endpoint)
    assert dialled.sock is not None
    dialled.sock.close()
    listener.close()


def test_a_full_queue_says_busy(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    path = f"/tmp/minray-busy-{id(listener)}"
    listener.bind(path)
    listener.listen(0)
    waiting = []
    try:
        for _ in range(5):
            dialled = transports.dial(f"unix:{path}")
            if dialled.busy:
                break
            waiting.append(dialled.sock)
        assert dialled.busy
        assert dialled.sock is None
    finally:
        for sock in waiting:
            assert sock is not None
            sock.close()
        listener.close()
        Path(path).unlink()


def test_a_bad_host_is_a_lost_connection() -> None:
    with pytest.raises(ConnectionLost, match="cannot connect"):
        transports.dial("tcp:256.256.256.256:1")


def test_an_inherited_socket_serves(reactor: Reactor) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    endpoint = reactor.listen_socket(sock, lambda conn: Echo())
    assert endpoint == f"tcp:127.0.0.1:{sock.getsockname()[1]}"
    with pytest.raises(transports.EndpointError):
        reactor.dial("nowhere", hello(), Echo())


def test_endpoints_of_two_parts() -> None:
    both = "unix:/tmp/with a blank/sock tcp:10.0.0.1:7"
    assert transports.alternatives(both) == ["unix:/tmp/with a blank/sock", "tcp:10.0.0.1:7"]
    assert transports.nearest(both, same_machine=True) == "unix:/tmp/with a blank/sock"
    assert transports.nearest(both, same_machine=False) == "tcp:10.0.0.1:7"
    assert transports.nearest("unix:/only", same_machine=False) == "unix:/only"
    assert not transports.is_loopback(both) and transports.is_loopback("unix:/a tcp:127.0.0.1:7")


def test_listening_at_two_places_at_once(tmp_path: Path, make: object) -> None:
    reactor: Reactor = make()  # type: ignore[operator]
    served = Recorder(reactor)
    endpoint = reactor.listen(f"unix:{tmp_path}/sock tcp:127.0.0.1:0", served.accept)
    unix, tcp = transports.alternatives(endpoint)
    assert unix == f"unix:{tmp_path}/sock" and not tcp.endswith(":0")
    for place in (endpoint, tcp):
        conn = reactor.dial(place, hello(), Echo())
        assert conn.endpoint == place
        conn.limit_silence(5.0)
        conn.send_frame(encode_framed((20, place)))
    served.until_messages(2)
    assert sorted(served.messages) == [(20, tcp), (20, endpoint)]
    reactor.unlisten(endpoint)
    late = Recorder(reactor)
    reactor.dial(tcp, hello(), late)
    assert isinstance(late.until_closed(), ConnectionLost)


def test_two_places_or_none(tmp_path: Path) -> None:
    with pytest.raises(transports.EndpointError):
        transports.make_listeners(f"unix:{tmp_path}/sock tcp:nonsense")
    (again,) = transports.make_listeners("tcp:127.0.0.1:0")
    again.close()
