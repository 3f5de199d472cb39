"""The zygote: a process with one thread that has imported what workers need, and forks them.

    daemon ──("boot", {…}), ("fork", number, {…}), ("kill", number, signal)──▶ zygote ──fork──▶ worker
       ◀──("ready", ms), ("forked", number, pid), ("failed", number, text),        │
          ("exited", number, pid, status, peak bytes)── SIGCHLD ───────────────────┘

Started beside the daemon with one end of a socket pair (``argv[1]``); numpy's import, most of a session's
start, runs while the daemon does its own. The first frame is the daemon's ``boot``. A fork imports nothing
and costs about a millisecond; the child leads a process group of its own, gets its own random numbers, its
output pipes, its environment, and calls the entry module's ``run(bootstrap)``.

As the workers' parent it alone signals them, reaps them and says how they ended: their group is killed while
the zombie still holds its number. When the daemon is gone, however that came, the zygote ends every process,
segment and file of the session.

Invariants: never more than one thread; a worker's number is forked at most once; each fork that succeeded is
followed by exactly one "exited".
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
import traceback
import types
from typing import Any, NoReturn

from minray._base.config import apply_env_vars
from minray.node import cleanup
from minray.store.remains import remove_session
from minray.wire.codec import decode, encode_framed
from minray.wire.framing import FrameDecoder

ENTRY = "minray.worker.main"
FIRST = ("numpy", "cloudpickle")  # before the daemon has said anything
LATER = ("numpy.random",)  # once there was nothing to do for LATER_S: the first tasks want the CPUs
LATER_S = 0.3
MAX_FRAME = 16 * 1024 * 1024
REAP_S = 2.0
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
_PR_SET_PDEATHSIG = 1


class Zygote:
    """The parent's side: one socket, some children."""

    def __init__(self, sock: socket.socket) -> None:
        self.boot: dict[str, Any] = {}
        self._sock = sock
        self._frames = FrameDecoder(MAX_FRAME)
        self._inbox: list[tuple[Any, ...]] = []
        self._pids: dict[int, int] = {}  # number → pid
        self._numbers: dict[int, int] = {}  # and back
        self._later = list(LATER)
        self._wake, self._wake_in = os.pipe()
        for fd in (self._wake, self._wake_in):
            os.set_blocking(fd, False)

    # -- start -------------------------------------------------------------------------------------

    def await_boot(self) -> bool:
        """The daemon's first frame. False: it is gone already."""
        while not self._inbox:
            if not self._receive():
                return False
        kind, self.boot = self._inbox.pop(0)
        if kind != "boot":
            raise ValueError(f"the first frame must be the boot frame, got {kind!r}")
        return True

    def serve(self) -> dict[str, Any] | None:
        """Fork and reap until the daemon is gone (None), or, in a child, until there is a bootstrap."""
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wake_in, warn_on_full_buffer=False)
        while True:
            for message in self._take_inbox():
                if message[0] == "fork":
                    bootstrap = self._fork(message[1], message[2])
                    if bootstrap is not None:
                        return bootstrap
                elif message[0] == "kill":
                    if message[1] in self._pids:
                        cleanup.end_group(self._pids[message[1]], message[2])
                else:
                    raise ValueError(f"not an order for a zygote: {message[0]!r}")
            timeout = LATER_S if self._later else None
            readable, _, _ = select.select([self._sock.fileno(), self._wake], [], [], timeout)
            if not readable and self._later:
                importlib.import_module(self._later.pop(0))
                gc.freeze()
            if self._wake in readable:
                self._drain_wake()
                self._reap()
            if self._sock.fileno() in readable and not self._receive():
                return None

    def _take_inbox(self) -> list[tuple[Any, ...]]:
        inbox, self._inbox = self._inbox, []
        return inbox

    def _receive(self) -> bool:
        try:
            data = self._sock.recv(1 << 16)
        except ConnectionResetError:
            return False
        self._inbox += [decode(frame) for frame in self._frames.feed(data)]
        return bool(data)

    def _send(self, *message: Any) -> None:
        try:
            self._sock.sendall(encode_framed(message))
        except OSError:  # the daemon is gone: the next read says so
            pass

    def _drain_wake(self) -> None:
        try:
            while os.read(self._wake, 4096):
                pass
        except BlockingIOError:
            pass

    # -- children ----------------------------------------------------------------------------------

    def _fork(self, number: int, order: dict[str, Any]) -> dict[str, Any] | None:
        try:
            pid = os.fork()
        except OSError as error:
            self._send("failed", number, f"cannot fork a worker: {error}")
            return None
        if pid == 0:
            return order
        try:
            os.setpgid(pid, pid)  # here as well as there: a kill may follow at once
        except OSError:  # it did that itself and runs already, or it is dead
            pass
        self._pids[number] = pid
        self._numbers[pid] = number
        self._send("forked", number, pid)
        return None

    def become_child(self) -> None:
        """In a child: let go of what is the zygote's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._sock.close()
        os.close(self._wake)
        os.close(self._wake_in)

    def _reap(self) -> None:
        while self._numbers:
            dead = _reap_one()
            if dead is None:
                return
            pid, status, usage = dead
            number = self._numbers.pop(pid, None)
            if number is not None:
                del self._pids[number]
                self._send("exited", number, pid, status, usage.ru_maxrss * RSS_UNIT)

    def ready(self, since: float) -> None:
        """Tell the daemon that forks are cheap from now on."""
        self._send("ready", round((time.perf_counter() - since) * 1000, 1))

    # -- the end -----------------------------------------------------------------------------------

    def end(self) -> None:
        """The daemon is gone: so is the session."""
        for pid in self._numbers:
            cleanup.end_group(pid)
        deadline = time.monotonic() + REAP_S
        while self._numbers and time.monotonic() < deadline:
            self._reap()
            if self._numbers:
                select.select([self._wake], [], [], 0.05)
                self._drain_wake()
        if os.getsid(0) == os.getpid():
            cleanup.kill_session(os.getpid(), spare=(os.getpid(),))
        if self.boot:
            remove_session(self.boot["session_dir"])


def _reap_one() -> tuple[int, int, Any] | None:
    """Reap a child that has ended, after its group: pid, status, resource usage. None: there is none."""
    try:
        if not hasattr(os, "waitid"):  # macOS before Python 3.13: its group is killed a moment too late
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid:
                cleanup.end_group(pid)
            return (pid, status, usage) if pid else None
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return None
        cleanup.end_group(found.si_pid)  # while the zombie holds the group's number
        return os.wait4(found.si_pid, 0)
    except ChildProcessError:
        return None


def _die_with_parent(parent: int) -> None:
    """Linux: the kernel ends this process when the zygote ends, even if that cannot do it any more."""
    ctypes = sys.modules.get("ctypes")  # numpy has loaded it
    if sys.platform.startswith("linux") and ctypes is not None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def _reseed() -> None:
    """Forked twins would draw the same numbers."""
    random, numpy_random = sys.modules.get("random"), sys.modules.get("numpy.random")
    if random is not None:
        random.seed()
    if numpy_random is not None:
        numpy_random.seed()


def redirect_output(stdout: str, stderr: str) -> None:
    """Let 1 and 2 be these files."""
    for path, fd in ((stdout, 1), (stderr, 2)):
        if path:
            opened = os.open(path, os.O_WRONLY | os.O_APPEND)
            os.dup2(opened, fd)
            os.close(opened)


def run_child(zygote: Zygote, order: dict[str, Any], parent: int) -> NoReturn:
    """From fork to the worker's own main. Does not return."""
    code = 1
    try:
        gc.enable()
        zygote.become_child()
        os.setpgid(0, 0)
        _die_with_parent(parent)
        redirect_output(order.pop("stdout"), order.pop("stderr"))
        apply_env_vars({**zygote.boot["env"], **order["env_vars"]})
        _reseed()
        module = importlib.import_module(zygote.boot.get("entry", ENTRY))
        module.run({**zygote.boot["bootstrap"], **order})
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # this is the last frame of the process: say it where the node reads
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _preload(names: tuple[str, ...]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:  # the worker that needs it will say so, to whoever asked
            traceback.print_exc()


def main() -> None:
    """The process."""
    since = time.perf_counter()
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    parent = os.getpid()
    zygote = Zygote(sock)
    gc.disable()
    _preload(FIRST)
    if not zygote.await_boot():
        return
    _preload((zygote.boot.get("entry", ENTRY),))
    # workers import nothing of ours; what users' code finds as __main__ must not be this program
    sys.modules["__main__"] = types.ModuleType("__main__")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    gc.collect()
    gc.freeze()
    zygote.ready(since)
    order = None
    try:
        order = zygote.serve()
    finally:
        if order is None:
            zygote.end()
    if order is not None:
        run_child(zygote, order, parent)


if __name__ == "__main__":
    main()
