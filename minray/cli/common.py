"""What the commands of the cluster share: the options that say which cluster is meant, and how errors are shown."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minray._base.config import Config


_SETTINGS = ("temp_dir", "token_file", "tls_cert", "tls_key", "tls_ca", "worker_ports", "spill_dirs")


def add_which(parser: argparse.ArgumentParser) -> None:
    """``--address`` and ``--temp-dir``."""
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="of the cluster's head (default: MINRAY_ADDRESS, else your latest cluster on this machine)",
    )
    add_temp_dir(parser)


def add_temp_dir(parser: argparse.ArgumentParser) -> None:
    """``--temp-dir``."""
    parser.add_argument("--temp-dir", metavar="FOLDER", help="of your sessions, as MINRAY_TEMP_DIR says it")


def add_token_file(parser: argparse.ArgumentParser) -> None:
    """``--token-file``."""
    parser.add_argument(
        "--token-file", metavar="FILE", help="with the cluster's token, mode 0600, as MINRAY_TOKEN_FILE says it"
    )


def add_tls(parser: argparse.ArgumentParser) -> None:
    """``--tls-cert``, ``--tls-key``, ``--tls-ca``."""
    add = parser.add_argument
    add("--tls-cert", metavar="FILE", help="TLS: this machine's certificate (PEM), as MINRAY_TLS_CERT says it")
    add("--tls-key", metavar="FILE", help="its key, as MINRAY_TLS_KEY says it")
    add("--tls-ca", metavar="FILE", help="the authority of the cluster's certificates, as MINRAY_TLS_CA says it")


def settings(arguments: argparse.Namespace) -> Config:
    """The environment's, and what these options say. Raises ClusterError."""
    from minray import clusters

    said = {name: getattr(arguments, name, None) for name in _SETTINGS}
    return clusters.settings(**said)


def guarded(command: str, body: Callable[[], int]) -> int:
    """Run a command; what goes wrong for a reason becomes one line and exit status 1."""
    from minray.clusters import ClusterError
    from minray.exceptions import RayError, RaySystemError

    try:
        return body()
    # ConnectionError, TimeoutError: nobody there; ValueError: a token or an address that is none
    except (ClusterError, RayError, OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        text = error.client_exc if isinstance(error, RaySystemError) else error
        print(f"minray {command}: {text}", file=sys.stderr)
        return 1
