"""``minray start``: the head of a cluster on this machine, or a node that joins one.

    minray start --head                    ──▶ prints the line with which others join
    minray start --head --resume           ──▶ the same for a head that was killed: its cluster goes on
    minray start --address=HOST:PORT       ──▶ joins
    … --block                              ──▶ stays; Ctrl-C, SIGTERM, or its own end in any way ends the node

Returns when the cluster knows the node. Without ``--block`` the node stays until ``minray stop``, or the end of its
head. A head listens at the loopback unless ``--host`` says otherwise; a node where it can reach its head.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from typing import TYPE_CHECKING, Any

from minray.cli.common import add_temp_dir, add_tls, add_token_file, guarded, settings

if TYPE_CHECKING:
    from minray.worker.head_folder import HeadRecord
    from minray.worker.launch import LocalCluster

OFFERS = ("num_cpus", "num_gpus", "memory", "object_store_memory", "resources", "labels", "node_name")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--head", action="store_true", help="start a cluster: this machine is its head")
    which.add_argument("--address", metavar="HOST:PORT", help="join the cluster that has its head there")
    add = parser.add_argument
    add(
        "--host",
        "--node-ip-address",
        metavar="ADDRESS",
        help="of this machine, at which others reach it (default: for a head 127.0.0.1, so nobody else can; for a "
        "node that joins, or 'auto': the address on its way to the head)",
    )
    add("--port", type=_port, default=0, help="to listen at (default: the kernel chooses a free one)")
    add("--min-worker-port", type=_port, metavar="PORT", help="workers and drivers on this machine listen from here")
    add("--max-worker-port", type=_port, metavar="PORT", help="to here (default: at ports that the kernel chooses)")
    add(
        "--resume",
        action="store_true",
        help="with --head: go on where a head that was killed on this machine has ended (--port: which one)",
    )
    add("--num-cpus", type=_number, help="CPUs that it offers (default: what this process may use)")
    add("--num-gpus", type=_number, help="GPUs that it offers (default: those that are found)")
    add("--resources", type=_resources, metavar="JSON", help='further ones, e.g. \'{"license": 2}\'')
    add("--labels", type=_labels, metavar="K=V,…", help="labels of this node, e.g. rack=a,disk=ssd")
    add("--memory", type=_bytes, metavar="BYTES", help="for tasks that say how much they need; 64G is 64 GiB")
    add("--object-store-memory", type=_bytes, metavar="BYTES", help="shared memory for objects; 8G is 8 GiB")
    add(
        "--object-spilling-directory",
        dest="spill_dirs",
        metavar="FOLDER",
        help="for objects that memory has no room for; several with ':' between (default: the session's folder)",
    )
    add("--node-name", metavar="NAME", help="shown by `minray status` and nodes() (default: its address)")
    add("--block", action="store_true", help="stay, and end the node with this command")
    add_temp_dir(parser)
    add_token_file(parser)
    add_tls(parser)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port is a number in 0..65535 (0: the kernel chooses), not {text!r}")
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None
    return int(value) if value.is_integer() else value


def _bytes(text: str) -> int:
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}.get(text[-1:].upper(), 1)
    digits = text[:-1] if factor > 1 else text
    if not digits.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number of bytes, perhaps with K, M, G or T behind, not {text!r}")
    return int(digits) * factor


def _resources(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f'must be JSON like {{"license": 2}}, not {text!r} ({error})') from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'must be a JSON object like {{"license": 2}}, not {text!r}')
    return found


def _labels(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not name or not equals:
            raise argparse.ArgumentTypeError(f"must be like rack=a,disk=ssd, not {text!r} (at {part!r})")
        found[name] = value
    return found


def run(arguments: argparse.Namespace) -> int:
    """Start it, say what comes next, and return the exit status."""
    return guarded("start", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from minray import clusters

    if arguments.resume and not arguments.head:
        raise clusters.ClusterError("--resume is for --head: a node that was killed comes back as a new one")
    low, high = arguments.min_worker_port, arguments.max_worker_port
    if (low is None) != (high is None):
        raise clusters.ClusterError("--min-worker-port and --max-worker-port belong together: say both, or none")
    arguments.worker_ports = None if low is None else f"{low}-{high}"
    config = settings(arguments)
    left = [] if arguments.resume or not arguments.head else clusters.resumable(config)
    started = clusters.start_node(
        config,
        clusters.offer_of({name: getattr(arguments, name) for name in OFFERS}),
        address=arguments.address,
        host=arguments.host,
        port=arguments.port,
        stays=not arguments.block,
        resume=arguments.resume,
    )
    print("\n".join([*told(arguments, started), *map(_left, left)]), flush=True)
    if not arguments.block:
        return 0
    try:
        return _block(started)
    finally:
        clusters.forget(config, started.info.gcs.removeprefix("tcp:"))


def told(arguments: argparse.Namespace, started: LocalCluster) -> list[str]:
    """What there is now, and what to type next."""
    info = started.info
    address = info.gcs.removeprefix("tcp:")
    here = started.endpoint.rpartition(" ")[2].removeprefix("tcp:")
    where = f" --temp-dir={shlex.quote(os.path.abspath(arguments.temp_dir))}" if arguments.temp_dir else ""
    init = f', _temp_dir="{os.path.abspath(arguments.temp_dir)}"' if arguments.temp_dir else ""
    if info.is_head:
        again = " again" if arguments.resume else ""
        lines = [f"This machine is{again} the head of a cluster at {address} (node {info.node_id[:8]}, {info.folder})."]
        lines += ["", *_join_lines(address, info.token_path, info.tls, where)]
    else:
        lines = [f"This machine has joined the cluster at {address}: node {info.node_id[:8]} at {here}, {info.folder}."]
    return [
        *lines,
        "",
        "On this machine:",
        f"  minray status{where}",
        f"  minray stop{where}",
        f'  python: minray.init(address="auto"{init})',
        *(["", "Ctrl-C ends this node."] if arguments.block else []),
    ]


def _left(head: HeadRecord) -> str:
    return (
        f"(This is a new cluster. The one at {head.address}, whose head was killed, could have gone on: `minray stop`, "
        "then start with --resume.)"
    )


def _join_lines(address: str, token: str, tls: tuple[str, str, str] | None, where: str) -> list[str]:
    host = address.rpartition(":")[0]
    if host.startswith("127.") or host == "[::1]":
        return [
            "Only this machine can reach it: to let others join, start it with --host=ADDRESS of this machine.",
            "Another node on this machine:",
            f"  MINRAY_TOKEN_FILE={shlex.quote(token)} minray start --address={address}{where}",
        ]
    with_tls = " --tls-cert=FILE --tls-key=FILE --tls-ca=FILE" if tls is not None else ""
    return [
        "On each other machine, with the cluster's token (a secret: only you may read it, mode 0600):",
        f"  scp {host}:{shlex.quote(token)} minray.token",
        f"  MINRAY_TOKEN_FILE=minray.token minray start --address={address}{with_tls}",
        *([f"  (FILEs: a certificate for it of the authority in {tls[2]}, its key, that authority)"] if tls else []),
    ]


def _block(started: LocalCluster) -> int:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        code = started.daemon.wait()
    except KeyboardInterrupt:
        started.stop(timeout=10.0)
        print("minray start: ended", flush=True)
        return 0
    text = started.explain_end()
    started.stop(keep_tables=True)
    print(f"minray start: {text}", file=sys.stderr)
    return 0 if code == 0 else 1
