"""The head's process: the composition root, the only module that imports both ``gcs`` and ``node``.

    listener ─▶ Router ──Requests in METHODS──▶ GcsService ──StartActor, StopActor, Reply──┐
                   └───────── everything else ─▶ NodeService ◀─────────────────────────────┘
                                                    └── ActorStarted, Died, add_job … ──▶ GcsService

Started by ``worker.launch`` as ``python -S -c …`` with a listening socket, one end of the zygote's socket
pair and, on its stdin, a length and a blob of built-in values (see ``read_boot``). One thread, one reactor.

A head that ``init()`` started ends with its driver, however that ends: by the end of stdin (the driver
closed it, exited, or became another program), by the driver's pidfd (also when a forked child still holds
stdin's other end), or, where there are none, by the end of its connection. The pid counts only with its start
time.

Invariants: neither numpy nor cloudpickle is ever imported here and no user data is unpickled; nothing but
0–2 and the two sockets is inherited; an idle daemon has no periodic wake-up; whatever ends it, the folder,
the segments and the processes of the session go first (or, after SIGKILL, by the zygote's hand).
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from minray._base.config import Config
from minray._base.process import is_alive
from minray.gcs.service import METHODS, GcsService
from minray.gcs.tables import Tables
from minray.wire.codec import decode
from minray.wire.errors import WireError
from minray.wire.messages import Message, Reply, Request, pack, unpack
from minray.wire.reactor import Connection, Handler, Reactor

BOOT_LIMIT = 16 * 1024 * 1024
PATIENCE_S = 4  # beyond the grace, for the end; then the zygote has to do it
DRIVER_POLL_S = 5.0  # only where there is no pidfd
END_SESSION = "end_session"  # the Request by which a tool ends a head that stays
_REQUEST = Request.TAG


def read_boot(fd: int) -> dict[str, Any]:
    """The boot blob: ``config`` (Config.to_dict), ``session_dir``, ``prefix``, ``created``, ``token``,
    ``endpoint``, ``listen_fd``, ``zygote_fd`` (-1: none), ``zygote`` and ``driver`` (pid, start time, or
    None), ``node`` (what it offers, see ``launch``), ``sys_path`` and ``python_flags`` of the driver's
    interpreter, and for a head that stays ``tables`` (a file)."""
    size = int.from_bytes(_read_exactly(fd, 4), "little")
    if size > BOOT_LIMIT:
        raise ValueError(f"a boot blob of {size} bytes: this is no minray launcher")
    (boot,) = decode(_read_exactly(fd, size))
    return dict(boot)


def _read_exactly(fd: int, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = os.read(fd, min(size, 1 << 16))
        if not part:
            raise EOFError("the launcher went away before it had said what to start")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def detach(keep: set[int]) -> int:
    """Let go of what a parent might have left open; returns stdin's pipe under another number, with
    /dev/null in its place. 1 and 2 are the log already."""
    life = os.dup(0)  # not inheritable, like everything below
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for fd in keep:
        os.set_inheritable(fd, False)
    keep = keep | {0, 1, 2, life}
    for folder in ("/proc/self/fd", "/dev/fd"):
        if os.path.isdir(folder):
            for name in os.listdir(folder):
                if name.isdecimal() and int(name) not in keep:
                    try:
                        os.close(int(name))
                    except OSError:  # the descriptor of the listing itself
                        continue
            break
    os.umask(0o077)
    return life


class Router:
    """Hands what a connection says to the GCS or to the node, in order; one per connection."""

    __slots__ = ("daemon", "inner")

    def __init__(self, daemon: Daemon, inner: Handler) -> None:
        self.daemon = daemon
        self.inner = inner

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        """Reactor: everything that one read brought."""
        rest: list[tuple[Any, ...]] = []
        for raw in messages:
            if raw[0] == _REQUEST and len(raw) == 4 and raw[2] in METHODS:
                self.daemon.gcs.on_request(conn, _request(raw))
            elif raw[0] == _REQUEST and len(raw) == 4 and raw[2] == END_SESSION:
                conn.send(pack(Reply(raw[1], True, True)))
                self.daemon.end("it was told to")
            else:
                rest.append(raw)
        if rest:
            self.inner.on_messages(conn, rest)

    def on_close(self, conn: Connection, error: WireError | None) -> None:
        """Reactor: the connection is gone."""
        self.daemon.gcs.on_close(conn)
        self.inner.on_close(conn, error)
        if conn.hello is not None and conn.hello.role == "driver":
            self.daemon.look_after_driver()


def _request(raw: tuple[Any, ...]) -> Request:
    message = unpack(raw)
    assert isinstance(message, Request)
    return message


def make_node(daemon: Daemon) -> Any:
    """The NodeService of this machine."""
    from minray.node.service import NodeService

    boot = daemon.boot
    folder = boot["session_dir"]
    session = {
        "name": os.path.basename(folder),
        "dir": folder,
        "temp_dir": os.path.dirname(folder),
        "log_dir": os.path.join(folder, "logs"),
        "prefix": boot["prefix"],
        "created": boot["created"],
        "endpoint": boot["endpoint"],
        "token": boot["token"],
        "sys_path": boot["sys_path"],
        "python_flags": boot["python_flags"],
    }
    zygote = socket.socket(fileno=boot["zygote_fd"]) if boot["zygote_fd"] >= 0 else None
    return NodeService(
        daemon.reactor,
        daemon.config,
        session=session,
        node=boot["node"],
        node_id=daemon.node_id,
        zygote_sock=zygote,
        zygote_life=boot["zygote"],
        gcs_send=daemon.send_gcs,
        end_session=daemon.end,
    )


class Daemon:
    """One head with the node of its machine."""

    def __init__(
        self, boot: dict[str, Any], life_fd: int, make_node: Callable[[Daemon], Any] = make_node
    ) -> None:
        self.boot = boot
        self.config = Config.from_dict(boot["config"])
        self._watched = [life_fd]  # descriptors that tell of the driver's end
        self._driver: tuple[int, float] | None = boot["driver"]
        self._ending = False
        self.last_resort: Callable[[int], Any] = lambda seconds: None  # ends this process after that time
        self.reactor = Reactor(
            token=boot["token"], max_frame=self.config.max_frame, spin_us=0, background=False, name="daemon"
        )
        self.gcs = GcsService(
            self.reactor,
            Tables(boot.get("tables")),
            wall=time.time,
            make_namespace=lambda: os.urandom(16).hex(),
            available=lambda: [self.node.available()],
        )
        self.node_id = os.urandom(28)
        self.node: Any = make_node(self)
        self.gcs.attach_node(self.node_id, self.node.on_gcs)

    def start(self) -> None:
        """Begin to serve."""
        self.node.start()
        listener = socket.socket(fileno=self.boot["listen_fd"])
        self.reactor.listen_socket(listener, self._on_accept)
        if self._driver is not None:
            self._watch_driver()

    def _on_accept(self, conn: Connection) -> Handler:
        return Router(self, self.node.on_accept(conn))

    def send_gcs(self, message: Message) -> None:
        """The node reports."""
        self.gcs.on_node(self.node_id, message)

    def on_signal(self, number: int, frame: Any) -> None:
        """SIGTERM or SIGINT: end in good order."""
        self.reactor.call_soon(lambda: self.end(f"it got signal {number}"))

    # --- the driver's life

    def _watch_driver(self) -> None:
        self.reactor.add_reader(self._watched[0], self._on_life)
        assert self._driver is not None
        try:
            fd = os.pidfd_open(self._driver[0])
        except (AttributeError, OSError):  # not Linux, an old kernel, a sandbox, or it is gone already
            self._poll_driver()
        else:
            self._watched.append(fd)
            self.reactor.add_reader(fd, lambda _: self.end("its driver has ended"))
            self.look_after_driver()  # the pid may have been another's before the pidfd was opened

    def _on_life(self, fd: int) -> None:
        if not os.read(fd, 4096):
            self.end("its driver hung up")

    def look_after_driver(self) -> None:
        """End the session if the driver that it belongs to is dead."""
        if self._driver is not None and not is_alive(*self._driver):
            self.end("its driver has ended")

    def _poll_driver(self) -> None:
        self.look_after_driver()
        self.reactor.call_later(DRIVER_POLL_S, self._poll_driver)

    # --- the end

    def end(self, reason: str) -> None:
        """End the session: its processes, its segments, its folder, then this process."""
        if not self._ending:
            self._ending = True
            say(f"ends because {reason}")
            for fd in self._watched:
                self.reactor.remove_reader(fd)
                os.close(fd)
            self.last_resort(int(self.config.shutdown_grace_s) + PATIENCE_S)
            self.node.shutdown(reason, self._ended)

    def _ended(self) -> None:
        self.gcs.close()
        self.reactor.stop()


def say(text: str) -> None:
    """A line in the log."""
    print(f"[{time.strftime('%H:%M:%S')}] minray daemon {os.getpid()} {text}", file=sys.stderr, flush=True)


def main(folder: str) -> None:
    """The process: boot, serve, end. ``folder``: the session's."""
    try:
        boot = read_boot(0)
    except EOFError:
        from minray.store.remains import remove_session

        remove_session(folder)
        raise
    fds = {fd for fd in (boot["listen_fd"], boot["zygote_fd"]) if fd >= 0}
    daemon = Daemon(boot, detach(fds))
    if hasattr(signal, "alarm"):
        daemon.last_resort = signal.alarm  # nobody handles SIGALRM
    daemon.start()
    gc.enable()  # the launcher turned it off for the imports
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, daemon.on_signal)
    say(f"serves {boot['endpoint']} after {time.process_time() * 1000:.0f} ms of CPU time")
    daemon.reactor.run_forever()
    daemon.reactor.close()
