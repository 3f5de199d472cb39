"""The reactor: connections, timers and waits of one process.

Whoever waits, polls. ``wait`` makes the calling thread the leader, which reads the sockets and runs the
handlers until its own wait is over, or a follower, which sleeps until then or until it is promoted. When
nobody has polled for ``TICK_S``, the background thread leads (processes with one thread have none:
``background=False`` and ``run_forever``). Who is what, ``election`` decides; what the leader runs, ``core``
keeps; a peer is a ``Connection``.

Called by every service of every process. Rules:

* Handlers, timers and posts run on the leader's thread, one at a time, and must not wait: ``wait`` raises
  there. Nothing that they do needs a lock that is held around them, so they may send, notify, dial, close and
  post, and so may finalizers and signal handlers at any point of any thread: none of these ever blocks.
* Lost wake-ups: a waiter is registered by its owner, then looks whether it is ``done``, then sleeps;
  ``notify`` sets ``done``, then looks who sleeps.
* KeyboardInterrupt leaves ``wait`` only between rounds, when the reactor's state is whole
  (``set_interrupt``).
* An idle process has no periodic wake-up.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from minray.wire import transports
from minray.wire.auth import ClientHandshake
from minray.wire.connection import Connection, Handler
from minray.wire.core import RECV_BUFFER, Core, Timer, log_exception
from minray.wire.election import Background, Election, Entry, Tick
from minray.wire.errors import ReactorClosed
from minray.wire.listener import Listeners
from minray.wire.messages import Hello
from minray.wire.poller import IN, MAX_EVENTS, usable_cpus
from minray.wire.spin import SpinPolicy

if TYPE_CHECKING:
    from minray._base.config import Config
    from minray.wire.tls import Tls

__all__ = ["Connection", "Handler", "Reactor", "Timer", "Waiter"]

TICK_S = 0.002  # nobody polled for one to two of these: the background thread leads
BLOCK_S = 0.001  # a wait that is longer than this has blocked
CLOSE_S = 2.0  # how long close() waits for a leader that is in a handler
_FOLLOW, _OUST = Entry.FOLLOW, Entry.OUST
_OUSTED = Background.OUSTED
_get_ident = threading.get_ident


class Waiter:
    """One wait of one thread. ``notify`` sets ``done``; whoever uses a Waiter again clears it."""

    __slots__ = ("done", "gate")

    def __init__(self) -> None:
        self.done = False
        self.gate: Any = None  # a lock used as a binary semaphore, once its thread follows


class Reactor:
    """See the file's head.

    ``token``: the cluster's secret, proved on every connection. ``max_frame``: bytes. ``spin_us``: how long a
    leader may poll without sleeping where that pays (see spin). ``background``: whether there is a background
    thread. ``poller``: "auto", or "selectors" to do without epoll. ``handshake_s``: what a new connection gets
    to prove itself. ``tls``: for TCP, both ways: the files of certificate, key and authority (see tls).
    """

    def __init__(
        self,
        *,
        token: bytes,
        max_frame: int,
        spin_us: int = 50,
        background: bool,
        name: str,
        poller: str = "auto",
        handshake_s: float = 10.0,
        tls: tuple[str, str, str] | None = None,
    ) -> None:
        self.name = name
        self.on_background_takeover: Callable[[], None] | None = None
        self.main_waiting = False  # the main thread is inside wait(): its SIGINT belongs to set_interrupt
        self._token = token
        self._max_frame = max_frame
        self._handshake_s = handshake_s
        self._tls_files = tls
        self._tls: Tls | None = None  # once there is a use for them
        self._core = Core(poller, min(RECV_BUFFER, max_frame + 4))  # so that no read has a longer frame
        self._core.entries[self._core.bell.fileno()] = self._on_bell
        self._core.on_failure = self._on_failure
        self._election: Election[Waiter] = Election(background=background)
        self._mutex = threading.Lock()  # guards _election; held for a few instructions, by threads in _inside
        self._inside: set[int] = set()  # threads that lead, follow, or change who does
        self._connections: set[Connection] = set()
        self._listeners = Listeners(self._core, token, handshake_s, self._tls_for, lambda: self._make(None, ""))
        self._spin = SpinPolicy(spin_us / 1e6 if usable_cpus() > 1 else 0.0)
        self._main_ident = threading.main_thread().ident
        self._main_waiter: Waiter | None = None
        self._interrupt = False
        self._closed: str | None = None  # why
        self._torn_down = False
        self._poll_waiter = Waiter()
        self._forever = Waiter()
        self._background_gate = _locked()
        self._background: threading.Thread | None = None
        if background:
            self._background = threading.Thread(
                target=self._run_background, name=f"minray-{name}", daemon=True
            )
            self._background.start()

    @classmethod
    def configured(cls, config: Config, *, token: bytes, spin_us: int = 0, background: bool, name: str) -> Reactor:
        """One as the session's settings want it."""
        limits: dict[str, Any] = {"max_frame": config.max_frame, "handshake_s": config.handshake_s, "tls": config.tls}
        return cls(token=token, spin_us=spin_us, background=background, name=name, **limits)

    # --- connections (any thread)

    def listen(self, endpoint_request: str, on_accept: Callable[[Connection], Handler]) -> str:
        """Listen, e.g. at "unix:/path" or "tcp:127.0.0.1:0", or at both; returns the real endpoint.

        ``on_accept`` is called after authentication and Hello, with ``conn.hello`` set, and returns the
        connection's handler. Raises EndpointError, OSError, TlsFileError, ReactorClosed."""
        self._check_open()
        return self._listeners.listen(endpoint_request, on_accept)

    def listen_socket(self, sock: socket.socket, on_accept: Callable[[Connection], Handler]) -> str:
        """The same with a socket that listens already (inherited from a parent)."""
        self._check_open()
        return self._listeners.adopt(sock, on_accept)

    def unlisten(self, endpoint: str) -> None:
        """Accept no more there. Connections stay."""
        self._listeners.unlisten(endpoint)

    def dial(
        self, endpoint: str, hello: Hello, handler: Handler, within_s: float | None = None
    ) -> Connection:
        """Begin to connect and return at once: what is sent before the handshake ends is queued; failure, also
        to be there ``within_s`` seconds (None: the handshake's deadline), comes to ``handler.on_close``. Raises
        EndpointError for what is no endpoint, TlsFileError, ReactorClosed."""
        self._check_open()
        place = transports.nearest(endpoint, same_machine=True)
        transports.split_endpoint(place)
        tls = self._tls_for(place)
        conn = self._make(handler, endpoint)
        try:
            conn.open_dialling(ClientHandshake(self._token), hello, within_s or self._handshake_s, tls)
        except ValueError:
            self._check_open()  # it was closed at this moment
            raise
        return conn

    def _tls_for(self, endpoint: str) -> Tls | None:
        """Its files are read when the first TCP endpoint comes: many sessions have none."""
        if self._tls_files is None or not endpoint.startswith("tcp:"):
            return None
        if self._tls is None:
            from minray.wire.tls import Tls

            self._tls = Tls(*self._tls_files)
        return self._tls

    def add_socket(self, sock: socket.socket, handler: Handler) -> Connection:
        """Adopt a connected socket whose other end only a relative can hold (an inherited socket pair): no
        authentication and no Hello."""
        self._check_open()
        transports.prepare(sock)
        conn = self._make(handler, "")
        conn.open_trusted(sock)
        return conn

    def add_reader(self, fd: int, callback: Callable[[int], None]) -> None:
        """``callback(fd)`` on the leader's thread whenever ``fd`` is readable or at its end."""
        self.add_io(fd, IN, lambda mask: callback(fd))

    def add_io(self, fd: int, mask: int, callback: Callable[[int], None]) -> None:
        """``callback(ready mask)`` on the leader's thread when ``fd`` is ready for ``mask`` (see poller)."""

        def entry(ready: int) -> None:
            try:
                callback(ready)
            except Exception:
                log_exception(f"the callback of descriptor {fd} failed; it is watched no more")
                self._core.unregister(fd)

        self._check_open()
        self._core.register(fd, mask, entry)

    def remove_reader(self, fd: int) -> None:
        """End add_reader or add_io, before ``fd`` is closed. Unknown descriptors are ignored. Not on the
        leader's thread: a callback may be running still."""
        self._core.unregister(fd)

    def _make(self, handler: Handler | None, endpoint: str) -> Connection:
        conn = Connection(self._core, self._max_frame, handler, endpoint, self._connections.discard)
        self._connections.add(conn)
        return conn

    def _on_failure(self, fd: int, error: Exception) -> None:
        for conn in [one for one in self._connections if one.fileno() == fd]:
            conn.fail(error)

    # --- posts and timers (any thread)

    def call_soon(self, fn: Callable[[], None]) -> None:
        """Run ``fn`` on the leader's thread, after the round in progress."""
        self._core.post(fn)

    def call_later(self, delay_s: float, fn: Callable[[], None]) -> Timer:
        """Run ``fn`` on the leader's thread in ``delay_s`` seconds, unless the timer is cancelled."""
        return self._core.call_later(delay_s, fn)

    def notify(self, waiter: Waiter) -> None:
        """``waiter`` is done: wake whoever sleeps on it."""
        waiter.done = True
        if waiter.gate is not None:
            _open_gate(waiter.gate)
        core = self._core
        if core.sleeping and self._election.leader is waiter:
            core.wake()

    def set_background_demand(self, wanted: bool) -> None:
        """Somebody waits who cannot poll (a future): the background thread leads when nobody else does."""
        election = self._election
        election.demand = wanted
        if wanted and election.leader is None and election.background is Background.TICKING:
            _open_gate(self._background_gate)

    # --- waiting

    def wait(
        self, waiter: Waiter, timeout: float | None = None, *, on_block: Callable[[], None] | None = None
    ) -> bool:
        """Block until ``waiter.done`` (True) or for ``timeout`` seconds (False); 0 polls once.

        ``on_block`` is called once if that takes over ~1 ms, with no lock held. Raises KeyboardInterrupt on
        the main thread after ``set_interrupt``, ReactorClosed after ``close``, RuntimeError inside a handler
        or another wait of the same thread: a callback that waited would wait for itself."""
        if waiter.done:
            return True
        ident = _get_ident()
        inside = self._inside
        if ident in inside:
            raise RuntimeError("this thread is inside minray's runtime already: it must not wait here")
        now = monotonic()
        deadline = None if timeout is None else now + timeout
        main = ident == self._main_ident
        try:
            inside.add(ident)
            if main:
                self._main_waiter = waiter
                self.main_waiting = True
            with self._mutex:
                entry = self._election.enter(waiter)
                if entry is _FOLLOW:
                    if waiter.gate is None:
                        waiter.gate = _locked()
                elif entry is _OUST:
                    self._core.sleeping = False
            if entry is _FOLLOW:
                on_block = self._follow(waiter, now, deadline, main, on_block)
            elif entry is _OUST:
                self._core.bell.ring()
            if self._election.leader is waiter:
                self._lead(waiter, now, deadline, main, on_block)
        finally:
            with self._mutex:
                promoted = self._election.leave(waiter)
                unpark = promoted is None and self._election.unpark()
            if promoted is not None:
                _open_gate(promoted.gate)
            elif unpark:
                _open_gate(self._background_gate)
            inside.discard(ident)
            if main:
                self._main_waiter = None
                self.main_waiting = False
        if main and self._interrupt:
            self._interrupt = False
            raise KeyboardInterrupt
        if self._closed is not None:
            self._finish_closing()
            if not waiter.done:
                raise ReactorClosed(self._closed)
        return waiter.done

    def _follow(
        self,
        waiter: Waiter,
        now: float,
        deadline: float | None,
        main: bool,
        on_block: Callable[[], None] | None,
    ) -> Callable[[], None] | None:
        """Sleep until done, promoted, or out of time. Returns ``on_block`` if it is still to be called."""
        gate, election = waiter.gate, self._election
        block_at = None if on_block is None else now + BLOCK_S
        while not waiter.done and election.leader is not waiter and self._closed is None:
            if (main and self._interrupt) or (deadline is not None and now >= deadline):
                break
            if block_at is not None and now >= block_at:
                callback, on_block, block_at = on_block, None, None
                assert callback is not None
                callback()
            else:
                until = _earlier(deadline, block_at)
                gate.acquire(True, -1 if until is None else min(until - now, threading.TIMEOUT_MAX))
            now = monotonic()
        return on_block

    def _lead(
        self,
        waiter: Waiter,
        began: float,
        deadline: float | None,
        main: bool,
        on_block: Callable[[], None] | None,
    ) -> None:
        """Poll until done, out of time, interrupted or closed."""
        core = self._core
        poll = core.poll
        started = now = monotonic()
        spin = self._spin.begin()
        spin_until = now + spin
        if deadline is not None and now >= deadline:
            spin_until = deadline = now + 1e-9  # poll once, without sleeping
        block_at = None if on_block is None else began + BLOCK_S
        while not waiter.done and self._closed is None and not (main and self._interrupt):
            if core.posts or core.new_timers:  # before the poll: the peer works meanwhile
                core.housekeep()
            if now < spin_until:
                events = poll(0, MAX_EVENTS)
            else:
                spin = 0.0  # in vain: no more of it in this wait
                events = self._poll_asleep(waiter, main, _earlier(deadline, block_at), now)
            if events:
                core.dispatch(events)
            now = monotonic()
            if events:
                spin_until = now + spin
            if core.timers and core.timers[0][0] <= now:
                core.housekeep()
            if block_at is not None and now >= block_at and not waiter.done:
                callback, on_block, block_at = on_block, None, None
                assert callback is not None
                callback()
            if deadline is not None and now >= deadline:
                break
        self._spin.ended(now - started)

    def _poll_asleep(
        self, waiter: Waiter, main: bool, until: float | None, now: float
    ) -> list[tuple[int, int]]:
        """One poll that may sleep until ``until`` or the next timer."""
        core = self._core
        timeout = core.timeout() if core.timers else -1.0
        if until is not None and (timeout < 0 or until - now < timeout):
            timeout = max(0.0, until - now)
        timeout = core.fall_asleep(timeout)
        if waiter.done or self._closed is not None or (main and self._interrupt):
            timeout = 0.0
        events = core.poll(timeout, MAX_EVENTS)
        core.sleeping = False
        return events

    def poll(self) -> bool:
        """One round without sleeping, if nobody leads. For loops that submit. Whether anything came."""
        ident = _get_ident()
        if ident in self._inside or self._closed is not None:
            return False
        me, core, mutex = self._poll_waiter, self._core, self._mutex
        self._inside.add(ident)
        try:
            if not mutex.acquire(False):
                return False
            try:
                entry = self._election.try_enter(me)
                if entry is _OUST:
                    core.sleeping = False
            finally:
                mutex.release()
            if entry is _FOLLOW:
                return False
            try:
                if entry is _OUST:
                    core.bell.ring()
                events = core.poll(0, MAX_EVENTS)
                core.dispatch(events)
                core.housekeep()
            finally:
                with mutex:
                    promoted = self._election.leave(me)
                    unpark = promoted is None and self._election.unpark()
                if promoted is not None:
                    _open_gate(promoted.gate)
                elif unpark:
                    _open_gate(self._background_gate)
        finally:
            self._inside.discard(ident)
        if self._closed is not None:
            self._finish_closing()
        return bool(events)

    def inside(self) -> bool:
        """Whether the calling thread is inside the reactor (a handler, or a finalizer in the middle)."""
        return _get_ident() in self._inside

    # --- the background thread

    def _run_background(self) -> None:
        ident = _get_ident()
        self._inside.add(ident)
        gate, election, mutex = self._background_gate, self._election, self._mutex
        try:
            while self._closed is None:
                with mutex:
                    tick = election.tick()
                if tick is Tick.LEAD:
                    self._lead_in_background()
                if self._closed is None:
                    gate.acquire(True, -1 if tick is Tick.PARK else TICK_S)
        finally:
            with mutex:
                promoted = election.retire()
            if promoted is not None:
                _open_gate(promoted.gate)
            self._inside.discard(ident)
        self._finish_closing()

    def _lead_in_background(self) -> None:
        """Lead until a waiter takes over, or the reactor closes."""
        core, election, mutex = self._core, self._election, self._mutex
        if self.on_background_takeover is not None:
            try:
                self.on_background_takeover()
            except Exception:
                log_exception("on_background_takeover failed")
        while self._closed is None:
            core.housekeep()
            timeout = core.timeout()
            with mutex:
                leading, promoted = election.rested()
                if leading:
                    timeout = core.fall_asleep(timeout)
            if promoted is not None:
                _open_gate(promoted.gate)
            if not leading:
                return
            events = core.poll(0.0 if self._closed is not None else timeout, MAX_EVENTS)
            with mutex:
                if not election.woke():
                    return
                core.sleeping = False
            core.dispatch(events)

    # --- processes with one thread

    def run_forever(self) -> None:
        """Lead until ``stop`` or ``close``, without spinning."""
        self._spin = SpinPolicy(0.0)
        with contextlib.suppress(ReactorClosed):
            self.wait(self._forever)
        self._forever.done = False

    def stop(self) -> None:
        """End ``run_forever``, or the next one. From any thread, handler or signal handler."""
        self.notify(self._forever)

    # --- signals, forks, the end

    def set_interrupt(self) -> None:
        """From a signal handler: the main thread's wait raises KeyboardInterrupt at its next safe point. If
        it is in no wait (``main_waiting``), its next wait does."""
        if self._closed is not None:
            return
        self._interrupt = True
        waiter = self._main_waiter
        if waiter is not None and waiter.gate is not None:
            _open_gate(waiter.gate)
        self._core.wake()

    def clear_interrupt(self) -> bool:
        """Forget an interrupt that no wait has raised yet. Returns whether there was one."""
        pending, self._interrupt = self._interrupt, False
        return pending

    def fileno(self) -> int:
        """Readable when a poll would find something (epoll, kqueue)."""
        return self._core.poller.fileno()

    def close(self) -> None:
        """End all waits (ReactorClosed), the background thread and all connections, without ``on_close``.
        From a handler: as soon as its round is over."""
        if self._closed is None:
            self._closed = f"minray's reactor {self.name!r} has been closed"
        for waiter in self._election.followers:
            _open_gate(waiter.gate)
        _open_gate(self._background_gate)
        self._core.wake()
        self._finish_closing()

    def _finish_closing(self) -> None:
        """Wait until nobody polls, then let go of everything. Nothing on a thread that polls: it comes here
        when it has left."""
        ident = _get_ident()
        if ident in self._inside:
            return
        self._inside.add(ident)
        try:
            with self._mutex:
                mine = not self._torn_down
                self._torn_down = True
            if mine:
                self._outlast_the_leader()
            if self._background is not None and self._background is not threading.current_thread():
                self._background.join(CLOSE_S)
            if mine:
                self._tear_down()
        finally:
            self._inside.discard(ident)

    def _outlast_the_leader(self) -> None:
        closer = Waiter()
        closer.gate = _locked()
        with self._mutex:
            entry = self._election.enter(closer)
        if entry is not Entry.LEAD:
            self._core.bell.ring()
        if entry is _FOLLOW:
            closer.gate.acquire(True, CLOSE_S)

    def _tear_down(self) -> None:
        for conn in list(self._connections):
            conn.end()
        self._listeners.end()
        self._connections.clear()
        self._core.close()

    def after_fork_child(self) -> None:
        """In a child forked from a process that uses minray: close every descriptor and be dead from now on.
        What is shared with the parent (registrations, peers, paths) is not touched."""
        self._closed = "this process was forked from one that uses minray: it has no runtime of its own"
        self._torn_down = True
        self._mutex = threading.Lock()
        self._election = Election(background=False)
        self._inside = set()
        self._background = None
        self._main_waiter, self.main_waiting = None, False
        for conn in list(self._connections):
            conn.abandon()
        self._listeners.abandon()
        self._connections.clear()
        self._core.close()

    def _check_open(self) -> None:
        if self._closed is not None:
            raise ReactorClosed(self._closed)

    def _on_bell(self, mask: int) -> None:
        if self._election.background is not _OUSTED:  # else that thread must hear it too
            self._core.bell.silence()

    def __repr__(self) -> str:
        state = "closed" if self._closed is not None else self._election.background.value
        return f"<Reactor {self.name!r}: {len(self._connections)} connections, background {state}>"


def _locked() -> Any:
    lock = threading.Lock()
    lock.acquire()
    return lock


def _open_gate(gate: Any) -> None:
    """Let one sleeper through, now or later. Gates count to one: opening an open one changes nothing."""
    try:
        gate.release()
    except RuntimeError:  # it is open
        return


def _earlier(first: float | None, second: float | None) -> float | None:
    if first is None:
        return second
    return first if second is None or first < second else second
