"""``Cluster``: several nodes on this machine, for tests and for teaching.

    this process ──starts──▶ head (GCS + node)   ◀── node   ◀── node …
         └──────── init(address=cluster.address) joins through the head's node

Each node is what another machine would be: processes, sockets, segments and a folder of its own; they talk to each
other by TCP on the loopback. They end with ``shutdown()``, at the latest with this process, however that ends.

Names and defaults are those of ``ray.cluster_utils``. Invariant: ``worker_nodes`` and ``head_node`` are the nodes
that were added and not removed; whether they live, ``list_all_nodes`` and ``minray.nodes()`` say.
"""

from __future__ import annotations

import os
import time
from typing import Any

from minray import session
from minray._base import current
from minray._base.config import Config
from minray.exceptions import RaySystemError
from minray.worker.init_options import IGNORED, InitOptions
from minray.worker.launch import LocalCluster, launch
from minray.worker.tool import Tool

HOST = "127.0.0.1"
STORE_MEMORY = 150 * 1024 * 1024
STOP_S = 5.0
POLL_S = 0.01
_LOCAL = frozenset(
    {
        "num_cpus", "num_gpus", "memory", "object_store_memory", "resources", "labels", "node_name",
        "node_ip_address",
    }
)  # fmt: skip


class ClusterNode:
    """One node of a ``Cluster``, as its maker sees it."""

    def __init__(self, started: LocalCluster) -> None:
        self._started = started
        self.node_id = started.info.node_id  # hexadecimal, as in nodes()
        self.session_dir = started.info.folder
        self.is_head = started.info.is_head
        self.daemon_pid = started.daemon.pid
        self.zygote_pid = started.zygote.pid if started.zygote is not None else None  # None: workers are spawned

    @property
    def unique_id(self) -> str:
        """``node_id``, under Ray's older name."""
        return self.node_id

    def alive(self) -> bool:
        """Whether its daemon runs."""
        return self._started.daemon.poll() is None

    def explain_end(self) -> str:
        """How its daemon ended, with the last lines of its log."""
        return self._started.explain_end()

    def __repr__(self) -> str:
        state = "alive" if self.alive() else "dead"
        return f"<ClusterNode {self.node_id[:8]} {'head ' if self.is_head else ''}{state}>"


class Cluster:
    """See the file's head. A context manager, whose end is ``shutdown()``.

    Args:
        initialize_head: start the head at once; else the first ``add_node`` does.
        connect: also ``connect()`` to it.
        head_node_args: what ``add_node`` takes, for the head. Its ``_system_config`` counts for all nodes.
        shutdown_at_exit: accepted for compatibility: what is left at the end of this process ends anyway.
    """

    def __init__(
        self,
        initialize_head: bool = False,
        connect: bool = False,
        head_node_args: dict[str, Any] | None = None,
        shutdown_at_exit: bool = True,
    ) -> None:
        if connect and not initialize_head:
            raise RuntimeError("Cannot connect to uninitialized cluster.")
        self.head_node: ClusterNode | None = None
        self.worker_nodes: set[ClusterNode] = set()
        self.connected = False
        self._config = Config.from_env()
        self._head: LocalCluster | None = None  # it may have been killed
        self._head_args: dict[str, Any] = {}
        self._through: ClusterNode | None = None
        self._tool: Tool | None = None
        if initialize_head:
            try:
                self.add_node(**(head_node_args or {}))
                if connect:
                    self.connect()
            except BaseException:
                self.shutdown()
                raise

    @property
    def address(self) -> str:
        """What ``init(address=…)`` takes: host:port of the head; "" while there is none."""
        return self._head.info.gcs.removeprefix("tcp:") if self._head is not None else ""

    gcs_address = address

    def list_all_nodes(self) -> list[ClusterNode]:
        """The head and then the others."""
        return ([self.head_node] if self.head_node is not None else []) + list(self.worker_nodes)

    # --- nodes --------------------------------------------------------------------------------------

    def add_node(self, wait: bool = True, **node_args: Any) -> ClusterNode:
        """Start a node; the first one is the head.

        Args:
            wait: return when the cluster knows it.
            node_args: ``num_cpus`` (1), ``num_gpus`` (0), ``memory`` and ``object_store_memory`` (bytes; 150 MiB),
                ``resources``, ``labels``, ``node_name``, ``object_spilling_directory``, ``_system_config`` (settings of
                minray). Further ones that Ray takes are accepted and mean nothing.

        Raises:
            TypeError, ValueError: an unknown argument, a bad value.
            RaySystemError: it does not start, or does not join; the text has the end of its log.
        """
        system = node_args.pop("_system_config", None) or {}
        folder = node_args.pop("object_spilling_directory", None)
        if folder is not None:
            system = {**system, "spill_dirs": os.fspath(folder)}
        config = self._config.replace(**system)
        if self._head is None:
            self._config, self._head_args = config, node_args
        elif self.head_node is None:
            raise RuntimeError("this cluster has lost its head: call restart_head() first")
        node = _offer(config, node_args)
        place = {"host": HOST, "port": 0}
        gcs = None
        if self._head is not None:
            gcs = {"endpoint": self._head.info.gcs, "token": self._head.token}
        started = launch(config, node, cluster=place, gcs=gcs)
        made = ClusterNode(started)
        if self._head is None:
            self._head, self.head_node = started, made
        else:
            self.worker_nodes.add(made)
        if wait:
            try:
                self._await({made.node_id: made}, 30.0)
            except BaseException:
                self._forget(made)
                raise
        return made

    def remove_node(self, node: ClusterNode, allow_graceful: bool = True) -> None:
        """End a node: in good order, or else as if its machine had died. Returns when its processes are gone.

        Without the head, the other nodes end as well. ValueError for a node that is not of this cluster, and for
        the one through which this process is connected.
        """
        if node not in self.list_all_nodes():
            raise ValueError(f"{node!r} is not a node of this cluster")
        if node is self._through and self.connected:
            raise ValueError("this process is connected through the head: call minray.shutdown() first")
        if not allow_graceful:
            node._started.kill()
        self._forget(node)

    def _forget(self, node: ClusterNode) -> None:
        if node is self.head_node:
            self._hang_up()
            self.head_node = self._head = None
        self.worker_nodes.discard(node)
        node._started.stop(STOP_S)

    def kill_head(self) -> None:
        """SIGKILL the head's process, and with it the node of its machine: that one's workers and drivers end. What
        runs on other nodes goes on; they look for the head for ``gcs_reconnect_s``. Returns when all of it is gone.

        Raises:
            RuntimeError: there is no head that runs.
            ValueError: this process is connected through the head, and would end with it.
        """
        if self._head is None or self.head_node is None:
            raise RuntimeError("this cluster has no head that runs: call add_node() or restart_head() first")
        if self.connected and self._through is self.head_node:
            raise ValueError("this process is connected through the head: connect(node=…) through another node")
        self._hang_up()
        self.head_node = None
        self._head.kill()
        self._head.stop(STOP_S, keep_tables=True)

    def restart_head(self, wait: bool = True, **node_args: Any) -> ClusterNode:
        """Start the head again that ``kill_head`` ended: at the same address, with the same tables, with a new node.

        Args:
            wait: return when it serves.
            node_args: of its node, as for ``add_node``; not said: those that the head was started with.

        Raises:
            RuntimeError: no head was killed.
            RaySystemError: it does not start; the text has the end of its log.
        """
        if self._head is None or self.head_node is not None:
            raise RuntimeError("there is no head to be started again: call kill_head() first")
        node = _offer(self._config, {**self._head_args, **node_args})
        self._head = launch(self._config, node, resume=self._head.head)
        self.head_node = ClusterNode(self._head)
        if wait:
            try:
                self._await({self.head_node.node_id: self.head_node}, 30.0)
            except BaseException:
                self.kill_head()
                raise
        return self.head_node

    def wait_for_nodes(self, timeout: float = 30) -> None:
        """Return when the cluster knows of all nodes that were added, and of the end of those that were removed.

        Raises:
            TimeoutError: it does not within ``timeout`` seconds.
            RaySystemError: one of them has ended; the text has the end of its log.
        """
        self._await({node.node_id: node for node in self.list_all_nodes()}, timeout, exactly=True)

    def _await(self, wanted: dict[str, ClusterNode], timeout: float, exactly: bool = False) -> None:
        deadline = time.monotonic() + timeout
        while True:
            for node in wanted.values():
                if not node.alive():
                    raise RaySystemError(f"a node of this cluster does not run: {node.explain_end()}")
            known = {node["NodeID"] for node in self._ask("nodes", deadline) if node["Alive"]}
            if wanted.keys() == known if exactly else wanted.keys() <= known:
                return
            if time.monotonic() > deadline:
                missing = sorted(key[:8] for key in wanted.keys() - known)
                over = sorted(key[:8] for key in known - wanted.keys())
                raise TimeoutError(
                    f"after {timeout:g} s the cluster does not know of {missing or 'no'} nodes that were added"
                    + (f", and still counts {over} as alive" if exactly and over else "")
                )
            time.sleep(POLL_S)

    def _ask(self, method: str, deadline: float) -> Any:
        """A question to the head."""
        if self._head is None:
            raise RuntimeError("this cluster has no head: call add_node() first")
        while True:
            if self._tool is None:
                self._tool = Tool(self._config, self._head.endpoint, self._head.token)
            try:
                return self._tool.ask(method, timeout=max(0.1, deadline - time.monotonic()))
            except ConnectionError:
                self._hang_up()
                if self._head.daemon.poll() is not None or time.monotonic() > deadline:
                    raise RaySystemError(f"the head does not answer: {self._head.explain_end()}") from None

    def _hang_up(self) -> None:
        if self._tool is not None:
            self._tool.close()
            self._tool = None

    # --- the driver ---------------------------------------------------------------------------------

    def connect(self, namespace: str | None = None, node: ClusterNode | None = None) -> session.RayContext:
        """``minray.init`` of this process, as a driver of this cluster, on the head's machine or at ``node``."""
        if self._head is None:
            raise RuntimeError("this cluster has no head: call add_node() first")
        folder = self._config.temp_dir
        through = node or self.head_node
        which = None if through is None else through.node_id
        context = session.init(address=self.address, namespace=namespace, _temp_dir=folder, _node_id=which)
        self.connected, self._through = True, through
        return context

    def shutdown(self) -> None:
        """End the driver's session, if ``connect`` made it, and all nodes. Idempotent."""
        if self.connected:
            self.connected = False
            if current.get() is not None:
                session.shutdown()
        self._hang_up()
        if self._head is not None and self.head_node is None:
            self._head.stop(STOP_S)  # and what it has left
            self._head = None
        nodes = self.list_all_nodes()
        for node in nodes:
            node._started.hang_up()
        for node in nodes:
            self._forget(node)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()


def _offer(config: Config, node_args: dict[str, Any]) -> dict[str, Any]:
    """What a node is to offer, checked as ``init`` checks it."""
    known = {name: value for name, value in node_args.items() if name in _LOCAL}
    strangers = set(node_args) - _LOCAL - IGNORED
    if strangers:
        names = ", ".join(sorted(strangers))
        raise TypeError(f"a node takes no argument {names}; it takes {', '.join(sorted(_LOCAL))}, _system_config")
    given = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": STORE_MEMORY, **known}
    private = {"memory": "_memory", "node_name": "_node_name", "node_ip_address": "_node_ip_address"}
    options = InitOptions.from_keywords(
        "local", {private.get(name, name): value for name, value in given.items()}
    )
    return {name: getattr(options, name) for name in _LOCAL}
