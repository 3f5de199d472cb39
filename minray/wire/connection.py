"""One peer: its life, and its reading side.

::

    CONNECTING ─► (TLS) ─► HANDSHAKE ─► (server: HELLO) ─► OPEN ─► CLOSED
         └──────────┴──────────┴──────────────┴────────────────────►┘

``send``, ``send_many`` and ``close`` are for any thread, block nowhere, and may be called by finalizers; what
they write goes through ``writer``. Everything else belongs to the leader's thread.

``on_close`` is called exactly once, on the leader's thread: with None if this side closed, else with the
error. Messages sent before ``close()`` still leave, if the peer takes them within a second.

Of a peer that has not proved itself no more than ``EARLY_READ`` bytes are read at once, nothing is decoded, and
nothing is kept longer than the handshake's deadline; of one that has not said who it is, one short frame.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from minray.wire import transports
from minray.wire.auth import EARLY_READ, ClientHandshake, ServerHandshake
from minray.wire.codec import decode, decode_foreign, encode, encode_framed
from minray.wire.core import Core, Timer, log_exception
from minray.wire.errors import ConnectionLost, HandshakeError, Misfit, ProtocolError, TlsLost, WireError
from minray.wire.framing import HEADER, FrameDecoder, encode_frame, split_first
from minray.wire.messages import Hello, pack, unpack
from minray.wire.poller import IN, OUT, READABLE, is_readable
from minray.wire.writer import LINGER_S, Writer

if TYPE_CHECKING:
    from minray.wire.listener import Listener
    from minray.wire.tls import Tls, TlsSocket

REDIAL_S = 0.005
HELLO_MAX = 4096  # bytes of the first frame
_unpack_header = HEADER.unpack_from


class Handler(Protocol):
    """What a room does with a connection. Both methods run on the leader's thread and must not wait."""

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        """Everything that one read brought, in order."""

    def on_close(self, conn: Connection, error: WireError | None) -> None:
        """The connection is over. ``error`` None: this side closed it."""


class Connection:
    """See the file's head. Made by the reactor only."""

    __slots__ = (
        "__weakref__",
        "_bound",
        "_core",
        "_deadline",
        "_decode",
        "_decoder",
        "_door",
        "_gone",
        "_greeting",
        "_handler",
        "_handshake",
        "_on_accept",
        "_on_gone",
        "_recv_into",
        "_sock",
        "_tls",
        "_who",
        "_writer",
        "closed",
        "endpoint",
        "hello",
        "tag",
    )

    def __init__(
        self,
        core: Core,
        max_frame: int,
        handler: Handler | None,
        endpoint: str,
        on_gone: Callable[[Connection], None],
    ) -> None:
        self.hello: Hello | None = None  # of the peer, on the side that accepted
        self.tag: Any = None  # the handler's own
        self.closed = False
        self.endpoint = endpoint
        self._core = core
        self._handler = handler
        self._on_gone = on_gone  # the reactor's books
        self._bound = max_frame + 4
        self._decode = decode
        self._decoder = FrameDecoder(max_frame)
        self._sock: transports.Stream | None = None
        self._tls: TlsSocket | None = None  # the same, where it is one
        self._who = ""  # the address of who has dialled us
        self._writer = Writer(core, self._lose)
        self._gone = False  # nothing leaves or comes any more
        self._handshake: ClientHandshake | ServerHandshake | None = None
        self._greeting = b""  # the side that dialled: its Hello, framed; the other: what it has of that
        self._deadline: Timer | None = None
        self._door: Listener | None = None  # until it is open
        self._on_accept: Callable[[Connection], Handler] | None = None

    # --- for any thread

    def send(self, message: tuple[Any, ...]) -> None:
        """Queue and try to send. Never blocks, keeps order; silently dropped after the close.

        Raises ProtocolError for a message beyond the bound, and pickle's errors for what is not built-in."""
        if self.closed:
            return
        data = encode_framed(message)
        if len(data) > self._bound:
            raise self._too_long(len(data))
        self._writer.queue(data)

    def send_many(self, messages: Iterable[tuple[Any, ...]]) -> None:
        """Like ``send`` for each, in one go."""
        if self.closed:
            return
        parts = [encode_framed(message) for message in messages]
        for part in parts:
            if len(part) > self._bound:
                raise self._too_long(len(part))
        self._writer.queue(b"".join(parts))

    def cork(self) -> bool:
        """Let what is sent from now on leave together, at ``uncork``, which has to follow soon if this is True."""
        return self._writer.cork()

    def uncork(self) -> None:
        """See ``cork``."""
        self._writer.uncork()

    def send_frame(self, frame: bytes) -> None:
        """Like ``send`` for what ``codec.encode_framed`` has made already: one encoding for many peers."""
        if not self.closed:
            self._writer.queue(frame)

    def limit_silence(self, seconds: float) -> None:
        """Lose a peer behind a network that acknowledges nothing for so long (see transports)."""
        if self._sock is not None:
            transports.limit_silence(self._sock, seconds)

    def close(self) -> None:
        """End the connection. ``on_close`` follows, on the leader's thread."""
        if not self.closed:
            self.closed = True
            self._core.post(self._close_here)

    @property
    def buffered(self) -> int:
        """Bytes that wait because the peer does not take them. Grows without bound: senders look at it."""
        return self._writer.buffered

    @property
    def flushed(self) -> bool:
        """Whether what was sent before arrives though this process should end now; also if nothing arrives any more."""
        return self.closed or self._writer.flushed

    def _too_long(self, size: int) -> ProtocolError:
        return ProtocolError(f"a frame of {size} bytes is beyond the bound of {self._bound - 4} bytes")

    # --- the leader's thread: opening

    def _adopt(
        self, sock: transports.Stream, entry: Callable[[int], None], *, mask: int = IN, first: bytes = b""
    ) -> None:
        """Take ``sock``, write ``first``, then let the leader see it (we may be another thread)."""
        self._sock = sock
        self._writer.attach(sock)
        self._recv_into = sock.recv_into
        if transports.from_network(sock):
            self._decode = decode_foreign
        if first:
            self._send_now(first)
        if not self._gone:
            try:
                self._core.register(sock.fileno(), mask, entry)
            except OSError as error:
                self._lose(ConnectionLost(f"{self.peer} cannot be listened to: {error}"))

    def _secured(self, sock: socket.socket, tls: Tls | None, accepted: bool) -> transports.Stream:
        """``sock``, with TLS around it if it leads to a network and TLS is wanted."""
        if tls is None or not transports.from_network(sock):
            return sock
        self._tls = tls.wrap(sock, accepted, lambda: self._core.post(self._read_again))
        return self._tls

    def open_trusted(self, sock: socket.socket) -> None:
        """A socket that only a relative can hold the other end of: no handshake, no Hello."""
        self._adopt(sock, self._on_ready)
        self._writer.open(b"")

    def open_dialling(self, handshake: ClientHandshake, hello: Hello, within_s: float, tls: Tls | None) -> None:
        """Connect to ``endpoint``; the outcome comes to the handler."""
        self._handshake = handshake
        self._greeting = encode_frame(encode(pack(hello)))
        self._deadline = self._core.call_later(within_s, lambda: self._lose_late(within_s))
        self._dial(tls)

    def open_accepted(
        self,
        sock: socket.socket,
        handshake: ServerHandshake,
        on_accept: Callable[[Connection], Handler],
        within_s: float,
        tls: Tls | None,
        door: Listener,
        who: str,
    ) -> None:
        """A peer has dialled: who it is remains to be seen."""
        self._handshake = handshake
        self._on_accept = on_accept
        self._door = door
        self._who = who
        self._deadline = self._core.call_later(within_s, lambda: self._lose_late(within_s))
        secured = self._secured(sock, tls, accepted=True)
        self._adopt(secured, self._on_handshake if self._tls is None else self._on_tls)

    def _dial(self, tls: Tls | None) -> None:
        if self._gone:
            return
        try:
            dialled = transports.dial(self.endpoint)
        except WireError as error:
            self._core.post(lambda error=error: self._lose(error))  # type: ignore[misc]
            return
        if dialled.busy:
            self._core.call_later(REDIAL_S, lambda: self._dial(tls))
        elif dialled.sock is not None:
            sock = self._secured(dialled.sock, tls, accepted=False)
            if dialled.connecting or self._tls is not None:
                self._adopt(sock, self._on_connected, mask=OUT)
            else:
                self._adopt(sock, self._on_handshake, first=self._start())

    def _start(self) -> bytes:
        assert self._handshake is not None
        return self._handshake.start()

    def _on_connected(self, mask: int) -> None:
        sock = self._sock
        assert sock is not None
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._lose(transports.unreachable(self.endpoint, os.strerror(code)))
        elif self._tls is not None:
            self._core.entries[sock.fileno()] = self._on_tls
            self._on_tls(mask)
        else:
            self._begin_handshake(sock)

    def _begin_handshake(self, sock: transports.Stream) -> None:
        self._core.entries[sock.fileno()] = self._on_handshake
        self._core.modify(sock.fileno(), IN)
        self._send_now(self._start())

    def _on_tls(self, mask: int) -> None:
        tls = self._tls
        assert tls is not None
        try:
            waits_for = tls.shake_hands()
        except HandshakeError as error:
            self._lose(error)
        except OSError as error:
            self._lose(ConnectionLost(f"{self.peer} hung up before TLS was there: {error}"))
        else:
            if waits_for:
                self._core.modify(tls.fileno(), waits_for)
                return
            self._begin_handshake(tls)
            self._core.post(self._read_again)  # more may have come with the last of TLS

    def _read_again(self) -> None:
        """TLS has more than the kernel knows of."""
        entry = self._core.entries.get(self.fileno())
        if entry is not None and not self._gone:
            entry(IN)

    def _send_now(self, data: bytes) -> None:
        """Handshake bytes: a fresh socket's buffer takes them whole, or the peer is nobody we want."""
        try:
            if data and not self._writer.write_raw(data):
                self._lose(HandshakeError("the peer does not read"))
        except OSError as error:
            self._lose(ConnectionLost(f"{self.peer} hung up during the handshake: {error}"))

    def _on_handshake(self, mask: int) -> None:
        handshake = self._handshake
        assert handshake is not None
        data = self._read(self._core.view[:EARLY_READ])
        if data is None:
            return
        try:
            answer = handshake.feed(bytes(data))
        except HandshakeError as error:
            with contextlib.suppress(OSError):
                self._writer.write_raw(handshake.refusal())
            self._lose(error)
            return
        if not handshake.done:
            self._send_now(answer)
            return
        sock = self._sock
        assert sock is not None
        self._handshake = None
        if isinstance(handshake, ClientHandshake):
            self._core.entries[sock.fileno()] = self._on_ready
            self._opened(answer + self._greeting)
        else:
            self._core.entries[sock.fileno()] = self._on_hello
            if self._door is not None:
                self._door.leave(self)
            if handshake.leftover:
                self._greeted(handshake.leftover)

    def _opened(self, first: bytes) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._greeting = b""
        self._writer.open(first)
        if self.closed:
            self._close_here()

    def _on_hello(self, mask: int) -> None:
        data = self._read(self._core.view[:EARLY_READ])
        if data is not None:
            self._greeted(data)

    def _greeted(self, data: bytes | memoryview) -> None:
        """What has come of the first frame of an accepted connection, and perhaps more."""
        try:
            self._greeting += data
            first = split_first(self._greeting, HELLO_MAX)
            if first is None:
                return
            hello = _hello_in(self._decode(first[0]))
        except ProtocolError as error:
            self._lose(error)
            return
        if self._on_accept is None or self._sock is None:
            return
        self.hello = hello
        self._door = None
        on_accept, self._on_accept = self._on_accept, None
        self._core.entries[self._sock.fileno()] = self._on_ready
        self._opened(b"")
        try:
            self._handler = on_accept(self)
        except Exception as error:
            log_exception(f"accepting {self!r} failed")
            self._lose(ProtocolError(f"accepting failed: {error!r}"))
            return
        if first[1]:
            self._received(first[1])

    # --- the leader's thread: reading

    def _on_ready(self, mask: int) -> None:
        """The hot path: one read, its frames, its messages, the handler."""
        if mask & OUT:
            self._writer.resume()
        if not mask & READABLE or self.closed:
            return
        decoder = self._decoder
        if decoder.direct is not None:
            self._read_large()
            return
        core, decode = self._core, self._decode
        try:
            count = self._recv_into(core.buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(ConnectionLost(f"{self.peer} is gone: {error}"))
            return
        if not count:
            self._lose(ConnectionLost(f"{self.peer} closed the connection"))
            return
        try:
            if count > 4 and _unpack_header(core.buffer)[0] == count - 4 and not decoder.partial:
                messages = [decode(core.view[4:count])]  # the usual case: one whole frame (of a bounded read)
            else:
                messages = list(map(decode, decoder.feed(core.view[:count])))
        except ProtocolError as error:
            self._lose(error)
            return
        if messages and not self.closed:
            try:
                self._handler.on_messages(self, messages)  # type: ignore[union-attr]
            except Exception as error:
                self._lose_failed(error)

    def _read_large(self) -> None:
        target = self._decoder.direct
        assert target is not None
        data = self._read(target)
        if data is None:
            return
        target = None
        frame = self._decoder.advance(len(data))
        if frame is None:
            return
        try:
            messages = [self._decode(frame)]
        except ProtocolError as error:
            self._lose(error)
            return
        self._deliver(messages)

    def _read(self, target: memoryview | None = None) -> memoryview | None:
        """What one read brings; None if there is nothing, or nothing any more."""
        view = target if target is not None else self._core.view
        try:
            count = self._recv_into(view)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            refused = isinstance(error, TlsLost) and self._handshake is not None  # an alert of the other side
            self._lose(Misfit(str(error)) if refused else ConnectionLost(f"{self.peer} is gone: {error}"))
            return None
        if not count:
            during = " during the handshake" if self._handshake is not None else ""
            self._lose(ConnectionLost(f"{self.peer} closed the connection{during}"))
            return None
        return view[:count]

    def _received(self, data: bytes) -> None:
        """The cold twin of _on_ready's second half, for what arrives with the Hello."""
        try:
            messages = [self._decode(frame) for frame in self._decoder.feed(data)]
        except ProtocolError as error:
            self._lose(error)
            return
        if messages:
            self._deliver(messages)

    def _deliver(self, messages: list[tuple[Any, ...]]) -> None:
        if self._handler is None or self.closed:
            return
        try:
            self._handler.on_messages(self, messages)
        except Exception as error:
            self._lose_failed(error)

    def read_rest(self) -> None:
        """The peer is dead: read what it had still sent, now, and the end of that. Nothing if it is not open."""
        if self.closed or self._handshake is not None:
            return
        while not self.closed and is_readable(self.fileno()):
            self._on_ready(IN)

    # --- the leader's thread: the end

    def _lose(self, error: WireError) -> None:
        if not self._gone:
            self.closed = True
            door, self._door = self._door, None
            if door is not None:
                door.leave(self)
                door.refused(self.peer, error)
            self._drop()
            self._tell(error)

    def turn_away(self, error: WireError) -> None:
        """Its listener has no room for a stranger any more."""
        self._lose(error)

    def _lose_failed(self, error: Exception) -> None:
        log_exception(f"a handler of {self!r} failed; the connection is closed")
        self._lose(ProtocolError(f"handling a message failed: {error!r}"))

    def _lose_late(self, within_s: float) -> None:
        if self._sock is None or self._core.entries.get(self.fileno()) == self._on_connected:
            self._lose(transports.unreachable(self.endpoint, f"no answer within {within_s:g} s"))
        else:
            self._lose(HandshakeError(f"no complete handshake with {self.peer} within {within_s:g} s"))

    def _close_here(self) -> None:
        """close() was called: go, or stay until what was sent before has left."""
        if self._gone:
            return
        self._tell(None)
        if self._writer.idle:
            self._drop()
        elif self._handshake is None and self._sock is not None:
            self._core.entries[self._sock.fileno()] = self._on_lingering
            self._core.modify(self._sock.fileno(), OUT)
            self._core.call_later(LINGER_S, self._drop)
        # else it opens first, or reaches its deadline

    def _on_lingering(self, mask: int) -> None:
        self._writer.resume()
        if self._writer.idle:
            self._drop()
        elif mask & READABLE:
            self._read()  # nobody wants it, but it would stay ready

    def _drop(self) -> None:
        """Stop reading and writing; the descriptor itself closes after the round."""
        if self._gone:
            return
        self._gone = True
        self._writer.drop()
        if self._deadline is not None:
            self._deadline.cancel()
        if self._sock is not None:
            self._core.unregister(self._sock.fileno())
        self._core.post(self._shut)

    def detach(self) -> transports.Stream:
        """Leave the socket to the caller, whose bytes are no frames any more; ``on_close`` follows, with None. On the
        leader's thread, while nobody sends and the peer sends nothing before it is spoken to. ProtocolError if not."""
        sock = self._sock
        if self.closed or sock is None or not self._writer.idle or self._decoder.pending:
            raise ProtocolError(f"{self!r} is not at rest: its socket cannot be taken over")
        if self._tls is not None:
            self._tls.reads_alone = True
        self.closed = self._gone = True
        self._writer.drop()
        self._core.unregister(sock.fileno())
        self._sock = self._tls = None
        self._tell(None)
        self._core.post(lambda: self._on_gone(self))
        return sock

    def _shut(self) -> None:
        if self._writer.try_close():
            self._sock = self._tls = None
            self._on_gone(self)
        else:
            self._core.post(self._shut)

    def _tell(self, error: WireError | None) -> None:
        handler, self._handler = self._handler, None
        self._on_accept = None
        if handler is not None:
            self._core.post(lambda: handler.on_close(self, error))

    def end(self) -> None:
        """With the reactor, whose last leader has gone."""
        if self._handshake is not None:
            self._writer.drop()
        self.closed = self._gone = True
        self._handler = None
        self._writer.close_now()
        self._sock = self._tls = None

    def abandon(self) -> None:
        """In a forked child: let go of the descriptor without touching what the parent shares."""
        self.closed = self._gone = True
        self._handler = None
        self._writer.drop()
        sock, self._sock = self._sock, None
        if sock is not None:
            os.close(sock.detach())

    def fail(self, error: Exception) -> None:
        """Something of ours went wrong with it, on the leader's thread."""
        self._lose(ProtocolError(f"an internal error: {error!r}"))

    def fileno(self) -> int:
        """-1 once it is closed."""
        return self._sock.fileno() if self._sock is not None else -1

    @property
    def peer(self) -> str:
        """Whom an error message names."""
        if self.hello is not None:
            return f"{self.hello.role} (pid {self.hello.pid})"
        return self.endpoint or self._who or "the peer"

    def __repr__(self) -> str:
        state = "closed" if self.closed else "opening" if self._handshake is not None else "open"
        return f"<Connection {self.peer} {state}, {self.buffered} bytes waiting>"


_HELLO_TYPES: tuple[Any, ...] = (str, bytes, bytes, bytes, int, (int, float), str)


def _hello_in(message: tuple[Any, ...]) -> Hello:
    """The Hello that a first message must be. Raises ProtocolError."""
    hello = unpack(message)
    if not isinstance(hello, Hello):
        raise ProtocolError(f"the first message must be Hello, not {type(hello).__name__}")
    if not all(isinstance(value, kind) for value, kind in zip(message[1:], _HELLO_TYPES, strict=True)):
        raise ProtocolError("the first message is a Hello with fields of wrong types")
    return hello
