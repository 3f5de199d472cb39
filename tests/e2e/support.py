"""Drivers as scripts in processes of their own, and the search for what they leave behind.

A ``Driver`` runs a program with a mark in its environment. All that descends from it inherits the mark, so
``Driver.processes()`` finds daemon, zygote, workers and what users' tasks started, whoever their parent is
by now. Its sessions live in a folder of their own (``MINRAY_TEMP_DIR``), so folders, and by their random
names segments, are found without touching anybody else's session on this machine.

Programs get a prelude (``ray`` imported, ``say`` to tell the test something) and talk to the test through a
file: no pipe that could fill, none that an orphan could hold open.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
MARK = "MINRAY_TEST_MARK"
PATIENCE_S = 5.0  # the promise: nothing is left after that
LIMIT_S = 60.0  # against hangs

PRELUDE = """\
import os, signal, sys, time
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
def say(*words):
    with open({said!r}, "a") as file:
        file.write(" ".join(map(str, words)) + "\\n")
import minray as ray
"""


def eventually(condition: Callable[[], Any], what: str, limit: float = LIMIT_S) -> Any:
    """Poll ``condition`` until it is true; return its value, or fail in ``limit`` seconds by ``what``."""
    deadline = time.monotonic() + limit
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {limit} s")
        time.sleep(0.01)


class Driver:
    """A program that runs as a script: ``python driver.py``."""

    def __init__(
        self,
        folder: Path,
        program: str,
        *,
        env: dict[str, str | None] | None = None,
        prelude: bool = True,
        command: list[str] | None = None,
        wrapper: list[str] | None = None,
        temp_dir: bool = True,
        **popen: Any,
    ) -> None:
        self.mark = uuid.uuid4().hex
        self.folder = folder / f"driver-{self.mark[:6]}"
        self.folder.mkdir()
        self._said = self.folder / "said"
        self._said.touch()
        # Short, or pytest's long names would make every session fall back from unix sockets to TCP.
        self.temp_dir = Path(tempfile.mkdtemp(prefix="mrt-"))
        self.script = self.folder / "driver.py"
        text = textwrap.dedent(program)
        self.script.write_text((PRELUDE.format(said=str(self._said)) if prelude else "") + text)
        environment: dict[str, str | None] = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MINRAY_")},
            "PYTHONPATH": str(ROOT),
            "MINRAY_TEST_SAID": str(self._said),
            MARK: self.mark,
        }
        if temp_dir:
            environment["MINRAY_TEMP_DIR"] = str(self.temp_dir)
        environment |= env or {}
        with open(self.folder / "out", "wb") as out, open(self.folder / "err", "wb") as err:
            self.process = subprocess.Popen(
                [*(wrapper or []), *(command or [sys.executable, str(self.script)])],
                **{
                    "cwd": self.folder,
                    "stdin": subprocess.DEVNULL,
                    "stdout": out,
                    "stderr": err,
                    "env": {name: value for name, value in environment.items() if value is not None},
                    **popen,
                },
            )

    # --- what it says ---------------------------------------------------------------------------

    def said(self, word: str) -> list[str]:
        """The lines that begin with ``word``, without it."""
        lines = self._said.read_text().splitlines()
        return [line[len(word) :].strip() for line in lines if line.split(" ")[0] == word]

    def await_word(self, word: str, count: int = 1, limit: float = LIMIT_S) -> str:
        """Wait until the program has said ``word`` so often; return what followed it."""

        def heard() -> list[str] | None:
            lines = self.said(word)
            if len(lines) >= count:
                return lines
            if self.process.poll() is not None and len(self.said(word)) < count:
                raise AssertionError(f"it ended (code {self.process.returncode}) without {word!r}\n{self.err}")
            return None

        try:
            lines: list[str] = eventually(heard, f"the program says {word!r}", limit)
        except AssertionError as error:
            raise AssertionError(f"{error}\nstderr:\n{self.err}") from None
        return lines[count - 1]

    @property
    def out(self) -> str:
        return re.sub(r"\x1b\[\d+m", "", (self.folder / "out").read_text(errors="replace"))

    @property
    def err(self) -> str:
        return re.sub(r"\x1b\[\d+m", "", (self.folder / "err").read_text(errors="replace"))

    def wait(self, limit: float = LIMIT_S) -> int:
        """Its exit code."""
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the program did not end within {limit} s\nstderr:\n{self.err}") from None

    def succeeds(self, limit: float = LIMIT_S) -> None:
        """Wait for exit code 0."""
        code = self.wait(limit)
        assert code == 0, f"exit code {code}\nstdout:\n{self.out}\nstderr:\n{self.err}"

    # --- its processes and other remains ----------------------------------------------------------

    def processes(self, kind: str = "") -> list[psutil.Process]:
        """Living processes that bear the mark, the driver itself excepted.

        ``kind``: "" all, "daemon", "zygote", or "worker" (children of the zygote).
        """
        found = [process for process in _marked(self.mark) if process.pid != self.process.pid]
        if kind == "":
            return found
        zygotes = [process for process in found if "# minray zygote" in _command(process)]
        zygote_pids = {process.pid for process in zygotes}
        workers = [process for process in zygotes if _parent(process) in zygote_pids]
        if kind == "worker":
            return workers
        if kind == "zygote":
            return [process for process in zygotes if process not in workers]
        return [process for process in found if f"# minray {kind}" in _command(process)]

    def sessions(self) -> list[str]:
        """Names of the session folders."""
        root = self.temp_dir
        return [path.name for path in root.iterdir()] if root.is_dir() else []

    def remains(self, prefixes: set[str]) -> list[str]:
        """What is left of it, described. ``prefixes``: of the names of its segments."""
        left = [f"process {process.pid}: {_command(process)[:150]!r}" for process in self.processes()]
        left += [f"folder {self.temp_dir / name}" for name in self.sessions()]
        shm = Path("/dev/shm")
        if shm.is_dir():
            left += [f"segment {path}" for path in shm.iterdir() if any(p in path.name for p in prefixes)]
        return left

    def leaves_nothing(self, prefixes: set[str] | None = None) -> None:
        """Assert that within five seconds nothing of it is there."""
        prefixes = prefixes or {session_dir_prefix(path) for path in self.said("session")}
        deadline = time.monotonic() + PATIENCE_S
        while left := self.remains(prefixes):
            if time.monotonic() > deadline:
                raise AssertionError("left behind:\n" + "\n".join(left) + f"\nstderr:\n{self.err}")
            time.sleep(0.02)

    def end(self) -> None:
        """Kill whatever is there, for tests that failed; the session may clean up behind its driver first."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            try:
                self.leaves_nothing()
            except AssertionError:
                pass  # another test's business
        for process in self.processes():
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                pass
        shutil.rmtree(self.temp_dir, ignore_errors=True)


def session_dir_prefix(session_dir: str) -> str:
    """The random part of a session folder's name, which its segments bear too."""
    return os.path.basename(session_dir).removeprefix("s_")


def _marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _parent(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return 0
