"""``minray health-check``: does the head of a cluster answer? For scripts, containers and monitors."""

from __future__ import annotations

import argparse

from minray.cli.common import add_tls, add_token_file, add_which, guarded, settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_which(parser)
    add_token_file(parser)
    add_tls(parser)


def run(arguments: argparse.Namespace) -> int:
    """0: it answers; 1: it does not, and standard error says why."""
    return guarded("health-check", lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from minray import clusters

    config = settings(arguments)
    access = clusters.access_to(config, arguments.address)
    count = clusters.ask(config, access, "gcs_stats")["nodes"]
    print(f"The cluster at {access.address} answers: {count} node{'' if count == 1 else 's'}.")
    return 0
