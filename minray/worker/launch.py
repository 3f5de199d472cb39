"""Starts the processes of one machine, and ends them: for ``init()`` without an address, ``Cluster``, ``minray start``.

    driver ──stdin pipe (boot blob; its end is the driver's)──▶ daemon ◀──socket pair──▶ zygote ──▶ workers
       └────────── connects to the listening socket that it made itself ───▲

``launch`` makes the session's folder, its secret and the listening socket, then starts daemon and zygote side
by side (the zygote first: importing numpy is most of the time) and returns at once: the socket listens
already, so there is nothing to poll for. Both get only the descriptors named here, a session of their own (no
Ctrl-C from the terminal), and log files for their output. The driver keeps the writing end of the daemon's
stdin: the kernel closes it however the driver ends.

What starts is a head with a node, or (``gcs``) a node that joins the head of a cluster: it has a folder, a zygote,
segments and sockets of its own, and the cluster's secret.

Without fork (see ``uses_zygote``) there is no zygote: the node starts workers and their watcher by itself.

Called by ``worker.connect`` and ``cli``. Invariants: a failed launch leaves no process and no folder;
``stop`` is idempotent, does nothing in a forked child, and signals only children that were not reaped.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, ClassVar

from minray._base.child_code import child_code
from minray._base.config import BLAS_THREAD_VARIABLES, MALLOC_VARIABLES, Config, child_environ
from minray._base.machine import check_store_memory
from minray._base.process import own_identity, start_time
from minray.exceptions import RaySystemError
from minray.store import spill_folders
from minray.store.remains import remove_session, remove_tree
from minray.wire.codec import encode
from minray.wire.secret import make_token, token_of
from minray.wire.transports import nearest, split_tcp
from minray.worker import session_folder
from minray.worker.endpoints import listen
from minray.worker.head_folder import HeadRecord, make_head_folder, record_of, sweep_heads, tables_in
from minray.worker.session_folder import LOGS, SessionInfo

KILL_WAIT_S = 1.0
END_WAIT_S = 0.5

# ``-S``: no site module, so a start does not wait for what is installed; hence the folders in argv.
# argv: the session's folder (each can clear up if the driver is killed before it has said more), then those.
_DAEMON = child_code(
    "daemon", "import gc\ngc.disable()\nfrom minray.daemon import main\nmain(sys.argv[1])", folders_at=2
)
_ZYGOTE = child_code(
    "zygote",
    "folder = sys.argv[2]\ndel sys.argv[2:]\nfrom minray.node.zygote import main\nmain()\n"
    "from minray.store.remains import remove_session\nremove_session(folder)",
    folders_at=3,
)


@dataclass(eq=False)
class LocalCluster:
    """A daemon that this process has started."""

    stays: ClassVar[bool] = False  # when the driver that started it ends
    info: SessionInfo
    token: bytes
    daemon: subprocess.Popen[bytes]
    zygote: subprocess.Popen[bytes] | None
    _log_fd: int  # of the daemon's log: readable even when the folder is gone
    head: HeadRecord | None = None  # of a head that others may join
    _pid: int = field(default_factory=os.getpid)

    @property
    def endpoint(self) -> str:
        """Where the daemon listens."""
        return self.info.endpoint

    @property
    def session_dir(self) -> str:
        """The session's folder."""
        return self.info.folder

    def agreed(self, config: Config) -> Config:
        """The settings of a driver that has started it with ``config``: the same."""
        return config

    def stop(self, timeout: float = 2.0, *, keep_tables: bool = False) -> None:
        """End the session: ask, wait up to ``timeout`` seconds, then clean what is left. ``keep_tables``: what a
        killed head has left, for one that goes on."""
        if os.getpid() != self._pid:
            return
        self.hang_up()
        deadline = monotonic() + timeout
        if not _wait(self.daemon, deadline):
            _kill(self.daemon)  # its zygote notices and clears up
            deadline = monotonic() + KILL_WAIT_S
        if self.zygote is not None and not _wait(self.zygote, max(deadline, monotonic() + KILL_WAIT_S)):
            _kill(self.zygote)
        if os.path.isdir(self.session_dir):
            remove_session(self.session_dir)
        if self.head is not None and not keep_tables:
            remove_tree(self.head.folder)
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1

    def kill(self) -> None:
        """End the daemon by force, as an accident would; its zygote clears up. ``stop`` is still to be called."""
        if os.getpid() == self._pid and self.daemon.poll() is None:
            self.daemon.kill()

    def hang_up(self) -> None:
        """Close the daemon's stdin: that is the order to end. Idempotent."""
        if self.info.driver is None and self.daemon.poll() is None:
            self.daemon.terminate()  # it does not listen to its stdin
        elif self.daemon.stdin is not None and not self.daemon.stdin.closed:
            self.daemon.stdin.close()

    def explain_end(self) -> str:
        """Why the daemon is not there any more, for an error: how it ended and the last lines of its log."""
        what = "head" if self.info.is_head else "node"
        text = f"the {what} process of this session (pid {self.daemon.pid}) "
        _wait(self.daemon, monotonic() + END_WAIT_S)  # its sockets close a moment before it can be reaped
        code = self.daemon.returncode
        if code is None:
            text += "runs, but its connection is lost"
        elif code < 0:
            text += f"was ended by signal {-code} ({_signal_name(-code)})"
        else:
            text += f"ended with exit code {code}"
        return text + last_lines(self._log_fd)

    def after_fork_child(self) -> None:
        """In a forked child of the driver: it is not the one whose end ends the session."""
        for process in (self.daemon, self.zygote):
            if process is not None and process.returncode is None:
                process.returncode = 0  # not its child, so not its to wait for
        stdin = self.daemon.stdin
        if stdin is not None and not stdin.closed:
            stdin.close()
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1


def last_lines(log_fd: int, size: int = 4096) -> str:
    """What a daemon has said last, as the end of an error's text; "" if that was nothing."""
    if log_fd < 0:
        return ""
    end = os.fstat(log_fd).st_size
    lines = os.pread(log_fd, size, max(0, end - size)).decode("utf-8", "replace").splitlines()
    tail = "\n".join(lines[-20:])
    return f". Its last lines:\n{tail}" if tail else ""


def uses_zygote(config: Config) -> bool:
    """Whether workers are forked. Raises RaySystemError where that was demanded and cannot be."""
    if config.launcher == "fork" and not hasattr(os, "fork"):
        raise RaySystemError("MINRAY_LAUNCHER=fork, but this platform cannot fork: use 'spawn' or 'auto'")
    return config.launcher == "fork" or (config.launcher == "auto" and sys.platform.startswith("linux"))


def launch(
    config: Config,
    node: Mapping[str, Any] | None = None,
    *,
    stays: bool = False,
    cluster: Mapping[str, Any] | None = None,
    gcs: Mapping[str, Any] | None = None,
    resumable: bool = False,
    resume: HeadRecord | None = None,
) -> LocalCluster:
    """Start a head with a node on this machine, or a node that joins another's head.

    Args:
        config: the session's settings, for all its processes.
        node: what the node offers, where not to be detected: num_cpus, num_gpus, memory,
            object_store_memory (bytes), resources, labels, node_name, node_ip_address.
        stays: it outlives this process, until it is told to end; else it ends with it.
        cluster: where other machines may reach it, as ``{"host": address, "port": number or 0}``; None: there
            are none.
        gcs: the head to join, as ``{"endpoint": "tcp:host:port", "token": bytes}``; None: this is one. Needs
            ``cluster``.
        resumable: what a killed head leaves is kept for whoever asks for it; else only while this process lives.
        resume: a head that was killed: this one goes on with its tables and its secret, where that was reached.

    Returns at once: whether the node could join, the head says (``nodes``), or the node by its end.

    Raises:
        ValueError: more object_store_memory than there is memory; a folder for spilled objects that is none.
        RaySystemError: no folder, no socket or no process can be made; the text names the fix.
        minray.wire.secret.TokenError: a cluster's token was given that cannot be one.
        minray.wire.tls.TlsFileError: a cluster's files for TLS cannot be used.
    """
    _check(config, node or {}, cluster is not None)
    root = session_folder.user_folder(config)
    if resume is not None:
        token: bytes = resume.token()
        cluster = {"host": resume.host, "port": resume.port}
    elif gcs is not None:
        token = gcs["token"]
    else:
        token = (token_of(config) if cluster is not None else None) or make_token()
    info = session_folder.make_session(root, None if stays else own_identity(), token)
    info = replace(info, tls=config.tls, worker_ports=config.worker_ports)
    try:
        with _standard_descriptors():
            if cluster is not None and gcs is None:
                folder = resume.folder if resume is not None else make_head_folder(root, info, token)
                info = replace(info, head_folder=folder)
            made = _start(config, dict(node or {}), info, token, cluster=cluster, gcs=gcs, resume=resume is not None)
    except BaseException:
        remove_session(info.folder)
        if resume is None and info.head_folder:
            remove_tree(info.head_folder)
        raise
    if made.info.head_folder:
        made.head = _record(made.info, resume, resumable)
        sweep_heads(root)
    session_folder.sweep_dead(root)  # while the new processes load
    return made


def _check(config: Config, node: Mapping[str, Any], clustered: bool) -> None:
    """What is told here, rather than in the log of a process that ends."""
    check_store_memory(config, node.get("object_store_memory"))
    if config.spill:
        spill_folders.check(config.spill_dirs)
    if clustered and config.tls is not None:
        from minray.wire.tls import Tls  # ssl takes its time

        Tls(*config.tls)


def _record(info: SessionInfo, resume: HeadRecord | None, resumable: bool) -> HeadRecord:
    """Say whose the head's folder is now."""
    if resume is not None:
        record = resume.of(info)
    else:
        host, port = split_tcp(info.gcs.removeprefix("tcp:"))
        record = record_of(info.head_folder, host, port, info, own_identity() if not resumable else None)
    record.write()
    return record


@contextlib.contextmanager
def _standard_descriptors() -> Iterator[None]:
    """A program may have closed 0, 1 or 2. What we open must not get these numbers: children redirect them."""
    filled = [os.open(os.devnull, os.O_RDWR)]
    while filled[-1] <= 2:
        filled.append(os.open(os.devnull, os.O_RDWR))
    try:
        yield
    finally:
        for fd in filled:
            os.close(fd)


def _start(
    config: Config,
    node: dict[str, Any],
    info: SessionInfo,
    token: bytes,
    *,
    cluster: Mapping[str, Any] | None,
    gcs: Mapping[str, Any] | None,
    resume: bool,
) -> LocalCluster:
    listeners, endpoint = listen(config, info.folder, cluster)
    info = replace(info, endpoint=endpoint, node_id=os.urandom(28).hex(), is_head=gcs is None)
    if cluster is not None:
        info = replace(info, gcs=gcs["endpoint"] if gcs is not None else nearest(endpoint, same_machine=False))
        node.setdefault("node_ip_address", cluster["host"])
    zygote: subprocess.Popen[bytes] | None = None
    pair: tuple[socket.socket, ...] = ()
    log_fd = -1
    try:
        if uses_zygote(config):
            pair = socket.socketpair()
            zygote = _start_zygote(info.folder, pair[1])
        fds = [sock.fileno() for sock in (*pair[:1], *listeners)]
        log_fd = _open_log(info.folder, "daemon")
        command = [_python(), "-S", "-c", _DAEMON, info.folder, *_folders_of("minray", "psutil")]
        daemon = _popen(command, stdin=subprocess.PIPE, log_fd=log_fd, fds=fds, env=_with_malloc({}))
        boot = {
            "config": config.to_dict(),
            "session_dir": info.folder,
            "prefix": info.prefix,
            "created": info.created,
            "token": token,
            "endpoint": endpoint,
            "listen_fds": [sock.fileno() for sock in listeners],
            "zygote_fd": fds[0] if pair else -1,
            "zygote": _life(zygote),
            "driver": info.driver,
            "node_id": bytes.fromhex(info.node_id),
            "node": node,
            "cluster": dict(cluster) if cluster is not None else None,
            "gcs": dict(gcs) if gcs is not None else None,
            "head_folder": info.head_folder,
            "resume": resume,
            "tables": tables_in(info.head_folder) if info.head_folder else None,
            "python_flags": _interpreter_flags(),
            "sys_path": [os.path.abspath(path) for path in sys.path],
        }
        _send_boot(daemon, encode((boot,)), close=info.driver is None)
    except BaseException:
        if zygote is not None:
            _kill(zygote)
        if log_fd >= 0:
            os.close(log_fd)
        raise
    finally:
        for sock in (*listeners, *pair):  # the daemon's now: if it dies, connecting is refused
            sock.close()
    info = replace(info, starter=None, daemon=_life(daemon), zygote=_life(zygote))
    info.write()
    return LocalCluster(info, token, daemon, zygote, log_fd)


def _start_zygote(folder: str, sock: socket.socket) -> subprocess.Popen[bytes]:
    folders = _folders_of("minray", "numpy", "cloudpickle")
    command = [_python(), *_interpreter_flags(), "-c", _ZYGOTE, str(sock.fileno()), folder, *folders]
    # One BLAS thread: a process with more must not fork. Workers get the user's values back.
    env = _with_malloc(dict.fromkeys(BLAS_THREAD_VARIABLES, "1"))
    log_fd = _open_log(folder, "zygote")
    try:
        return _popen(command, stdin=subprocess.DEVNULL, log_fd=log_fd, fds=[sock.fileno()], env=env)
    finally:
        os.close(log_fd)


def _with_malloc(changes: Mapping[str, str | None]) -> dict[str, str]:
    """The environment of a process of ours; what the user has said about malloc stays."""
    return {**MALLOC_VARIABLES, **child_environ(changes)}


def _popen(
    command: list[str], *, stdin: int, log_fd: int, fds: Iterable[int], env: dict[str, str]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=log_fd,
            stderr=log_fd,
            bufsize=0,
            cwd="/" if os.name == "posix" else None,  # so that no folder is held
            env=env,
            pass_fds=tuple(fds),
            start_new_session=True,
        )
    except BlockingIOError as error:
        raise RaySystemError(
            f"cannot start a process: {error}. This user may have no more of them: raise the limit "
            "(ulimit -u), or end others"
        ) from error
    except OSError as error:
        raise RaySystemError(f"cannot start {command[0]}: {error}") from error


def _send_boot(daemon: subprocess.Popen[bytes], blob: bytes, close: bool) -> None:
    stdin = daemon.stdin
    assert stdin is not None
    rest = memoryview(len(blob).to_bytes(4, "little") + blob)
    try:
        while rest:
            rest = rest[stdin.write(rest) or 0 :]
    except BrokenPipeError:  # it died already; whoever connects will be told why
        return
    if close:
        stdin.close()


def _open_log(folder: str, name: str) -> int:
    path = os.path.join(folder, LOGS, f"{name}.log")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)


def _interpreter_flags() -> list[str]:
    """How this interpreter was called (-O, -W, -X …): users' code runs under the same flags in workers."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return flags


def _python() -> str:
    if not sys.executable:
        raise RaySystemError(
            "this program does not know its Python interpreter (sys.executable is empty): set "
            "sys.executable to the path of a python before minray.init()"
        )
    return sys.executable


def _folders_of(*modules: str) -> list[str]:
    """Where these are installed, so that a child finds the same ones."""
    found: dict[str, None] = {}
    for name in modules:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            found[os.path.dirname(os.path.dirname(os.path.abspath(spec.origin)))] = None
    return list(found)


def _life(process: subprocess.Popen[bytes] | None) -> tuple[int, float] | None:
    if process is None:
        return None
    return (process.pid, start_time(process.pid) or 0.0)


def _wait(process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Whether it has ended by then. (``Popen.wait`` with a timeout sleeps in steps of up to 50 ms.)"""
    if process.poll() is not None:
        return True
    if hasattr(os, "pidfd_open"):
        import select

        try:
            fd = os.pidfd_open(process.pid)
        except OSError:  # a kernel or sandbox without them
            pass
        else:
            try:
                poll = select.poll()
                poll.register(fd, select.POLLIN)
                poll.poll(max(0.0, deadline - monotonic()) * 1000)
            finally:
                os.close(fd)
            return process.poll() is not None
    try:
        process.wait(max(0.0, deadline - monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a child that was not reaped, and its group; reap it."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # it leads its group: start_new_session
        except (ProcessLookupError, PermissionError):  # it has not come to setsid yet
            process.kill()
        process.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
