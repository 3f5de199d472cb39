"""Starts a session's processes from a driver, and ends them: ``init()`` without an address.

    driver ──stdin pipe (boot blob; its end is the driver's)──▶ daemon ◀──socket pair──▶ zygote ──▶ workers
       └────────── connects to the listening socket that it made itself ───▲

``launch`` makes the session's folder, its secret and the listening socket, then starts daemon and zygote side
by side (the zygote first: importing numpy is most of the time) and returns at once: the socket listens
already, so there is nothing to poll for. Both get only the descriptors named here, a session of their own (no
Ctrl-C from the terminal), and log files for their output. The driver keeps the writing end of the daemon's
stdin: the kernel closes it however the driver ends.

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
from typing import Any

from minray._base.child_code import child_code
from minray._base.config import BLAS_THREAD_VARIABLES, MALLOC_VARIABLES, Config, child_environ
from minray._base.process import own_identity, start_time
from minray.exceptions import RaySystemError
from minray.store.remains import remove_session
from minray.wire import transports
from minray.wire.codec import encode
from minray.worker import session_folder
from minray.worker.session_folder import LOGS, SOCKET, SessionInfo

LOOPBACK = "tcp:127.0.0.1:0"
KILL_WAIT_S = 1.0
END_WAIT_S = 0.5
TABLES = "gcs.sqlite"  # of a head that stays

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
    """A session that this process has started."""

    info: SessionInfo
    token: bytes
    daemon: subprocess.Popen[bytes]
    zygote: subprocess.Popen[bytes] | None
    _log_fd: int  # of the daemon's log: readable even when the folder is gone
    _pid: int = field(default_factory=os.getpid)

    @property
    def endpoint(self) -> str:
        """Where the head listens."""
        return self.info.endpoint

    @property
    def session_dir(self) -> str:
        """The session's folder."""
        return self.info.folder

    def stop(self, timeout: float = 2.0) -> None:
        """End the session: ask, wait up to ``timeout`` seconds, then clean what is left."""
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
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1

    def hang_up(self) -> None:
        """Close the daemon's stdin: that is the order to end. Idempotent."""
        if self.info.driver is None and self.daemon.poll() is None:
            self.daemon.terminate()  # it does not listen to its stdin
        elif self.daemon.stdin is not None and not self.daemon.stdin.closed:
            self.daemon.stdin.close()

    def explain_end(self) -> str:
        """Why the head is not there any more, for an error: how it ended and the last lines of its log."""
        text = f"the head process of this session (pid {self.daemon.pid}) "
        _wait(self.daemon, monotonic() + END_WAIT_S)  # its sockets close a moment before it can be reaped
        code = self.daemon.returncode
        if code is None:
            text += "runs, but its connection is lost"
        elif code < 0:
            text += f"was ended by signal {-code} ({_signal_name(-code)})"
        else:
            text += f"ended with exit code {code}"
        tail = self._log_tail()
        return f"{text}. Its last lines:\n{tail}" if tail else text

    def _log_tail(self, size: int = 4096) -> str:
        if self._log_fd < 0:
            return ""
        end = os.fstat(self._log_fd).st_size
        lines = os.pread(self._log_fd, size, max(0, end - size)).decode("utf-8", "replace").splitlines()
        return "\n".join(lines[-20:])

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


def uses_zygote(config: Config) -> bool:
    """Whether workers are forked. Raises RaySystemError where that was demanded and cannot be."""
    if config.launcher == "fork" and not hasattr(os, "fork"):
        raise RaySystemError("MINRAY_LAUNCHER=fork, but this platform cannot fork: use 'spawn' or 'auto'")
    return config.launcher == "fork" or (config.launcher == "auto" and sys.platform.startswith("linux"))


def launch(config: Config, node: Mapping[str, Any] | None = None, *, stays: bool = False) -> LocalCluster:
    """Start a head with a node on this machine.

    Args:
        config: the session's settings, for all its processes.
        node: what the node offers, where not to be detected: num_cpus, num_gpus, memory,
            object_store_memory (bytes), resources, labels, node_name, node_ip_address.
        stays: it outlives this process, until it is told to end; else it ends with it.

    Raises:
        RaySystemError: no folder, no socket or no process can be made; the text names the fix.
    """
    root = session_folder.user_folder(config)
    token = config.token.encode() if config.token is not None else os.urandom(32)
    info = session_folder.make_session(root, None if stays else own_identity(), token)
    try:
        with _standard_descriptors():
            cluster = _start(config, dict(node or {}), info, token, stays)
    except BaseException:
        remove_session(info.folder)
        raise
    session_folder.sweep_dead(root)  # while the new processes load
    return cluster


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
    config: Config, node: dict[str, Any], info: SessionInfo, token: bytes, stays: bool
) -> LocalCluster:
    listener, endpoint = listen(config, info.folder)
    info = replace(info, endpoint=endpoint)
    zygote: subprocess.Popen[bytes] | None = None
    pair: tuple[socket.socket, ...] = ()
    log_fd = -1
    try:
        if uses_zygote(config):
            pair = socket.socketpair()
            zygote = _start_zygote(info.folder, pair[1])
        fds = [listener.fileno(), *(sock.fileno() for sock in pair[:1])]
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
            "listen_fd": fds[0],
            "zygote_fd": fds[1] if pair else -1,
            "zygote": _life(zygote),
            "driver": info.driver,
            "node": node,
            "tables": os.path.join(info.folder, TABLES) if stays else None,
            "python_flags": _interpreter_flags(),
            "sys_path": [os.path.abspath(path) for path in sys.path],
        }
        _send_boot(daemon, encode((boot,)), close=stays)
    except BaseException:
        if zygote is not None:
            _kill(zygote)
        if log_fd >= 0:
            os.close(log_fd)
        raise
    finally:
        listener.close()  # the daemon's now: if it dies, connecting is refused
        for sock in pair:
            sock.close()
    info = replace(info, daemon=_life(daemon), zygote=_life(zygote))
    info.write()
    return LocalCluster(info, token, daemon, zygote, log_fd)


def listen(config: Config, folder: str) -> tuple[socket.socket, str]:
    """The head's listening socket and its endpoint: a unix socket in ``folder``, or TCP on the loopback
    where there are none, or where the path is too long for one. Raises RaySystemError."""
    path = os.path.join(folder, SOCKET)
    # Workers listen beside it under longer names: one decision for all.
    fits = len(os.fsencode(path)) + 16 <= transports.UNIX_PATH_MAX
    if config.transport == "unix" and not fits:
        raise RaySystemError(
            f"MINRAY_TRANSPORT=unix, but {path!r} is too long for a socket "
            f"({transports.UNIX_PATH_MAX} bytes): set MINRAY_TEMP_DIR to a shorter folder, or "
            "MINRAY_TRANSPORT=tcp"
        )
    requests = []
    if config.transport != "tcp" and fits and hasattr(socket, "AF_UNIX"):
        requests.append(f"unix:{path}")
    if config.transport != "unix":
        requests.append(LOOPBACK)
    problems = []
    for request in requests:
        try:
            sock, endpoint = transports.make_listener(request)
        except (OSError, transports.EndpointError) as error:
            problems.append(f"{request}: {error}")
            continue
        assert isinstance(sock, socket.socket)
        return sock, endpoint
    raise RaySystemError(f"cannot listen on this machine: {'; '.join(problems) or 'no unix sockets here'}")


def sibling_endpoint(endpoint: str, folder: str, name: str) -> str:
    """What a process of the session asks for as its own endpoint, given the head's: the same kind of socket.
    ``name``: of its file, at most 16 characters."""
    return f"unix:{os.path.join(folder, name)}" if endpoint.startswith("unix:") else LOOPBACK


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
