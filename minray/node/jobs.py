"""The jobs that have workers on this node, and the drivers that are on it.

A driver registers; the GCS makes its job; the driver is answered. It is gone when its connection ends or its
process does, whichever comes first; then everything of its job ends here. A job of another node's driver is
*introduced*, by the GCS with the first actor that is to run here or by an owner who wants workers; its end
comes from the GCS.

Part of node.service, on the reactor's thread. Invariants: ``drivers`` are those of this node that live, and all
of them are peers; what is known of a job that is over stays while something of it does: a worker, a demand (of a
detached actor, or of who works for one), an owner on another node, an order of a GCS that has not heard of the end.
Then the job is forgotten.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from minray._base import log
from minray.node.demands import WorkerClass
from minray.node.dispatch import Peer
from minray.node.worker_pool import LEAVING
from minray.wire.messages import Died, Register, Reply, pack

if TYPE_CHECKING:
    from minray.node.service import NodeService

PRESTARTED = 64  # workers at most, for a driver that comes, where a node offers more CPUs than its machine has


class Jobs:
    """See the file's head. ``sys_path``: for workers of a job of which nothing is known."""

    def __init__(self, node: NodeService, sys_path: list[str]) -> None:
        self._node = node
        self._sys_path = sys_path
        self._configs: dict[bytes, dict[str, Any]] = {}  # job_id → what its driver said
        self._ended: set[bytes] = set()  # of these jobs: their drivers are gone, and the GCS knows it
        self.drivers: dict[bytes, bytes] = {}  # job_id → worker_id of its driver

    def config(self, job_id: bytes) -> dict[str, Any]:
        """What workers of a job need: sys_path, cwd, namespace, env_vars, log_to_driver."""
        return self._configs.get(job_id) or self._make({}, "")

    def _make(self, said: dict[str, Any], namespace: str) -> dict[str, Any]:
        return {
            "sys_path": list(said.get("sys_path") or self._sys_path),
            "cwd": said.get("cwd") or "",
            "namespace": namespace,
            "env_vars": dict(said.get("env_vars") or {}),
            "log_to_driver": bool(said.get("log_to_driver", self._node.config.log_to_driver)),
            "driver": said.get("driver"),  # its Address
        }

    # -- drivers of this node ------------------------------------------------------------------------

    def register_driver(self, peer: Peer, message: Register) -> None:
        """A driver: the GCS makes its job, then it is answered."""
        node, hello = self._node, peer.conn.hello
        assert hello is not None
        said = {**message.job_info, "driver": (node.node_id, hello.worker_id, hello.endpoint)}
        info = {
            "driver_worker_id": hello.worker_id,
            "driver_pid": hello.pid,
            "driver_start_time": hello.start_time,
            "node_id": node.node_id,
            "namespace": said.get("namespace"),
            "entrypoint": said.get("entrypoint", ""),
            "metadata": said.get("metadata") or {},
        }
        if node.membership is not None:  # workers of this job may be wanted on other nodes
            info["config"] = self._make(said, said.get("namespace") or "")
        node.ask_gcs("add_job", info, then=lambda reply: self._job_made(peer, said, reply))

    def _job_made(self, peer: Peer, said: dict[str, Any], reply: Reply) -> None:
        node, hello = self._node, peer.conn.hello
        assert hello is not None
        if not reply.ok:
            log.error("no job for the driver %s: %s", hello.pid, reply.value)
            peer.conn.close()
            return
        job_id: bytes = reply.value["job_id"]
        if peer.conn.closed or node.ending is not None:
            node.ask_gcs("finish_job", job_id)
            return
        job = self._configs[job_id] = self._make(said, reply.value["namespace"])
        peer.admit(hello.worker_id, job_id, -1)
        node.peers[hello.worker_id] = peer
        self.drivers[job_id] = hello.worker_id
        home = WorkerClass(job_id).with_env(job["env_vars"])
        node.table.driver_joined(hello.worker_id, (node.node_id, hello.worker_id, hello.endpoint), home)
        node.deaths.born(hello.worker_id)
        peer.conn.send(pack(node.registered(job_id, {})))
        self._watch_pid(peer, hello.pid)
        if node.config.prestart:
            count = min(node.table.pool.cpus, max(PRESTARTED, os.cpu_count() or 1))
            node.do(node.table.prestart(job_id, count, node.now()))
        node.settle()

    def _watch_pid(self, peer: Peer, pid: int) -> None:
        """A driver's socket may be held open by a child that it forked: its pid tells the truth."""
        try:
            fd = os.pidfd_open(pid)
        except (AttributeError, OSError):  # not Linux, a sandbox, or a driver in another container
            return
        peer.pidfd = fd
        self._node.reactor.add_reader(fd, lambda _: self.driver_gone(peer, "its process has ended"))

    def _unwatch_pid(self, peer: Peer) -> None:
        if peer.pidfd >= 0:
            self._node.reactor.remove_reader(peer.pidfd)
            os.close(peer.pidfd)
            peer.pidfd = -1

    def driver_gone(self, peer: Peer, text: str) -> None:
        """The job ends: its workers, its objects, its waits."""
        node, job_id = self._node, peer.job_id
        self._unwatch_pid(peer)
        if node.peers.get(peer.worker_id) is not peer or node.ending is not None:
            return
        del node.peers[peer.worker_id]
        self.drivers.pop(job_id, None)
        peer.conn.close()
        peer.remove_socket()
        node.logs.driver_gone(job_id)
        now = node.now()
        node.do(node.table.owner_gone(peer.worker_id, now))
        self._over(job_id, peer.worker_id)
        node.store.process_died(peer.worker_id, now)
        cause = {"text": f"the driver is gone: {text}", "expected": True}
        node.do(node.deaths.died(peer.worker_id, cause))
        node.tell_gcs(Died(peer.worker_id, -1, -1, -1, cause))
        node.ask_gcs("job_end", job_id, then=lambda _: self._may_forget(job_id))
        node.settle()

    def _may_forget(self, job_id: bytes) -> None:
        """The GCS knows that it is over: should an actor of it start here yet, the job is introduced anew."""
        self._ended.add(job_id)
        self.tidy(job_id)

    def _over(self, job_id: bytes, driver: bytes) -> None:
        """Its workers get the grace, and then no more."""
        node = self._node
        node.do(node.table.job_ends.gone(job_id, node.now(), driver))
        node.reactor.call_later(node.config.shutdown_grace_s, lambda: self._kill_rest_of(job_id))

    def _kill_rest_of(self, job_id: bytes) -> None:
        for worker in list(self._node.table.pool.workers.values()):
            if worker.worker_class.job_id == job_id and worker.state == LEAVING:
                self._node.workers.kill(worker.number)
        self.tidy(job_id)

    def tidy(self, job_id: bytes) -> None:
        """Something of that job has ended: if the job has, too, and nothing of it is left, forget it."""
        node = self._node
        if job_id not in self._ended or node.table.job_ends.anything_left(job_id):
            return
        if not any(peer.job_id == job_id for peer in node.peers.values()):
            self._ended.discard(job_id)
            self._configs.pop(job_id, None)
            node.table.job_ends.forget(job_id)

    def let_go(self) -> None:
        """The node ends: whatever becomes of the drivers is not its business any more."""
        for worker_id in self.drivers.values():
            self._unwatch_pid(self._node.peers[worker_id])

    # -- drivers elsewhere ---------------------------------------------------------------------------

    def introduce(self, job_id: bytes, config: dict[str, Any]) -> None:
        """A job whose driver is on another node wants workers here. ``config``: as in ``Registered``."""
        if job_id in self._configs:
            return
        self._configs[job_id] = self._make(config, config.get("namespace") or "")
        if config.get("ended"):
            self._ended.add(job_id)
            self._node.table.job_ends.over(job_id)
        else:
            self._node.ask_gcs("job_end", job_id, then=lambda _: self._foreign_over(job_id))

    def _foreign_over(self, job_id: bytes) -> None:
        if self._node.ending is None:
            driver = self.config(job_id)["driver"]
            self._over(job_id, driver[1] if driver is not None else b"")
            self._may_forget(job_id)

    def foreign_env(self, job_id: bytes) -> dict[str, str]:
        """The environment that the job of another node's driver demands for all its workers."""
        if job_id in self.drivers or job_id not in self._configs:
            return {}
        env_vars: dict[str, str] = self._configs[job_id]["env_vars"]
        return env_vars
