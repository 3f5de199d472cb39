"""A machine's process: the composition root, the only module that imports both ``gcs`` and ``node``.

    head       listener ─▶ Router ──Requests in METHODS──▶ GcsService ──StartActor, StopActor, Reply──┐
                              └───────── everything else ─▶ NodeService ◀─────────────────────────────┘
                                                              └── ActorStarted, Died, add_job … ──▶ GcsService
    node only  listener ─▶ Router ─────────────────────▶ NodeService ◀──▶ GcsLink ◀── connection ──┐
    head       listener ─▶ NodeRouter (role "node") ──▶ GcsService.on_node ◀───────────────────────┘

Started by ``worker.launch`` as ``python -S -c …`` with listening sockets, one end of the zygote's socket
pair and, on its stdin, a length and a blob of built-in values (see ``read_boot``). One thread, one reactor.

What ``init()`` or a ``Cluster`` started ends with its driver, however that ends: by the end of stdin (the driver
closed it, exited, or became another program), by the driver's pidfd (also when a forked child still holds
stdin's other end), or, where there are none, by the end of its connection. The pid counts only with its start
time. A node also ends when the head declares it dead, or is gone for too long; the end of a head is the end of
its nodes.

Invariants: neither numpy nor cloudpickle is ever imported here and no user data is unpickled; nothing but
0–2 and the sockets is inherited; an idle daemon of a session of one node has no periodic wake-up; whatever ends
it, the folder, the segments and the processes of the session go first (or, after SIGKILL, by the zygote's hand).
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from minray._base.config import Config
from minray._base.process import is_alive, start_time
from minray.gcs.service import METHODS, GcsService
from minray.gcs.tables import Tables, TablesError
from minray.node.gcs_link import GcsLink
from minray.node.inventory import inventory
from minray.store.remains import remove_tree
from minray.wire.codec import decode
from minray.wire.errors import WireError
from minray.wire.messages import (
    ActorEnded,
    ActorStarted,
    BundlesPrepared,
    Died,
    Hello,
    Message,
    NodeReport,
    Reply,
    Request,
    StoreReport,
    Watch,
    pack,
    unpack,
)
from minray.wire.reactor import Connection, Handler, Reactor

BOOT_LIMIT = 16 * 1024 * 1024
PATIENCE_S = 4  # beyond the grace, for the end; then the zygote has to do it
DRIVER_POLL_S = 5.0  # only where there is no pidfd
END_SESSION = "end_session"  # the Request by which a tool ends a daemon that stays
NODE = "node"  # the role of a node that dials
_REQUEST = Request.TAG
_FOR_GCS = frozenset(
    kind.TAG for kind in (ActorStarted, ActorEnded, Died, NodeReport, StoreReport, Watch, BundlesPrepared)
)  # what a node says to the GCS, besides requests


def read_boot(fd: int) -> dict[str, Any]:
    """The boot blob: ``config`` (Config.to_dict), ``session_dir``, ``prefix``, ``created``, ``token``,
    ``endpoint``, ``listen_fds``, ``zygote_fd`` (-1: none), ``zygote`` and ``driver`` (pid, start time, or
    None), ``node_id``, ``node`` (what it offers, see ``launch``), ``sys_path`` and ``python_flags`` of the
    driver's interpreter; ``cluster``: where other machines may reach it, or None; ``gcs``: the head to join, or None;
    for a head that others may join ``tables`` (a file) and ``head_folder``, which goes when this process ends in good
    order, and ``resume`` (whether the tables are to be there)."""
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


class Gcs(Protocol):
    """The GCS as a node's process has it: in this process, or behind a connection."""

    def start(self) -> None:
        """The node is made, and about to start."""

    def send(self, message: Message) -> None:
        """From the node."""

    def join(self, info: dict[str, Any]) -> None:
        """The node's ``add_node``."""

    def handler(self, conn: Connection, inner: Handler) -> Handler:
        """Who handles an accepted connection; ``inner``: the node's own handler."""

    def leave(self, reason: str) -> None:
        """This process is about to end."""

    def close(self) -> None:
        """It ends now."""


class HeadGcs:
    """The head's: the tables are here."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.service = GcsService(
            daemon.reactor,
            Tables(daemon.boot.get("tables"), resume=bool(daemon.boot.get("resume"))),
            wall=time.time,
            make_namespace=lambda: os.urandom(16).hex(),
            available=lambda: [daemon.node.available()],
            balance=lambda: daemon.node.table.book.available,
            config=daemon.config,
        )

    def start(self) -> None:
        """Gcs."""
        self.service.recover()
        self.service.attach_node(self.daemon.node_id, self.daemon.node.on_gcs)

    def send(self, message: Message) -> None:
        """Gcs."""
        self.service.on_node(self.daemon.node_id, message)

    def join(self, info: dict[str, Any]) -> None:
        """Gcs."""
        self.daemon.node.ask_gcs("add_node", info, then=lambda reply: self.daemon.node.joined(reply.value))

    def handler(self, conn: Connection, inner: Handler) -> Handler:
        """Gcs."""
        if conn.hello is not None and conn.hello.role == NODE:
            conn.limit_silence(self.daemon.config.node_timeout_s)
            return NodeRouter(self.service, inner, conn.hello.worker_id)
        return HeadRouter(self.daemon, self.service, inner)

    def leave(self, reason: str) -> None:
        """Gcs."""
        self.service.end(reason)

    def close(self) -> None:
        """Gcs. In good order: nobody will need the tables any more."""
        try:
            self.service.close()
        except TablesError as error:
            say(str(error))
        folder = self.daemon.boot.get("head_folder")
        if folder:
            remove_tree(folder)


class RemoteGcs:
    """A node's: the head is another process."""

    def __init__(self, daemon: Daemon) -> None:
        boot, config = daemon.boot, daemon.config
        pid = os.getpid()
        life = (pid, start_time(pid) or 0.0)
        self.daemon = daemon
        self.link = GcsLink(
            daemon.reactor,
            boot["gcs"]["endpoint"],
            Hello(NODE, daemon.node_id, daemon.node_id, b"", *life, boot["endpoint"]),
            patience_s=config.gcs_reconnect_s,
            silence_s=config.node_timeout_s,
            deliver=lambda message: daemon.node.on_gcs(message),
            joined=lambda terms: daemon.node.joined(terms),
            lost=lambda reason: daemon.end(reason, failed=not self.link.dismissed),
            inventory=lambda: inventory(daemon.node),
        )

    def start(self) -> None:
        """Gcs."""

    def send(self, message: Message) -> None:
        """Gcs."""
        self.link.send(message)

    def join(self, info: dict[str, Any]) -> None:
        """Gcs."""
        self.link.join(info)

    def handler(self, conn: Connection, inner: Handler) -> Handler:
        """Gcs."""
        return Router(self.daemon, inner)

    def leave(self, reason: str) -> None:
        """Gcs."""
        self.link.leave(reason)

    def close(self) -> None:
        """Gcs."""


class Router:
    """Hands what a connection says to the node, in order; one per connection."""

    __slots__ = ("daemon", "inner")

    def __init__(self, daemon: Daemon, inner: Handler) -> None:
        self.daemon = daemon
        self.inner = inner

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        """Reactor: everything that one read brought."""
        rest = [
            raw
            for raw in messages
            if raw[0] != _REQUEST or len(raw) != 4 or not self.answered(conn, raw)
        ]
        if rest:
            self.inner.on_messages(conn, rest)

    def answered(self, conn: Connection, raw: tuple[Any, ...]) -> bool:
        """Whether a Request was not for the node; then it is dealt with."""
        if raw[2] != END_SESSION:
            return False
        conn.send(pack(Reply(raw[1], True, True)))
        self.daemon.end("it was told to")
        return True

    def on_close(self, conn: Connection, error: WireError | None) -> None:
        """Reactor: the connection is gone."""
        self.inner.on_close(conn, error)
        if conn.hello is not None and conn.hello.role == "driver":
            self.daemon.look_after_driver()


class HeadRouter(Router):
    """On the head: what core workers and tools ask the GCS goes there."""

    __slots__ = ("gcs",)

    def __init__(self, daemon: Daemon, gcs: GcsService, inner: Handler) -> None:
        super().__init__(daemon, inner)
        self.gcs = gcs

    def answered(self, conn: Connection, raw: tuple[Any, ...]) -> bool:
        """See Router."""
        if raw[2] not in METHODS:
            return super().answered(conn, raw)
        self.gcs.on_request(conn, _request(raw))
        return True

    def on_close(self, conn: Connection, error: WireError | None) -> None:
        """Reactor: the connection is gone."""
        self.gcs.on_close(conn)
        super().on_close(conn, error)


class NodeRouter:
    """On the head: another node's connection. What it asks or reports is for the GCS, once that has let it in; the
    rest (a transfer, say) is for the node here."""

    __slots__ = ("admitted", "gcs", "inner", "node_id")

    def __init__(self, gcs: GcsService, inner: Handler, node_id: bytes) -> None:
        self.gcs = gcs
        self.inner = inner
        self.node_id = node_id
        self.admitted = False

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        """Reactor: everything that one read brought."""
        rest: list[tuple[Any, ...]] = []
        for raw in messages:
            if raw[0] == _REQUEST and raw[2] == "add_node" and not self.admitted:
                self.admitted = self.gcs.admit_node(self.node_id, conn, _request(raw))
                if not self.admitted:
                    return
            elif self.admitted and (raw[0] == _REQUEST or raw[0] in _FOR_GCS):
                self.gcs.on_node(self.node_id, unpack(raw))
            else:
                rest.append(raw)
        if rest:
            self.inner.on_messages(conn, rest)

    def on_close(self, conn: Connection, error: WireError | None) -> None:
        """Reactor: the connection is gone."""
        if self.admitted:
            self.gcs.node_closed(self.node_id, conn, f"its connection to the head has ended ({error})")
        self.inner.on_close(conn, error)


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
        "clustered": boot["cluster"] is not None,
        "gcs_endpoint": boot["gcs"]["endpoint"] if boot["gcs"] is not None else boot["endpoint"],
        "is_head": boot["gcs"] is None,
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
        gcs_send=daemon.gcs.send,
        gcs_join=daemon.gcs.join,
        end_session=lambda reason: daemon.end(reason, failed=True),
    )


class Daemon:
    """A head with the node of its machine, or such a node alone."""

    def __init__(
        self, boot: dict[str, Any], life_fd: int, make_node: Callable[[Daemon], Any] = make_node
    ) -> None:
        self.boot = boot
        self.config = Config.from_dict(boot["config"])
        self._watched = [life_fd]  # descriptors that tell of the driver's end
        self._driver: tuple[int, float] | None = boot["driver"]
        self._ending = False
        self.failed = False  # it ended, and nobody wanted that
        self.last_resort: Callable[[int], Any] = lambda seconds: None  # ends this process after that time
        self.reactor = Reactor.configured(self.config, token=boot["token"], background=False, name="daemon")
        self.node_id: bytes = boot["node_id"]
        self.gcs: Gcs = HeadGcs(self) if boot["gcs"] is None else RemoteGcs(self)
        self.node: Any = make_node(self)

    def start(self) -> None:
        """Begin to serve."""
        self.gcs.start()
        self.node.start()
        for fd in self.boot["listen_fds"]:
            self.reactor.listen_socket(socket.socket(fileno=fd), self._on_accept)
        if self._driver is not None:
            self._watch_driver()

    def _on_accept(self, conn: Connection) -> Handler:
        return self.gcs.handler(conn, self.node.on_accept(conn))

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

    def end(self, reason: str, failed: bool = False) -> None:
        """End the session: its processes, its segments, its folder, then this process."""
        if not self._ending:
            self._ending, self.failed = True, failed
            say(f"ends because {reason}")
            for fd in self._watched:
                self.reactor.remove_reader(fd)
                os.close(fd)
            self.last_resort(int(self.config.shutdown_grace_s) + PATIENCE_S)
            self.gcs.leave(reason)
            self.node.shutdown(reason, self._ended)

    def _ended(self) -> None:
        self.gcs.close()
        self.reactor.stop()


def say(text: str) -> None:
    """A line in the log."""
    print(f"[{time.strftime('%H:%M:%S')}] minray daemon {os.getpid()} {text}", file=sys.stderr, flush=True)


def main(folder: str) -> None:
    """The process: boot, serve, end. ``folder``: the session's. Exit status 1: the head or the zygote was lost."""
    try:
        boot = read_boot(0)
    except EOFError:
        from minray.store.remains import remove_session

        remove_session(folder)
        raise
    fds = {fd for fd in (*boot["listen_fds"], boot["zygote_fd"]) if fd >= 0}
    life = detach(fds)
    try:
        daemon = Daemon(boot, life)
    except TablesError as error:
        say(f"cannot start: {error}")
        sys.exit(1)
    if hasattr(signal, "alarm"):
        daemon.last_resort = signal.alarm  # nobody handles SIGALRM
    daemon.start()
    gc.enable()  # the launcher turned it off for the imports
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, daemon.on_signal)
    say(f"serves {boot['endpoint']} after {time.process_time() * 1000:.0f} ms of CPU time")
    daemon.reactor.run_forever()
    daemon.reactor.close()
    if daemon.failed:
        sys.exit(1)
