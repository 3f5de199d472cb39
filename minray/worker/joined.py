"""The cluster that a driver joins, through the node of its own machine: ``init(address=…)``.

Every daemon of a cluster says in its session's record to which head it belongs. The driver looks through the
records of its user, takes the node of that cluster (the head's own, if it is here) and its secret from the same
folder, and talks to that node as it would to one that it had started. Its end is the end of its job and of
nothing else.

Called by ``worker.connect``. Invariant: nothing here starts or ends a process.
"""

from __future__ import annotations

import os
import socket

from minray._base.config import Config
from minray._base.process import is_alive
from minray.worker.addresses import START, meant, nodes_here
from minray.worker.launch import last_lines
from minray.worker.session_folder import LOGS, SessionInfo

LOOK_S = 2.0


class JoinedCluster:
    """Has what a driver needs of a ``LocalCluster``."""

    stays = True  # when the driver ends

    def __init__(self, info: SessionInfo) -> None:
        self.info = info
        self.token = info.token()
        self.endpoint = info.endpoint
        self.session_dir = info.folder
        try:
            self._log_fd = os.open(os.path.join(info.folder, LOGS, "daemon.log"), os.O_RDONLY)
        except OSError:  # the log of a node that ends just now
            self._log_fd = -1

    def agreed(self, config: Config) -> Config:
        """The settings of a driver that joins it: the files of TLS are the node's, as the token is.

        Raises ConnectionError if the driver was told to use others: it would get nowhere, or not as it believes.
        """
        ours, theirs = config.tls, self.info.tls
        if ours is not None and ours != theirs:
            uses = f"uses {', '.join(theirs)}" if theirs is not None else "does not use TLS"
            raise ConnectionError(
                f"this program was told to use TLS with {', '.join(ours)} (MINRAY_TLS_CERT, MINRAY_TLS_KEY, "
                f"MINRAY_TLS_CA), but the node of {self.info.gcs.removeprefix('tcp:')} on this machine {uses}: unset "
                "them, then the node's count, or start the node with --tls-cert, --tls-key and --tls-ca"
            )
        return config.with_tls(theirs)

    def hang_up(self) -> None:
        """The node stays."""

    def stop(self, timeout: float = 0.0) -> None:
        """The driver is done with it."""
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1

    def explain_end(self) -> str:
        """Why the node is not there any more, for an error."""
        life = self.info.daemon
        what = "runs, but its connection is lost" if life is not None and is_alive(*life) else "has ended"
        return f"the node process of this machine (pid {life[0] if life else 0}) {what}{last_lines(self._log_fd)}"

    def after_fork_child(self) -> None:
        """In a forked child of the driver."""
        self.stop()


def find_cluster(config: Config, said: str, node_id: str | None = None) -> JoinedCluster:
    """The cluster whose head is at ``said`` ("host:port"), or that "auto" means; ``node_id``: through that node of it.

    Raises:
        ConnectionError: no node of it is here; the text says whether its head answers, and the way out.
        ValueError: this is no address.
    """
    address = meant(config, said)
    nodes = [node for node in nodes_here(config, address) if node_id in (None, node.node_id)]
    if not nodes:
        raise ConnectionError(
            f"no running cluster can be reached at address={address!r}: this machine has no node of it that "
            f"belongs to you (looked in {config.temp_root()}), and a driver needs one. {_way_out(address)}"
        )
    return JoinedCluster(nodes[0])


def _way_out(address: str) -> str:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), LOOK_S).close()
    except OSError as error:
        return f"Nor does its head answer there ({error}): {START}"
    return (
        "Something listens there. If it is your head, this machine joins with: "
        f"MINRAY_TOKEN_FILE=FILE minray start --address={address}, where FILE has the cluster's token"
    )
