"""The clusters of this user on this machine: start a node that stays, ask the head, end nodes. For ``minray.cli``.

    start_node ──launch──▶ daemon (stays) ──▶ the head knows it ──▶ latest-cluster file
    ask        ──"tool" connection──▶ head
    stop_nodes ──END_SESSION──▶ daemons ── grace over ─▶ SIGTERM ─▶ SIGKILL, by recorded pid and start time

Which nodes are here is read from the records in the folder of the user's sessions (``worker.session_folder``), so
nothing is found, asked or ended by name or by a guess. Invariants: nothing of another user or of another cluster is
ever touched; a start that fails leaves no process and no folder; every wait has an end.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minray._base.config import Config
from minray._base.process import is_alive
from minray.exceptions import RaySystemError
from minray.store.remains import remove_session, remove_tree
from minray.wire.errors import HandshakeError, Misfit, WireError
from minray.wire.secret import token_of
from minray.wire.transports import is_loopback
from minray.worker import addresses
from minray.worker.head_folder import HeadRecord, dead_heads
from minray.worker.init_options import InitOptions
from minray.worker.launch import LocalCluster, launch
from minray.worker.session_folder import SessionInfo, find_sessions
from minray.worker.tool import Tool

ASK_S = 4.0  # for one question, the connection included
READY_S = 30.0  # for a node that starts on a machine that has much else to do
SIGNAL_S = 2.0  # between one signal and the next
POLL_S = 0.005
END_SESSION = "end_session"  # see daemon.py
LOOPBACK = "127.0.0.1"


class ClusterError(Exception):
    """What a command was told cannot be done. The text names the value and the way out."""


@dataclass(frozen=True, slots=True)
class Access:
    """How a cluster's head is asked."""

    address: str  # numeric host:port
    token: bytes
    tls: tuple[str, str, str] | None = None  # see Config.tls


def settings(**said: Any) -> Config:
    """The environment's, and what an option has said (None: nothing). ClusterError for a bad value."""
    try:
        return Config.from_env(**said)
    except ValueError as error:
        raise ClusterError(str(error)) from None


# --- starting -------------------------------------------------------------------------------------------


def start_node(
    config: Config,
    node: dict[str, Any],
    *,
    address: str | None = None,
    host: str | None = None,
    port: int = 0,
    stays: bool = True,
    resume: bool = False,
) -> LocalCluster:
    """Start a head (``address`` None) or a node that joins one, and wait until the cluster knows it.

    Args:
        config, node, stays: see ``worker.launch``.
        address: host:port of the head.
        host: where other machines reach this one. None: for a head the loopback; for a node, as "auto" says, the
            address that this machine has on the way to the head.
        port: where to listen; 0: the kernel chooses.
        resume: a head that was killed on this machine goes on; ``host`` and ``port``, if given, say which.

    Raises:
        ClusterError, RaySystemError, ConnectionError, ValueError: it cannot be; the text names the way out.
    """
    left = _left_by_a_head(config, host, port) if resume else None
    access: Access | None = None
    place: dict[str, Any] | None = None
    gcs: dict[str, Any] | None = None
    if left is not None:
        config = config.with_tls(config.tls or left.tls)
    elif address is None:
        place = {"host": _host_of_head(host), "port": port}
    else:
        access = _access_to_join(config, addresses.numeric(address))
        config = config.with_tls(access.tls)
        place = {"host": _host_of_node(host, access.address), "port": port}
        ask(config, access, "gcs_stats")  # a wrong address or token is told here, before anything starts
        gcs = {"endpoint": f"tcp:{access.address}", "token": access.token}
    started = launch(config, node, stays=stays, cluster=place, gcs=gcs, resumable=True, resume=left)
    try:
        head = access or Access(started.info.gcs.removeprefix("tcp:"), started.token, config.tls)
        _await_joined(config, started, head)
        addresses.write_latest(config, head.address)
    except BaseException:
        if left is not None:
            started.kill()  # a good end would be the end of what it was to go on with
        started.stop(keep_tables=left is not None)
        raise
    return started


def resumable(config: Config) -> list[HeadRecord]:
    """The heads of this user that were killed on this machine and can go on, the latest first."""
    return dead_heads(config)


def _left_by_a_head(config: Config, host: str | None, port: int) -> HeadRecord:
    found = dead_heads(config)
    number = _host_of_head(host) if host is not None else None
    wanted = [head for head in found if port in (0, head.port) and number in (None, head.host)]
    if not wanted:
        there = " at this address" if port or number is not None else ""
        others = "".join(f" One at {head.address} was killed." for head in found)
        raise ClusterError(
            f"no head of yours that was killed on this machine{there} "
            f"has left anything to go on with (looked in {config.temp_root()}; one that runs, or was ended by "
            f"`minray stop`, leaves nothing).{others} Start without --resume for a new cluster"
        )
    if len(wanted) > 1:
        which = ", ".join(f"{one.address} ({time.strftime('%H:%M:%S', time.localtime(one.started))})" for one in wanted)
        raise ClusterError(f"several heads of yours were killed here: say --host and --port of one of {which}")
    token = token_of(config)
    if token is not None and token != wanted[0].token():
        raise ClusterError(
            f"the token that is set (MINRAY_TOKEN, MINRAY_TOKEN_FILE or --token-file) is not that of the cluster at "
            f"{wanted[0].address}, whose nodes would not be let in: unset it"
        )
    return wanted[0]


def offer_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """What a node is to offer, checked as ``init`` checks it; ``said``: None where it is to be detected.

    Raises ClusterError: a bad value.
    """
    names = {"memory": "_memory", "node_name": "_node_name"}
    try:
        options = InitOptions.from_keywords("local", {names.get(name, name): value for name, value in said.items()})
    except (TypeError, ValueError) as error:
        raise ClusterError(str(error)) from None
    return {name: getattr(options, name) for name, value in said.items() if value is not None}


def _host_of_head(host: str | None) -> str:
    if host == "auto":
        raise ClusterError("--host=auto is for a node that joins: a head is told at which address others reach it")
    return LOOPBACK if host is None else _number(host)


def _host_of_node(host: str | None, head: str) -> str:
    if host is None or host == "auto":
        return addresses.here_towards(head)
    number = _number(host)
    if is_loopback(f"tcp:{addresses.join(number, 1)}") and not is_loopback(f"tcp:{head}"):
        raise ClusterError(
            f"--host={host}: other machines cannot reach a node at {number}, and the head is at {head}: "
            "leave --host out, or name an address of this machine"
        )
    return number


def _number(host: str) -> str:
    number = addresses.number_of(host)
    if number in ("0.0.0.0", "::"):
        raise ClusterError(
            f"--host={host} is no address at which others can reach this machine: name one (`ip address` shows them)"
        )
    return number


def _access_to_join(config: Config, address: str) -> Access:
    token, tls = token_of(config), config.tls
    here = addresses.nodes_here(config, address)
    if tls is None and here:
        tls = here[0].tls
    if token is None:
        if not here:
            raise ClusterError(
                f"joining {address} needs the token of that cluster: copy the file that `minray start --head` has "
                "named, and set MINRAY_TOKEN_FILE (or --token-file) to your copy, of mode 0600"
            )
        token = here[0].token()
    return Access(address, token, tls)


def _await_joined(config: Config, started: LocalCluster, head: Access) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        if started.daemon.poll() is not None:
            raise RaySystemError(f"it did not start: {started.explain_end()}")
        try:
            with _tool(config, head) as tool:
                while started.daemon.poll() is None:
                    known = tool.ask("nodes", timeout=max(0.1, deadline - time.monotonic()))
                    if any(node["NodeID"] == started.info.node_id and node["Alive"] for node in known):
                        return
                    if time.monotonic() > deadline:
                        raise RaySystemError(f"it has not joined {head.address} within {READY_S:g} s")
                    time.sleep(POLL_S)
        except ConnectionError as error:
            if started.daemon.poll() is None and time.monotonic() > deadline:
                raise ClusterError(_explain(head.address, error)) from None
            time.sleep(POLL_S)


def forget(config: Config, address: str) -> None:
    """A node of that cluster has ended here: without another one it is not the latest cluster any more."""
    if not addresses.nodes_here(config, address):
        addresses.forget_latest(config, address)


# --- asking ---------------------------------------------------------------------------------------------


def access_to(config: Config, said: str | None) -> Access:
    """How to ask the cluster that a command means; ``said``: its ``--address``.

    Raises ClusterError, ConnectionError or ValueError: none is known, or its token is not.
    """
    address = the_cluster(config, said)
    here = addresses.nodes_here(config, address)
    token = here[0].token() if here else token_of(config)
    if token is None:
        raise ClusterError(
            f"the cluster at {address} has no node of yours on this machine, so its token is not known here: set "
            f"MINRAY_TOKEN_FILE to a copy of its token, or {addresses.START}"
        )
    return Access(address, token, here[0].tls if here else config.tls)


def the_cluster(config: Config, said: str | None) -> str:
    """The address of the cluster that a command means: what was said, the environment, the latest that lives here,
    the only one that lives here. Raises ConnectionError, ClusterError, ValueError."""
    named = said not in (None, "auto") or config.address not in (None, "auto", "local")
    latest = None if named else addresses.living_latest(config)
    if latest is not None:
        return latest
    staying = [] if named else clusters_here(config)
    if len(staying) == 1:
        return staying[0]
    if len(staying) > 1:
        raise ClusterError(f"several clusters of yours run here: name one by --address={' or '.join(staying)}")
    try:
        return addresses.meant(config, said)
    except ConnectionError as error:
        killed = [] if named else [head.address for head in dead_heads(config)]
        if not killed:
            raise
        raise ConnectionError(
            f"{error}. The head at {' and the one at '.join(killed)} was killed, and can be started again: "
            "minray start --head --resume"
        ) from None


def clusters_here(config: Config) -> list[str]:
    """Addresses of the clusters that have a staying node of this user on this machine."""
    found = {info.gcs.removeprefix("tcp:") for info in find_sessions(config) if info.gcs and info.driver is None}
    return sorted(found)


def ask(config: Config, access: Access, method: str, *args: Any) -> Any:
    """The head's answer. ClusterError if there is none, with the reason and the way out."""
    try:
        with _tool(config, access) as tool:
            return tool.ask(method, *args, timeout=ASK_S)
    except (ConnectionError, TimeoutError) as error:
        raise ClusterError(_explain(access.address, error)) from None


def _tool(config: Config, access: Access) -> Tool:
    return Tool(config.with_tls(access.tls), f"tcp:{access.address}", access.token)


def _explain(address: str, error: Exception) -> str:
    cause = error.__cause__
    text = f"no cluster answers at {address}: {error}"
    if isinstance(cause, Misfit):
        return f"the head at {address} and this machine do not come together: {error}"
    if isinstance(cause, HandshakeError):
        return f"{text}. Is this the address that `minray start --head` has printed?"
    return f"{text}. Does its head run (`minray status` there), and does a firewall let this port through?"


# --- ending ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of one node."""

    info: SessionInfo
    how: str  # "ended", or by which signal


def stop_nodes(config: Config, address: str, *, force: bool = False, grace_s: float = 10.0) -> list[Ended]:
    """End this user's nodes of one cluster on this machine: first the others, then its head. What a head of it has
    left that was killed goes, too.

    Args:
        force: no question, no grace: SIGKILL.
        grace_s: how long they may take to end in good order.
    """
    nodes = sorted(addresses.nodes_here(config, address), key=lambda info: info.is_head)
    asked = [] if force else [info for info in nodes if _asked_to_end(config, info)]
    deadline = time.monotonic() + grace_s
    ended = [_see_out(info, deadline if info in asked else 0.0, force) for info in nodes]
    addresses.forget_latest(config, address)
    for head in dead_heads(config):
        if head.address == address:
            remove_tree(head.folder)
    return ended


def _asked_to_end(config: Config, info: SessionInfo) -> bool:
    try:
        with Tool(config.with_tls(info.tls), info.endpoint, info.token()) as tool:
            tool.ask(END_SESSION, timeout=1.0)
    except (OSError, RaySystemError, WireError):  # it hangs, or is about to end: signals will tell
        return False
    return True


def _see_out(info: SessionInfo, deadline: float, force: bool) -> Ended:
    """Wait for the end of a node's processes; what is left after the deadline is ended by signals."""
    how = "ended"
    if not _gone(info, deadline):
        steps = [("SIGKILL", signal.SIGKILL)] if force else [("SIGTERM", signal.SIGTERM), ("SIGKILL", signal.SIGKILL)]
        for name, number in steps:
            # The daemon alone: its zygote notices, ends what is left, and clears up behind it.
            if info.daemon is not None and is_alive(*info.daemon):
                how = f"ended by {name}"
                os.kill(info.daemon[0], number)
            if _gone(info, time.monotonic() + SIGNAL_S):
                break
        else:
            for life in info.lives():
                if life != info.driver and is_alive(*life):
                    os.killpg(life[0], signal.SIGKILL)  # it leads its group
            _gone(info, time.monotonic() + SIGNAL_S)
    if os.path.isdir(info.folder):
        remove_session(info.folder)
    if info.head_folder:
        remove_tree(info.head_folder)
    return Ended(info, how)


def _gone(info: SessionInfo, deadline: float) -> bool:
    """Whether the node's processes are dead by then. (They are nobody's children any more: so it is polled.)"""
    lives = [life for life in (info.daemon, info.zygote) if life is not None]
    while any(is_alive(*life) for life in lives):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
