"""``init`` and ``shutdown``: a session of this process, from the first call to the last.

Puts a runtime into ``_base.current`` and takes it out again. Which runtime it is (a driver's, or local
mode's) is decided here and nowhere else; how it starts is the business of ``worker.connect`` and
``worker.local``. Also installed here: the hook by which any other public call starts a session by itself.

Invariants: at most one session at a time; ``shutdown`` may be called at any time and any number of times, and
is called (by ``minray/__init__.py``) when the interpreter exits; no session starts after that.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from minray import __version__
from minray._base import current
from minray.wire.transports import nearest
from minray.worker.contract import Runtime
from minray.worker.init_options import InitOptions

if TYPE_CHECKING:
    from minray.logging_config import LoggingConfig

_lock = threading.RLock()


class RayContext(Mapping[str, Any]):
    """What ``init()`` returns: where the session is. A Mapping of ``address_info``, and a context manager
    whose end is ``shutdown()``."""

    dashboard_url: str
    python_version: str
    ray_version: str
    ray_commit: str
    address_info: dict[str, Any]

    def __init__(self, address_info: dict[str, Any]) -> None:
        self.dashboard_url = address_info.get("webui_url") or ""
        self.python_version = ".".join(map(str, sys.version_info[:3]))
        self.ray_version = __version__
        self.ray_commit = ""
        self.address_info = address_info

    def disconnect(self) -> None:
        """``shutdown()``."""
        shutdown()

    def __enter__(self) -> RayContext:
        return self

    def __exit__(self, *exc: object) -> None:
        self.disconnect()

    def __getitem__(self, key: str) -> Any:
        return self.address_info[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.address_info)

    def __len__(self) -> int:
        return len(self.address_info)

    def __repr__(self) -> str:
        return (
            f"RayContext(dashboard_url={self.dashboard_url!r}, python_version={self.python_version!r}, "
            f"ray_version={self.ray_version!r}, address={self.address_info.get('address')!r})"
        )


def init(
    address: str | None = None,
    *,
    ignore_reinit_error: bool = False,
    logging_config: LoggingConfig | None = None,
    **options: Any,
) -> RayContext:
    """Start a session on this machine, or connect to a running cluster.

    Args:
        address: None: what MINRAY_ADDRESS says, else the latest cluster of this user, else a new session;
            "local": a new session; "auto": a running cluster, or ConnectionError; host:port: that cluster.
        ignore_reinit_error: a second ``init`` returns the context of the running session.
        logging_config: how the driver logs.
        options: ``num_cpus``, ``num_gpus``, ``resources``, ``labels``, ``object_store_memory`` (bytes): what
            this machine offers, detected where not said; ``namespace`` of named actors (default: anonymous);
            ``runtime_env`` (env_vars only); ``log_to_driver`` (True); ``local_mode=True``: everything in this
            process, one thing at a time, for debugging. Ray's further keywords are accepted.

    Returns:
        The session's context: ``with minray.init(): …`` ends the session at the end of the block.

    Raises:
        RuntimeError: called twice, in a worker of another session, or with an unknown keyword.
        ValueError, TypeError: a bad value; resources with the address of a running cluster.
        ConnectionError: no cluster there.
    """
    with _lock:
        current.check_not_forked()
        if current.get() is not None:
            if ignore_reinit_error:
                return _context(current.get())
            raise RuntimeError(
                "Maybe you called minray.init twice by accident? This error can be suppressed by passing in "
                "'ignore_reinit_error=True' or by calling 'minray.shutdown()' prior to 'minray.init()'."
            )
        checked = InitOptions.from_keywords(address, options)
        if logging_config is not None:
            _apply(logging_config)
        rt = _start(checked)
        current.set(rt)
        return _context(rt)


def _apply(logging_config: Any) -> None:
    from minray.logging_config import LoggingConfig  # few programs use it

    if not isinstance(logging_config, LoggingConfig):
        raise TypeError(f"logging_config must be a LoggingConfig or None, got {logging_config!r}")
    logging_config.apply()


def _start(options: InitOptions) -> Runtime:
    runtime: Runtime
    if options.local_mode:
        from minray.worker.local.runtime import start_local

        runtime = start_local(options)
    else:
        from minray.worker.connect import start_driver

        runtime = start_driver(options)
    return runtime


def shutdown(_exiting_interpreter: bool = False) -> None:
    """End the session: its processes, its shared memory, its folder. Nothing happens if there is none.

    Refs and handles of the session are void afterwards. A worker's own shutdown is not the user's business:
    there the call does nothing.
    """
    with _lock:
        if _exiting_interpreter:
            current.set_auto_init(_refuse_at_exit)
        rt = current.get()
        if rt is None or rt.mode == "worker":
            return
        try:
            rt.shutdown(exiting=_exiting_interpreter)
        finally:
            current.set(None)


def is_initialized() -> bool:
    """Whether this process is in a session."""
    return current.get() is not None


def _auto_init() -> None:
    with _lock:
        if current.get() is None:
            init()


def _refuse_at_exit() -> None:
    if threading.current_thread() is not threading.main_thread():
        raise SystemExit  # a daemon thread: nobody reads its error any more
    raise RuntimeError("minray cannot start a session: the interpreter is exiting, and the session has ended")


current.set_auto_init(_auto_init)


def _context(rt: Runtime) -> RayContext:
    session = rt.session
    node_ip = session.get("node_address") or "127.0.0.1"
    endpoint = session.get("gcs_endpoint") or ""
    gcs_address = nearest(endpoint, same_machine=False).removeprefix("tcp:")
    return RayContext(
        {
            "node_ip_address": node_ip,
            "redis_address": None,
            "object_store_address": session.get("segment_dir"),
            "raylet_socket_name": nearest(endpoint, same_machine=True).removeprefix("unix:") or None,
            "webui_url": session.get("webui_url") or "",
            "session_dir": session.get("dir"),
            "metrics_export_port": 0,
            "gcs_address": gcs_address,
            "address": gcs_address,
            "node_id": rt.node_id.hex(),
        }
    )
