"""Drivers: a session of this machine started and joined, or a running cluster joined. And their end.

    launch (daemon, zygote) → reactor, own listener → dial the node → Register → CoreWorker

The driver's end ends a session that it started: ``shutdown`` asks, waits, and cleans what is left. Ctrl-C is
the driver's: it raises KeyboardInterrupt in the main thread, never inside a change of the runtime's state,
and cancels what the interrupted ``get`` was waiting for.

Called by minray.session. See contract.Runtime.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import replace
from time import monotonic, sleep
from types import FrameType
from typing import TYPE_CHECKING, Any

from minray._base.process import own_identity
from minray.exceptions import RaySystemError
from minray.wire.errors import WireError
from minray.wire.messages import Hello, LogLines, Register, pack
from minray.wire.reactor import Connection, Reactor
from minray.worker.addresses import latest_path, living_latest
from minray.worker.endpoints import sibling_endpoint
from minray.worker.init_options import InitOptions, excludes_resources
from minray.worker.launch import LocalCluster, launch
from minray.worker.log_printer import LogPrinter
from minray.worker.pickling import set_worker_path
from minray.worker.service import CoreWorker

if TYPE_CHECKING:
    from minray.worker.joined import JoinedCluster

REGISTER_S = 30.0
JOIN_S = 4.0  # the same with a node that has been running
STOP_S = 2.0
LAST_LINES_S = 3.0  # how long a driver that ends waits for lines on their way, at most
PRINT_S = 0.005  # between two looks whether all is printed


class Driver(CoreWorker):
    """The runtime of a process that started, or joined, a session."""

    mode = "driver"

    def __init__(
        self, reactor: Reactor, options: InitOptions, hello: Hello, cluster: LocalCluster | JoinedCluster
    ) -> None:
        super().__init__(reactor, options.config, hello)
        self.cluster = cluster
        self._printer = LogPrinter()
        self._old_sigint: Any = None
        if options.log_to_driver:
            self.handle(LogLines, self._printer.on_lines)
        else:
            self.handle(LogLines, lambda _c, m: None)

    # -- Ctrl-C --------------------------------------------------------------------------------------

    def install_sigint(self) -> None:
        """Take Ctrl-C over, unless the program has a handler of its own."""
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._old_sigint = signal.signal(signal.SIGINT, self._on_sigint)

    def _on_sigint(self, number: int, frame: FrameType | None) -> None:
        if not self.closed and self.in_runtime():
            self.reactor.set_interrupt()
        else:
            signal.default_int_handler(number, frame)

    def _restore_sigint(self) -> None:
        if self._old_sigint is None or threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) == self._on_sigint:
            signal.signal(signal.SIGINT, self._old_sigint)
        self._old_sigint = None

    def wait_in_user_code(self, wait: Any, waiter: Any, timeout: float | None) -> bool:
        """Objects: a Ctrl-C that interrupts a wait also cancels this driver's unfinished tasks."""
        try:
            return bool(wait(waiter, timeout))
        except KeyboardInterrupt:
            self._cancel_everything()
            raise

    def _cancel_everything(self) -> None:
        with self.lock:
            for task in list(self.core.owner.tasks.values()):
                self.core.cancel_task(task, force=False, recursive=True)
            self.leave()

    # -- the end ---------------------------------------------------------------------------------------

    def on_node_lost(self, error: WireError | None) -> None:
        """The node process is gone: say so once."""
        if not self.closed and self.core is not None:
            print(f"minray: the session has ended: {self.cluster.explain_end()}", file=sys.stderr)
        super().on_node_lost(error)

    def shutdown(self, exiting: bool = False) -> None:
        """See the contract. When the interpreter exits, daemon threads that wait here are left asleep: an
        error that they cannot handle any more would only be noise."""
        if os.getpid() != self.hello.pid:
            return
        self._restore_sigint()
        self._fetch_last_lines()
        with self.lock:
            was_closed, self.closed = self.closed, True
            self.exiting = exiting
            if not exiting:
                self._fail_all()
        if not was_closed:
            self._wait_for_last_lines()
        self.cluster.stop(STOP_S)
        self._printer.close(LAST_LINES_S)
        if not exiting:
            self.store.close()
            self.reactor.close()

    def _fetch_last_lines(self) -> None:
        """Nodes that stay send what workers have printed so far, and it is printed here."""
        if not self.cluster.stays or self.closed:
            return
        deadline = monotonic() + LAST_LINES_S
        try:
            for conn in (self.node, *self._nodes_of_our_workers()):
                while self.request(conn, "flush_logs", (), LAST_LINES_S) and monotonic() < deadline:
                    sleep(PRINT_S)
        except RaySystemError:  # somebody is gone, or busy: then without
            return

    def _nodes_of_our_workers(self) -> list[Connection]:
        """Other nodes where workers run that we have business with."""
        with self.lock:
            found = {conn.tag[0] for conn in self._peers.values() if conn.tag is not None}
            found = (found | set(self._nodes)) - {self.node_id}
        if not found:
            return []
        known = self.ask_gcs("nodes", timeout=LAST_LINES_S)
        doors = {bytes.fromhex(node["NodeID"]): node["RayletSocketName"] for node in known if node["Alive"]}
        with self.lock:
            return [self._other_node(node_id, doors[node_id]) for node_id in found & doors.keys()]

    def _wait_for_last_lines(self) -> None:
        """A node that ends with us ends the workers, forwards what they had printed, and closes the connection."""
        self.cluster.hang_up()
        if not self.cluster.stays:
            self.reactor.wait(self._lost, STOP_S)

    def after_fork_child(self) -> None:
        """In a forked child of the driver."""
        super().after_fork_child()
        self.cluster.after_fork_child()


def start_driver(options: InitOptions) -> Driver:
    """What ``init()`` makes. RaySystemError or ConnectionError if there is no session to be had."""
    address = options.address or _latest(options)
    cluster = _launch(options) if address is None else _find(options, address)
    try:
        config = cluster.agreed(options.config)
        reactor = Reactor.configured(
            config, token=cluster.token, spin_us=config.spin_us, background=True, name="driver"
        )
        try:
            return _join(reactor, replace(options, config=config), cluster)
        except BaseException:
            reactor.close()
            raise
    except BaseException:
        cluster.stop(STOP_S)
        raise


def _latest(options: InitOptions) -> str | None:
    """Nobody has said where: this user's latest cluster, if it lives here."""
    if options.local or not os.path.exists(latest_path(options.config)):
        return None
    address = living_latest(options.config)
    if address is not None and options.offers:
        raise excludes_resources(
            address, options.offers, " It is your latest cluster: for a session of its own beside it, say "
            'init(address="local", …)'
        )  # fmt: skip
    return address


def _find(options: InitOptions, address: str) -> JoinedCluster:
    from minray.worker.joined import find_cluster  # a session of one's own starts without it

    return find_cluster(options.config, address, options.node_id)


def _launch(options: InitOptions) -> LocalCluster:
    node = {
        "num_cpus": options.num_cpus,
        "num_gpus": options.num_gpus,
        "memory": options.memory,
        "object_store_memory": options.object_store_memory,
        "resources": options.resources,
        "labels": options.labels,
        "node_name": options.node_name,
        "node_ip_address": options.node_ip_address,
    }
    return launch(options.config, node)


def _join(reactor: Reactor, options: InitOptions, cluster: LocalCluster | JoinedCluster) -> Driver:
    worker_id = os.urandom(28)
    pid, started = own_identity()
    name, ports = "d" + worker_id[:6].hex(), cluster.info.worker_ports
    request = sibling_endpoint(cluster.endpoint, cluster.session_dir, name, ports)
    rt = Driver(reactor, options, Hello("driver", worker_id, b"", b"", pid, started, ""), cluster)
    endpoint = reactor.listen(request, rt.accept)
    rt.hello = hello = Hello("driver", worker_id, b"", b"", pid, started, endpoint)
    rt.node = reactor.dial(cluster.endpoint, hello, rt)
    info: dict[str, Any] = {
        "namespace": options.namespace,
        "entrypoint": " ".join(sys.argv),
        "sys_path": _sys_path(),
        "cwd": os.getcwd(),
        "metadata": options.metadata,
        "env_vars": options.env_vars,
        "log_to_driver": options.log_to_driver,
    }
    set_worker_path(info["sys_path"])
    rt.node.send(pack(Register(True, -1, info)))
    try:
        rt.await_registration(JOIN_S if cluster.stays else REGISTER_S)
    except RaySystemError as error:
        text = f"{error.client_exc}: {cluster.explain_end()}"
        if cluster.stays:
            raise ConnectionError(f"{text}. If it stays so: `minray stop`, then `minray start` again") from None
        raise RaySystemError(text) from None
    rt.install_sigint()
    return rt


def _sys_path() -> list[str]:
    """The driver's import path, so that workers find the modules beside the script."""
    return [os.path.abspath(folder) for folder in sys.path]
