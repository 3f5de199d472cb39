"""Damaged and hostile bytes for the handshake, the framing, the codec, TLS and whole connections, by seeds.

``MINRAY_TEST_FUZZ`` says how many cases (``tox -e fuzz``: a million, and some for TLS); two thirds of them come from a
peer that has proved nothing. Nothing may come of a case but the wire's own errors; no case may be let in that should
not be; none may take memory beyond the bound of a frame and a constant (looked at in a sample; the process's highest
mark is looked at for all of them together), or for ever (a watchdog ends the process with a stack).
``MINRAY_TEST_FUZZ_SEED=name:number`` repeats a single case.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import resource
import socket
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from minray.wire import transports
from minray.wire.auth import EARLY_READ, PROOF_SIZE, ClientHandshake, ServerHandshake
from minray.wire.codec import decode_foreign, encode
from minray.wire.connection import Connection
from minray.wire.errors import HandshakeError, ProtocolError
from minray.wire.framing import FrameDecoder, encode_frame
from minray.wire.messages import pack
from minray.wire.reactor import Reactor
from minray.wire.tls import Tls
from tests.wire.certificates import make_authority, make_certificate
from tests.wire.mutators import CLIENT_HELLO, damage, message, pieces, program
from tests.wire.support import TOKEN, hello, make_reactor

COUNT = int(os.environ.get("MINRAY_TEST_FUZZ", "20000"))
ONLY = os.environ.get("MINRAY_TEST_FUZZ_SEED", "")
FRAME_BOUND = 64 * 1024
CONSTANT = 4 * 1024 * 1024
SAMPLE = 100  # of so many cases one is looked at for memory
GROWTH = 32 * 1024 * 1024  # of the whole process, over all cases of a target: with pytest's own, and the allocator's
PATIENCE_S = 60  # for a thousand cases
BUILT_IN = (type(None), bool, int, float, str, bytes, bytearray, tuple, list, dict, set, frozenset)

Target = Callable[[Random], str]


class Betrayer:
    """Would make a folder if anything unpickled it."""

    path = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))


# --- before authentication


def handshake_of(kind: type, rng: Random, token: bytes = TOKEN) -> Any:
    return kind(token, nonce=rng.randbytes)


def planted(rng: Random) -> bytes:
    """A pickle that betrays itself, framed or not, with or without a handshake in front."""
    data = pickle.dumps((1, Betrayer()), rng.randrange(6))
    if rng.random() < 0.7:
        data = encode_frame(data)
    if rng.random() < 0.5:
        data = handshake_of(ClientHandshake, rng).start() + data
    return data


def first_words(rng: Random, header: bytes) -> bytes:
    """What a stranger may make of a true header."""
    kind = rng.randrange(10)
    if kind < 5:
        return header
    if kind < 9:
        return damage(rng, header)
    return planted(rng) if rng.random() < 0.5 else rng.randbytes(rng.randrange(300))


def fuzz_server(rng: Random) -> str:
    """A server hears something like a client, and somebody like one that has no token, or a damaged one that has."""
    client, server = handshake_of(ClientHandshake, rng), handshake_of(ServerHandshake, rng)
    header = client.start()
    first = first_words(rng, header)
    proof, sent, answer = b"", first, b""
    try:
        for piece in pieces(rng, first):
            answer += server.feed(piece)
        assert len(answer) in (0, 76)
        if answer:
            with contextlib.suppress(HandshakeError):
                proof = client.feed(answer)
        replay = handshake_of(ClientHandshake, rng, b"no token")
        second = rng.choice((damage(rng, proof or b"x" * PROOF_SIZE), proof, answer[-PROOF_SIZE:], replay.start()))
        sent += second
        for piece in pieces(rng, second + rng.choice((b"", planted(rng)))):
            if server.done:
                break
            assert len(server._buffer) <= PROOF_SIZE + EARLY_READ
            server.feed(piece)
    except HandshakeError:
        assert not server.done
        assert len(server.refusal()) in (0, 76)
        return "refused"
    if not server.done:
        return "waits"
    assert first == header
    assert proof and sent[len(header) :].startswith(proof)
    return "let in"


def fuzz_client(rng: Random) -> str:
    """A client hears something like a server."""
    client, server = handshake_of(ClientHandshake, rng), handshake_of(ServerHandshake, rng)
    true = server.feed(client.start())
    kind = rng.randrange(8)
    answer = true if kind == 0 else damage(rng, true) if kind < 6 else planted(rng) if kind == 6 else client.start()
    heard = said = b""
    try:
        for piece in pieces(rng, answer):
            if client.done:
                break
            heard += piece
            said += client.feed(piece)
    except HandshakeError:
        assert not client.done
        assert said == b""
        assert client.refusal() in (b"", bytes(PROOF_SIZE))
        return "refused"
    if not client.done:
        assert said == b""
        return "waits"
    assert heard == true
    return "let in"


def fuzz_strangers(rng: Random, reactor: Reactor, endpoint: str) -> str:
    """A whole connection: a stranger's bytes, through a socket. ``on_accept`` must not be called."""
    sock = dial(endpoint)
    with sock:
        send(reactor, sock, pieces(rng, first_words(rng, handshake_of(ClientHandshake, rng).start())))
        answer = receive(sock)
        assert len(answer) in (0, 76)
        if answer and answer[-PROOF_SIZE:] != bytes(PROOF_SIZE):
            guesses = (answer[-PROOF_SIZE:], answer, bytes(PROOF_SIZE), rng.randbytes(PROOF_SIZE), planted(rng))
            rest = rng.choice((b"", encode_frame(encode(pack(hello())))))
            send(reactor, sock, pieces(rng, rng.choice(guesses) + rest))
            assert receive(sock) == b""
    settle(reactor)
    return "answered" if answer else "cut off"


def fuzz_tls(rng: Random, tls: Tls) -> str:
    """A server with TLS hears something like a TLS client, which can never finish: it has no certificate."""
    kind = rng.randrange(10)
    said = CLIENT_HELLO if kind == 0 else damage(rng, CLIENT_HELLO) if kind < 8 else first_words(rng, CLIENT_HELLO)
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        there.setblocking(False)
        server = tls.wrap(here, True, lambda: None)
        try:
            for piece in [*pieces(rng, said), *pieces(rng, rng.choice((b"", said, planted(rng))))]:
                if piece:
                    there.send(piece)
                    assert server.shake_hands() != 0
            answer = receive(there)
        except HandshakeError:
            return "refused"
        return "answered" if answer else "waits"


# --- after it


def fuzz_framing(rng: Random) -> str:
    """Frames, damaged: what comes out is what the lengths say, or an error; nothing is kept beyond the bound."""
    stream = b"".join(encode_frame(rng.randbytes(rng.choice((0, 1, 5, 60, 300)))) for _ in range(rng.randrange(6)))
    if rng.random() < 0.02:
        stream += encode_frame(bytes(rng.randrange(FRAME_BOUND - 9, FRAME_BOUND + 9)))
    stream = damage(rng, stream)
    wanted, pos, refused = [], 0, False
    while len(stream) - pos >= 4:
        size = int.from_bytes(stream[pos : pos + 4], "little")
        refused = size > FRAME_BOUND
        if refused or len(stream) - pos - 4 < size:
            break
        wanted.append(stream[pos + 4 : pos + 4 + size])
        pos += 4 + size
    decoder, got = FrameDecoder(FRAME_BOUND), []
    try:
        for piece in pieces(rng, stream):
            got += [bytes(frame) for frame in decoder.feed(piece)]
            decoder.check_invariants()
            assert decoder.pending <= FRAME_BOUND + 4
    except ProtocolError:
        assert refused
        assert got == wanted[: len(got)]
        return "refused"
    assert not refused
    assert got == wanted
    return "frames"


def fuzz_codec(rng: Random) -> str:
    """Messages, damaged, and programs of any instructions."""
    kind = rng.randrange(10)
    data = program(rng) if kind < 4 else encode(message(rng))
    if kind >= 4:
        data = damage(rng, data) if kind < 9 else planted(rng)
    try:
        decoded = decode_foreign(rng.choice((bytes, bytearray, memoryview))(data))
    except ProtocolError as error:
        assert len(str(error)) < 1000
        return "refused"
    assert type(decoded) is tuple
    check_built_in(decoded, set())
    return "decoded"


def check_built_in(found: Any, seen: set[int]) -> None:
    assert type(found) in BUILT_IN
    if isinstance(found, (tuple, list, dict, set, frozenset)) and id(found) not in seen:
        seen.add(id(found))
        for part in found:
            check_built_in(part, seen)
        if isinstance(found, dict):
            for part in found.values():
                check_built_in(part, seen)


def fuzz_members(rng: Random, reactor: Reactor, endpoint: str) -> str:
    """A whole connection: a peer with the token, that says nonsense afterwards."""
    sock = dial(endpoint)
    with sock:
        handshake = ClientHandshake(TOKEN)
        send(reactor, sock, [handshake.start()])
        proof = handshake.feed(receive(sock))
        greeting = encode_frame(encode(pack(hello())))
        frames = b"".join(encode_frame(encode(message(rng))) for _ in range(rng.randrange(3)))
        kind = rng.randrange(3)
        if kind == 0:
            said = damage(rng, greeting) + frames
        elif kind == 1:
            said = greeting + damage(rng, frames)
        else:
            said = greeting + encode_frame(program(rng))
        send(reactor, sock, pieces(rng, proof + said))
        receive(sock)
    settle(reactor)
    return "heard"


# --- a server in this thread


class Anything:
    """A handler that takes whatever comes."""

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        assert all(type(message) is tuple for message in messages)

    def on_close(self, conn: Connection, error: Any) -> None:
        pass


def dial(endpoint: str) -> socket.socket:
    sock = transports.dial(endpoint).sock
    assert sock is not None
    return sock


def send(reactor: Reactor, sock: socket.socket, parts: list[bytes]) -> None:
    for part in parts:
        with contextlib.suppress(OSError):  # hung up: as it should
            sock.send(part)
        reactor.poll()
    settle(reactor)


def receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except OSError:
        return b""


def settle(reactor: Reactor) -> None:
    while reactor.poll() or reactor._core.posts:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Reactor, list[str]]]:
    """Its clients count as other machines."""
    monkeypatch.setattr(transports, "from_network", lambda sock: True)
    let_in: list[str] = []

    def accept(conn: Connection) -> Anything:
        let_in.append(repr(conn))
        return Anything()

    reactor = make_reactor("fuzz", background=False, max_frame=FRAME_BOUND)
    reactor.listen("mem:fuzz", accept)
    yield reactor, let_in
    settle(reactor)
    assert not reactor._connections
    assert not reactor._listeners._all[0].strangers
    reactor.close()


# --- the drive


def drive(name: str, share: float, target: Target) -> tuple[Counter[str], int, int]:
    """Run its share of the cases. Returns what came of them, the most memory that one took (of those that were
    looked at), and by how much the process has grown, in bytes."""
    outcomes: Counter[str] = Counter()
    peak = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    numbers: Any = range(round(COUNT * share))
    if ONLY:
        wanted, _, number = ONLY.partition(":")
        numbers = [int(number)] if wanted == name else []
    for number in numbers:
        if number % 1000 == 0:
            faulthandler.dump_traceback_later(PATIENCE_S, exit=True, file=sys.__stderr__)
        looked_at = number % SAMPLE == 0
        if looked_at:
            tracemalloc.start()
        try:
            outcomes[target(Random(f"{name}:{number}"))] += 1
            if looked_at:
                peak = max(peak, tracemalloc.get_traced_memory()[1])
        except BaseException as error:
            raise AssertionError(f"MINRAY_TEST_FUZZ_SEED={name}:{number} gives {error!r}") from error
        finally:
            if looked_at:
                tracemalloc.stop()
    faulthandler.cancel_dump_traceback_later()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    return outcomes, peak, grown


def report(capsys: pytest.CaptureFixture[str], name: str, outcomes: Counter[str], peak: int, grown: int) -> None:
    if COUNT > 20_000:
        with capsys.disabled():
            print(f"\nfuzz {name}: {outcomes.total():,} cases, {dict(outcomes)}, at most {peak:,} bytes in one, "
                  f"the process grew by {grown:,}")  # fmt: skip
    assert peak <= FRAME_BOUND + CONSTANT
    assert grown <= FRAME_BOUND + GROWTH


@pytest.fixture(autouse=True)
def nothing_is_betrayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    path = tmp_path / "betrayed"
    monkeypatch.setattr(Betrayer, "path", str(path))
    yield
    assert not path.exists()


PURE: list[tuple[str, float, Target, set[str]]] = [
    ("server", 0.40, fuzz_server, {"refused", "waits", "let in"}),
    ("client", 0.22, fuzz_client, {"refused", "waits", "let in"}),
    ("framing", 0.13, fuzz_framing, {"refused", "frames"}),
    ("codec", 0.16, fuzz_codec, {"refused", "decoded"}),
]


@pytest.mark.parametrize(("name", "share", "target", "kinds"), PURE, ids=[name for name, *_ in PURE])
def test_the_machines(
    name: str, share: float, target: Target, kinds: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes, *memory = drive(name, share, target)
    report(capsys, name, outcomes, *memory)
    assert ONLY or set(outcomes) == kinds  # else it tries too little


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    folder = tmp_path_factory.mktemp("pki")
    make_authority(folder, "ours")
    return Tls(*make_certificate(folder, "head", "ours"))


def test_tls(tls: Tls, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes, *memory = drive("tls", 0.02, lambda rng: fuzz_tls(rng, tls))
    report(capsys, "tls", outcomes, *memory)
    assert ONLY or set(outcomes) == {"refused", "waits", "answered"}


def test_strangers(server: tuple[Reactor, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    reactor, let_in = server
    outcomes, *memory = drive("strangers", 0.06, lambda rng: fuzz_strangers(rng, reactor, "mem:fuzz"))
    report(capsys, "strangers", outcomes, *memory)
    assert let_in == []


def test_members(server: tuple[Reactor, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    reactor, _ = server
    outcomes, *memory = drive("members", 0.03, lambda rng: fuzz_members(rng, reactor, "mem:fuzz"))
    report(capsys, "members", outcomes, *memory)
