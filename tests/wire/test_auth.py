"""The handshake machines: every split, every mismatch, no reflection, no replay, nothing kept beyond the
bound."""

from __future__ import annotations

import pytest

from minray.wire.auth import (
    MAGIC,
    PROOF_SIZE,
    PROTOCOL_VERSION,
    ClientHandshake,
    ServerHandshake,
    refusal_without_tls,
)
from minray.wire.errors import HandshakeError, WrongToken

TOKEN = b"secret"


def run(client: ClientHandshake, server: ServerHandshake, *, chunk: int = 1 << 20, tail: bytes = b"") -> None:
    """Carry bytes between the two, ``chunk`` at a time, until both are done."""
    to_server, to_client = client.start(), server.start()
    while to_server or to_client:
        now, to_server = to_server[:chunk], to_server[chunk:]
        if now and not server.done:
            to_client += server.feed(now)
        now, to_client = to_client[:chunk], to_client[chunk:]
        if now:
            to_server += client.feed(now)
            if client.done:
                to_server += tail
                tail = b""


@pytest.mark.parametrize("chunk", [1, 3, 7, 40, 1000])
def test_both_are_done_whatever_the_split(chunk: int) -> None:
    client, server = ClientHandshake(TOKEN), ServerHandshake(TOKEN)
    run(client, server, chunk=chunk)
    assert client.done
    assert server.done


def test_frames_may_follow_the_proof_at_once() -> None:
    client, server = ClientHandshake(TOKEN), ServerHandshake(TOKEN)
    run(client, server, tail=b"first frames")
    assert server.leftover == b"first frames"


def test_an_empty_token_works_too() -> None:
    client, server = ClientHandshake(b""), ServerHandshake(b"")
    run(client, server)
    assert server.done


def test_a_client_with_the_wrong_token_notices() -> None:
    client, server = ClientHandshake(b"other"), ServerHandshake(TOKEN)
    with pytest.raises(HandshakeError, match="wrong token"):
        run(client, server)
    assert not client.done


def test_a_server_refuses_a_wrong_proof() -> None:
    client, server = ClientHandshake(TOKEN), ServerHandshake(TOKEN)
    client.feed(server.feed(client.start()))
    with pytest.raises(HandshakeError, match="wrong token"):
        server.feed(bytes(PROOF_SIZE))
    with pytest.raises(HandshakeError, match="wrong token"):
        server.feed(b"")
    assert not server.done
    assert server.leftover == b""


def test_frames_behind_a_wrong_proof_are_not_kept() -> None:
    client, server = ClientHandshake(TOKEN), ServerHandshake(TOKEN)
    server.feed(client.start())
    with pytest.raises(HandshakeError):
        server.feed(bytes(PROOF_SIZE) + b"frames")
    assert server.leftover == b""


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        ({"protocol": PROTOCOL_VERSION + 1}, [f"speaks {PROTOCOL_VERSION}", f"peer {PROTOCOL_VERSION + 1}"]),
        ({"python": (3, 99)}, ["Python", "3.99"]),
    ],
)
@pytest.mark.parametrize("who", ["client", "server"])
def test_a_difference_of_versions_is_named_on_both_sides(
    theirs: dict[str, object], named: list[str], who: str
) -> None:
    client = ClientHandshake(TOKEN, **(theirs if who == "client" else {}))  # type: ignore[arg-type]
    server = ServerHandshake(TOKEN, **(theirs if who == "server" else {}))  # type: ignore[arg-type]
    with pytest.raises(HandshakeError) as at_server:
        server.feed(client.start())
    with pytest.raises(HandshakeError) as at_client:
        client.feed(server.refusal())
    text = str(at_client.value if who == "server" else at_server.value)
    for part in named:
        assert part in text


def test_no_refusal_leaves_after_a_wrong_token() -> None:
    client, server = ClientHandshake(TOKEN), ServerHandshake(TOKEN)
    server.feed(client.start())
    with pytest.raises(HandshakeError):
        server.feed(bytes(PROOF_SIZE))
    assert server.refusal() == b""


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x17\x03\x01\x02", b"\x00" * 100, MAGIC[:-1] + b"x"]
)
@pytest.mark.parametrize("make", [ClientHandshake, ServerHandshake])
def test_garbage_is_refused_at_its_first_wrong_byte(
    garbage: bytes, make: type[ClientHandshake] | type[ServerHandshake]
) -> None:
    with pytest.raises(HandshakeError, match="does not speak minray's protocol"):
        for i in range(len(garbage)):
            make_fed = make(TOKEN)
            make_fed.feed(garbage[: i + 1])
            assert MAGIC.startswith(garbage[: i + 1])


def test_nobody_may_send_more_before_the_answer() -> None:
    client, server = ClientHandshake(TOKEN), ServerHandshake(TOKEN)
    with pytest.raises(HandshakeError, match="before it was answered"):
        ServerHandshake(TOKEN).feed(client.start() + b"x")
    with pytest.raises(HandshakeError, match="before it was answered"):  # somebody in the middle adds a frame
        client.feed(server.feed(client.start()) + b"x")
    assert client.leftover == server.leftover == b""


def test_a_wrong_token_is_named_on_both_sides() -> None:
    client, server = ClientHandshake(b"other"), ServerHandshake(TOKEN)
    with pytest.raises(WrongToken, match=r"does not know this cluster's token.*MINRAY_TOKEN_FILE"):
        client.feed(server.feed(client.start()))
    with pytest.raises(WrongToken, match=r"does not know this cluster's token.*MINRAY_TOKEN_FILE"):
        server.feed(client.refusal())
    assert server.refusal() == b""


def test_who_speaks_tls_to_one_who_does_not_is_told_and_the_other_way_round() -> None:
    server = ServerHandshake(TOKEN)
    with pytest.raises(HandshakeError, match=r"the other side speaks TLS and this side does not.*MINRAY_TLS_CERT"):
        server.feed(b"\x16\x03\x01\x02\x00\x01")
    assert server.refusal().startswith(MAGIC)  # which tls.py takes for what it is
    client = ClientHandshake(TOKEN)
    with pytest.raises(HandshakeError, match=r"the other side speaks TLS and this side does not.*MINRAY_TLS_CERT"):
        client.feed(refusal_without_tls())
    assert client.refusal() == b""


def test_a_socket_that_is_connected_to_itself_is_noticed() -> None:
    client = ClientHandshake(TOKEN)
    with pytest.raises(HandshakeError, match="only repeats"):
        client.feed(client.start())


def test_what_a_stranger_sends_is_not_kept_after_an_error() -> None:
    server = ServerHandshake(TOKEN)
    with pytest.raises(HandshakeError):
        server.feed(ClientHandshake(TOKEN).start() + bytes(4000))
    assert server._buffer == b""


def test_a_proof_cannot_be_reflected() -> None:
    # An attacker without the token opens two connections and hands each side's answer to the other.
    one, two = ServerHandshake(TOKEN), ServerHandshake(TOKEN)
    client = ClientHandshake(b"unknown")
    answer = one.feed(client.start())
    two.feed(ClientHandshake(b"unknown").start())
    with pytest.raises(HandshakeError):
        two.feed(answer[-PROOF_SIZE:])
    with pytest.raises(HandshakeError):
        one.feed(answer[-PROOF_SIZE:])


def test_a_recorded_conversation_cannot_be_replayed() -> None:
    client, server = ClientHandshake(TOKEN), ServerHandshake(TOKEN)
    first = client.start()
    proof = client.feed(server.feed(first))
    again = ServerHandshake(TOKEN)
    again.feed(first)
    with pytest.raises(HandshakeError):
        again.feed(proof)


def test_a_handshake_that_is_over_takes_nothing() -> None:
    client, server = ClientHandshake(TOKEN), ServerHandshake(TOKEN)
    run(client, server)
    with pytest.raises(AssertionError):
        server.feed(b"x")
