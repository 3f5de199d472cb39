"""How worker processes come to be: one contract, two implementations.

``ForkLauncher`` gives orders to the zygote. ``SpawnLauncher`` starts a fresh interpreter per worker, where
forking is unsafe or impossible or a setting says so, and a reaper process that clears up if this one is
killed. Both tell ``LauncherEvents`` what became of each order: ``forked``, later ``exited``, or ``failed``.

Called by node.service on the reactor's thread. Invariants: only a parent signals a worker, and never after
reaping it; exactly one of ``exited`` and ``failed`` follows each ``start``, unless the launcher is lost.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from minray._base import log
from minray._base.child_code import child_code
from minray._base.config import child_environ
from minray.node import cleanup
from minray.wire.codec import encode
from minray.wire.errors import WireError
from minray.wire.reactor import Connection, Reactor

if TYPE_CHECKING:
    import subprocess

KILL = int(getattr(signal, "SIGKILL", signal.SIGTERM))
_REAPER = child_code("reaper", "from minray.node.reaper import main\nmain()", folders_at=1)
_RESTARTS = 3


class LauncherEvents(Protocol):
    """Who wants to know. On the reactor's thread."""

    def on_forked(self, number: int, pid: int) -> None:
        """It exists."""

    def on_failed(self, number: int, reason: str) -> None:
        """It could not be started."""

    def on_exited(self, number: int, status: int, peak_rss: int) -> None:
        """It is reaped. ``status`` as from waitpid; ``peak_rss`` in bytes, 0 if unknown."""

    def on_launcher_lost(self, reason: str) -> None:
        """The zygote is gone, and with it the parent of all workers."""


class Launcher(Protocol):
    """Starts and signals workers."""

    def start(self, number: int, order: Mapping[str, Any]) -> None:
        """Start a worker. ``order``: its bootstrap without the common part, and ``stdout``, ``stderr``."""

    def kill(self, number: int, signum: int = KILL) -> None:
        """Signal a worker's process group. Unknown numbers are ignored."""

    def close(self) -> None:
        """No more of this: whatever still runs is killed."""


class ForkLauncher:
    """The zygote's orders. ``life``: its pid and start time."""

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        events: LauncherEvents,
        *,
        life: tuple[int, float],
        boot: dict[str, Any],
    ) -> None:
        self._events = events
        self._pid = life[0]
        self._closed = False
        self._conn = reactor.add_socket(sock, self)
        self._conn.send(("boot", boot))

    def start(self, number: int, order: Mapping[str, Any]) -> None:
        """See Launcher."""
        self._conn.send(("fork", number, dict(order)))

    def kill(self, number: int, signum: int = KILL) -> None:
        """See Launcher."""
        self._conn.send(("kill", number, int(signum)))

    def close(self) -> None:
        """See Launcher. The end of its socket is the zygote's order to end everything."""
        self._closed = True
        self._conn.close()

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        """Reactor: reports of the zygote."""
        for message in messages:
            kind = message[0]
            if kind == "exited":
                self._events.on_exited(message[1], message[3], message[4])
            elif kind == "forked":
                self._events.on_forked(message[1], message[2])
            elif kind == "failed":
                self._events.on_failed(message[1], message[2])
            elif kind == "ready":
                log.info("the zygote forks after %s ms", message[1])
            else:
                raise ValueError(f"not a report of a zygote: {kind!r}")

    def on_close(self, conn: Connection, error: WireError | None) -> None:
        """Reactor: the zygote is gone. Its workers have no parent who could speak for them."""
        if not self._closed:
            self._closed = True
            hit = cleanup.kill_session(self._pid) if self._pid > 0 else []
            text = f"its zygote (pid {self._pid}) died; {len(hit)} processes of it were ended"
            self._events.on_launcher_lost(text)


class SpawnLauncher:
    """A fresh interpreter per worker; this process is their parent.

    Args:
        python_path: folders in which the workers find minray and what it needs.
        flags: of the driver's interpreter (this one runs without ``site``, which users' code expects).
        environ: changes to this process's environment, for all workers.
    """

    def __init__(
        self,
        reactor: Reactor,
        events: LauncherEvents,
        *,
        boot: dict[str, Any],
        python_path: list[str],
        flags: Sequence[str] = (),
        entry: str = "minray.worker.main",
    ) -> None:
        self._reactor = reactor
        self._events = events
        self._boot = boot
        self._python_path = python_path
        self._flags = flags
        body = f"del sys.argv[1:]\nimportlib.import_module({entry!r}).main()"
        self._code = child_code("worker", body, folders_at=1)
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._reaper: subprocess.Popen[bytes] | None = None
        self._reapers_left = _RESTARTS
        self._closed = False
        self._start_reaper()

    def start(self, number: int, order: Mapping[str, Any]) -> None:
        """See Launcher."""
        import subprocess

        rest = dict(order)
        out, err = (_open_output(rest.pop(name)) for name in ("stdout", "stderr"))
        try:
            child = subprocess.Popen(
                [sys.executable, *self._flags, "-c", self._code, *self._python_path],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                env=child_environ({**self._boot["env"], **rest["env_vars"]}),
                start_new_session=True,
            )
        except OSError as error:
            text = f"cannot start a worker: {error}"
            self._reactor.call_soon(lambda: self._events.on_failed(number, text))
            return
        finally:
            os.close(out)
            os.close(err)
        self._children[number] = child
        self._tell_reaper(f"+{child.pid}")
        self._watch(number, child)
        assert child.stdin is not None
        try:
            child.stdin.write(encode(({**self._boot["bootstrap"], **rest},)))
            child.stdin.close()
        except OSError:  # it is dead already: its watcher says so
            pass
        pid = child.pid
        self._reactor.call_soon(lambda: self._events.on_forked(number, pid))

    def kill(self, number: int, signum: int = KILL) -> None:
        """See Launcher."""
        child = self._children.get(number)
        if child is not None and child.returncode is None:
            cleanup.end_group(child.pid, signum)

    def close(self) -> None:
        """See Launcher."""
        self._closed = True
        for number in list(self._children):
            self.kill(number)
        for child in self._children.values():
            child.wait()
        self._children.clear()
        if self._reaper is not None and self._reaper.stdin is not None:
            self._reaper.stdin.close()  # it finds nothing to do, and ends
            self._reaper.wait()

    # -- watching children -------------------------------------------------------------------------

    def _watch(self, number: int, child: subprocess.Popen[bytes]) -> None:
        _when_it_ends(self._reactor, child.pid, lambda: self._reap(number))

    def _reap(self, number: int) -> None:
        child = self._children.pop(number, None)
        if child is None:
            return
        cleanup.end_group(child.pid)  # while the zombie holds the group's number
        if hasattr(os, "wait4"):
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        else:
            status, peak = child.wait() << 8, 0
        self._tell_reaper(f"-{child.pid}")
        self._events.on_exited(number, status, peak)

    # -- the reaper --------------------------------------------------------------------------------

    def _start_reaper(self) -> None:
        import subprocess

        self._reaper = subprocess.Popen(
            [sys.executable, "-S", "-c", _REAPER, *self._python_path],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
            cwd="/" if os.name == "posix" else None,
        )
        self._tell_reaper(self._boot["session_dir"])
        for child in self._children.values():
            self._tell_reaper(f"+{child.pid}")
        _when_it_ends(self._reactor, self._reaper.pid, self._on_reaper_gone)

    def _on_reaper_gone(self) -> None:
        """It was killed: have another one."""
        if self._closed or self._reaper is None:
            return
        self._reaper.wait()
        if self._reaper.stdin is not None:
            self._reaper.stdin.close()
        self._reapers_left -= 1
        if self._reapers_left < 0:
            self._events.on_launcher_lost("its reaper process died again and again")
        else:
            self._start_reaper()

    def _tell_reaper(self, line: str) -> None:
        assert self._reaper is not None and self._reaper.stdin is not None
        try:
            self._reaper.stdin.write(line.encode() + b"\n")
        except OSError:  # it died: its successor is told everything
            pass


def _open_output(path: str) -> int:
    return os.open(path or os.devnull, os.O_WRONLY | os.O_APPEND)


def _when_it_ends(reactor: Reactor, pid: int, then: Callable[[], None]) -> None:
    """Call ``then`` on the reactor's thread once this child has ended; it is not reaped by this."""
    try:
        fd = os.pidfd_open(pid)
    except (AttributeError, OSError):
        thread = threading.Thread(target=_wait_for, args=(pid, reactor, then), daemon=True)
        thread.start()
        return

    def on_end(_: int) -> None:
        reactor.remove_reader(fd)
        os.close(fd)
        then()

    reactor.add_reader(fd, on_end)


def _wait_for(pid: int, reactor: Reactor, then: Callable[[], None]) -> None:
    """Where there are no pidfds: a thread that sleeps in the kernel until the child is a zombie."""
    if hasattr(os, "waitid"):
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:  # close() was faster: nobody wants to know any more
            return
    else:
        import psutil

        try:
            psutil.Process(pid).wait()
        except psutil.Error:  # it is gone, whoever has seen it
            pass
    reactor.call_soon(then)
