"""``minray stop``: ends this user's own nodes of one cluster on this machine, and nothing else.

The head of a cluster takes the nodes on other machines with it: they end by themselves.
"""

from __future__ import annotations

import argparse

from minray.cli.common import add_which, guarded, settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_which(parser)
    parser.add_argument("--force", action="store_true", help="kill at once, without a chance to end in good order")
    parser.add_argument(
        "--grace-period",
        type=_seconds,
        default=10.0,
        metavar="S",
        help="seconds to end in good order before signals are sent (default: 10)",
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, not {text!r}")
    return value


def run(arguments: argparse.Namespace) -> int:
    """End them and return the exit status: 0 also if there was nothing to end."""
    return guarded("stop", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from minray import clusters

    config = settings(arguments)
    try:
        address = clusters.the_cluster(config, arguments.address)
    except ConnectionError:
        if arguments.address not in (None, "auto"):
            raise
        killed = [head.address for head in clusters.resumable(config)]
        if len(killed) != 1:
            print(f"No cluster of yours runs on this machine (looked in {config.temp_root()}).")
            for address in killed:
                print(f"What a killed head has left is discarded by: minray stop --address={address}")
            return 0
        address = killed[0]
        print(f"What the killed head at {address} had left is discarded.")
    ended = clusters.stop_nodes(config, address, force=arguments.force, grace_s=arguments.grace_period)
    for node in ended:
        kind = "head" if node.info.is_head else "node"
        pid = node.info.daemon[0] if node.info.daemon is not None else 0
        print(f"{kind} {node.info.node_id[:8]} of the cluster at {address} (pid {pid}): {node.how}")
    if not ended:
        print(f"No node of yours of the cluster at {address} runs on this machine.")
    for other in clusters.clusters_here(config):
        print(f"Another cluster of yours still runs here: minray stop --address={other}")
    return 0
