"""What the tests with real processes share: a reactor on a thread, both launchers, and patience."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minray._base.process import start_time
from minray.node.launcher import ForkLauncher, Launcher, SpawnLauncher
from minray.wire.reactor import Reactor

ROOT = Path(__file__).resolve().parent.parent.parent
ENTRY = "tests.node.fake_worker"
PATIENCE_S = 20.0
_ZYGOTE = "import sys; sys.path[:0] = sys.argv[2:]; from minray.node.zygote import main; main()"


def wait_for(what: Callable[[], Any]) -> Any:
    """The first true answer; fails after a while. For what other processes do."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        answer = what()
        if answer:
            return answer
        time.sleep(0.005)
    raise AssertionError(f"{what} did not come true in {PATIENCE_S} s")


def is_gone(pid: int) -> bool:
    """Dead, or a zombie."""
    return start_time(pid) is None


def read_report(path: Path) -> dict[str, Any]:
    """What a fake worker has said about itself."""
    wait_for(path.exists)
    facts = ast.literal_eval(path.read_text())
    assert isinstance(facts, dict)
    return facts


class Events:
    """Gathers what a launcher reports."""

    def __init__(self) -> None:
        self.forked: dict[int, int] = {}
        self.exited: dict[int, tuple[int, int]] = {}
        self.failed: dict[int, str] = {}
        self.lost: list[str] = []

    def on_forked(self, number: int, pid: int) -> None:
        self.forked[number] = pid

    def on_failed(self, number: int, reason: str) -> None:
        self.failed[number] = reason

    def on_exited(self, number: int, status: int, peak_rss: int) -> None:
        self.exited[number] = (status, peak_rss)

    def on_launcher_lost(self, reason: str) -> None:
        self.lost.append(reason)


class Bench:
    """A reactor in a thread of its own, as in a daemon, with a launcher of one kind."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder / "session"
        self.folder.mkdir()
        self.reactor = Reactor(token=b"t", max_frame=1 << 20, background=False, name="test", spin_us=0)
        self.thread = threading.Thread(target=self.reactor.run_forever)
        self.thread.start()
        self.events = Events()
        self.zygote: subprocess.Popen[bytes] | None = None
        self.launcher: Launcher = self.on_loop(self._make)

    def on_loop(self, fn: Callable[[], Any]) -> Any:
        """Run on the reactor's thread, and wait for it."""
        done: list[Any] = []
        ended = threading.Event()

        def call() -> None:
            try:
                done.append(fn())
            finally:
                ended.set()

        self.reactor.call_soon(call)
        assert ended.wait(PATIENCE_S)
        return done[0]

    def _make(self) -> Launcher:
        boot = {
            "entry": ENTRY,
            "session_dir": str(self.folder),
            "env": {"MINRAY_TEST_FLAVOUR": "plain"},
            "bootstrap": {"common": 1},
        }
        if self.kind == "spawn":
            return SpawnLauncher(
                self.reactor, self.events, boot=boot, python_path=[str(ROOT)], entry=ENTRY
            )
        ours, theirs = socket.socketpair()
        with theirs:
            self.zygote = subprocess.Popen(
                [sys.executable, "-c", _ZYGOTE, str(theirs.fileno()), str(ROOT)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        life = (self.zygote.pid, start_time(self.zygote.pid) or 0.0)
        return ForkLauncher(self.reactor, ours, self.events, life=life, boot=boot)

    def start(self, number: int, action: str, **order: Any) -> None:
        """Order a worker."""
        made = {"stdout": "", "stderr": "", "env_vars": {}, "action": action, **order}
        self.on_loop(lambda: self.launcher.start(number, made))

    def running(self, number: int) -> int:
        """Its pid, once it exists."""
        wait_for(lambda: number in self.events.forked)
        return self.events.forked[number]

    def ended(self, number: int) -> int:
        """Its exit code, or minus the signal, once it is reaped."""
        wait_for(lambda: number in self.events.exited)
        return os.waitstatus_to_exitcode(self.events.exited[number][0])

    def close(self) -> None:
        """End everything."""
        self.on_loop(self.launcher.close)
        if self.zygote is not None:
            self.zygote.wait(PATIENCE_S)
        self.reactor.stop()
        self.thread.join(PATIENCE_S)
        self.reactor.close()
