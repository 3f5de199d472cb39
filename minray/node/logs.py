"""Workers' output: from their pipes to log files and, as lines, to the driver of their job.

Each worker has two named pipes in the session's folder, made here, opened for reading before the worker is
started, and unlinked as soon as it has both open. What arrives is appended to a file in ``logs/`` (as it is)
and cut into lines for the driver. The last lines of each worker are kept for its death certificate.

Nothing printed is lost, and nobody runs out of memory: lines on their way to a driver are counted until it
has acknowledged them; beyond the credit the pipes of that job are left alone, and a worker that prints into a
full pipe waits. (A file is cut off and begun anew when it is too long; the line before stays beside it.)

Whose lines they are, a worker says inside the pipe (``_base.log_marker``); one that does not is believed what
it says beside it (``rename``).

Called by node.service on the reactor's thread. Invariants: a pipe is read exactly while its job has credit;
lines of one pipe keep their order; a line longer than MAX_LINE is cut.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from minray._base.log_marker import PREFIX, split, without
from minray.wire.messages import LogLines
from minray.wire.reactor import Reactor

TAIL = 20
READ = 64 * 1024
MAX_LINE = 64 * 1024
MAX_FILE = 16 * 1024 * 1024

Deliver = Callable[[bytes, LogLines], bool]  # job, lines → whether somebody takes them


@dataclass(slots=True, eq=False)
class _Pipe:
    fd: int
    path: str
    is_stderr: bool
    rest: bytes = b""  # the beginning of a line
    reading: bool = False
    name: str = ""  # by the last marker
    file: int = -1
    written: int = 0


@dataclass(slots=True, eq=False)
class _Source:
    job_id: bytes
    pipes: list[_Pipe]
    file_name: str
    pid: int = 0
    name: str = "worker"
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL))


class LogHub:
    """All output of one node's workers.

    Args:
        pipe_dir: where the named pipes are made.
        log_dir: where the files go.
        deliver: sends lines to a job's driver.
        credit: characters of lines that may be on their way to one driver.
    """

    def __init__(
        self, reactor: Reactor, *, pipe_dir: str, log_dir: str, deliver: Deliver, credit: int
    ) -> None:
        self._reactor = reactor
        self._pipe_dir = pipe_dir
        self._log_dir = log_dir
        self._deliver = deliver
        self._credit = credit
        self._sources: dict[int, _Source] = {}
        self._under_way: dict[bytes, int] = {}  # job → characters that its driver has not acknowledged

    # -- a worker's life ---------------------------------------------------------------------------

    def open(self, number: int, worker_id: bytes, job_id: bytes) -> tuple[str, str]:
        """Pipes for a worker about to start: the paths that it opens as its stdout and stderr."""
        source = _Source(job_id, [], f"worker-{worker_id[:8].hex()}")
        self._sources[number] = source
        paths = []
        for is_stderr, suffix in ((False, "out"), (True, "err")):
            path = os.path.join(self._pipe_dir, f"{number}.{suffix}")
            if not hasattr(os, "mkfifo"):
                paths.append(self._plain_file(source, suffix))
                continue
            try:
                os.mkfifo(path, 0o600)
            except OSError:  # a file system without pipes: its output goes to the file only
                paths.append(self._plain_file(source, suffix))
                continue
            # Open for writing too: so the pipe never ends, whoever closes its other end.
            pipe = _Pipe(os.open(path, os.O_RDWR | os.O_NONBLOCK), path, is_stderr)
            source.pipes.append(pipe)
            paths.append(path)
            self._read_if_allowed(source, pipe)
        return paths[0], paths[1]

    def _plain_file(self, source: _Source, suffix: str) -> str:
        path = os.path.join(self._log_dir, f"{source.file_name}.{suffix}")
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        return path

    def started(self, number: int, pid: int) -> None:
        """The worker has its pipes open: their names are not needed any more."""
        source = self._sources.get(number)
        if source is not None:
            source.pid = pid
            for pipe in source.pipes:
                _unlink(pipe)

    def rename(self, number: int, name: str) -> None:
        """What the worker prints from now on belongs to another function or class."""
        source = self._sources.get(number)
        if source is not None:
            source.name = name

    def name(self, number: int) -> str:
        """What runs in that worker."""
        source = self._sources.get(number)
        return source.name if source is not None else ""

    def close(self, number: int) -> list[str]:
        """The worker is dead: pass on the rest; returns its last lines."""
        source = self._sources.pop(number, None)
        if source is None:
            return []
        self._drain(source)
        for pipe in source.pipes:
            if pipe.rest:
                self._lines(source, pipe, [pipe.rest])
            self._reactor.remove_reader(pipe.fd)
            os.close(pipe.fd)
            if pipe.file >= 0:
                os.close(pipe.file)
            _unlink(pipe)
        return list(source.tail)

    def close_all(self) -> None:
        """The session ends."""
        for number in list(self._sources):
            self.close(number)

    # -- credit ------------------------------------------------------------------------------------

    def ack(self, job_id: bytes, count: int) -> None:
        """The driver has printed so many characters."""
        before = self._under_way.get(job_id, 0)
        after = max(0, before - count)
        self._under_way[job_id] = after
        if before >= self._credit > after:
            for source in self._sources.values():
                if source.job_id == job_id:
                    for pipe in source.pipes:
                        self._read_if_allowed(source, pipe)

    def under_way(self, job_id: bytes) -> int:
        """How many characters the job's driver has been sent and has not printed."""
        return self._under_way.get(job_id, 0)

    def driver_gone(self, job_id: bytes) -> None:
        """Nobody prints this job's lines any more; the files go on."""
        self.ack(job_id, self._under_way.get(job_id, 0))
        self._under_way.pop(job_id, None)

    def flush(self, job_id: bytes) -> None:
        """Pass on what this job's workers have printed up to now, whatever the credit."""
        for source in self._sources.values():
            if source.job_id == job_id:
                self._drain(source)

    # -- reading -----------------------------------------------------------------------------------

    def _read_if_allowed(self, source: _Source, pipe: _Pipe) -> None:
        allowed = self._under_way.get(source.job_id, 0) < self._credit
        if allowed and not pipe.reading:
            self._reactor.add_reader(pipe.fd, lambda _: self._on_readable(source, pipe))
        elif not allowed and pipe.reading:
            self._reactor.remove_reader(pipe.fd)
        pipe.reading = allowed

    def _on_readable(self, source: _Source, pipe: _Pipe) -> None:
        self._read(source, pipe)
        self._read_if_allowed(source, pipe)

    def _drain(self, source: _Source) -> None:
        """At most what a pipe holds: a worker that prints without end must not hold up the node."""
        for pipe in source.pipes:
            for _ in range(16):
                if not self._read(source, pipe):
                    break

    def _read(self, source: _Source, pipe: _Pipe) -> bool:
        try:
            data = os.read(pipe.fd, READ)
        except BlockingIOError:
            return False
        text = without(data) if PREFIX in data else data
        if text:
            self._keep(source, pipe, text)
        whole = pipe.rest + data if pipe.rest else data
        lines = whole.split(b"\n")
        pipe.rest = lines.pop()
        if len(pipe.rest) > MAX_LINE:
            lines.append(pipe.rest)
            pipe.rest = b""
        if lines and PREFIX in whole:
            self._marked_lines(source, pipe, lines)
        elif lines:
            self._lines(source, pipe, lines)
        return bool(data)

    def _marked_lines(self, source: _Source, pipe: _Pipe, raw: list[bytes]) -> None:
        lines: list[bytes] = []
        for line in raw:
            found = split(line)
            if found is None:
                lines.append(line)
                continue
            if found[0]:
                lines.append(found[0])
            if lines:
                self._lines(source, pipe, lines)
                lines = []
            pipe.name = found[1]
        if lines:
            self._lines(source, pipe, lines)

    def _lines(self, source: _Source, pipe: _Pipe, raw: list[bytes]) -> None:
        lines = [line.decode("utf-8", "replace") for line in raw]
        source.tail.extend(lines[-TAIL:])
        message = LogLines(source.pid, pipe.name or source.name, pipe.is_stderr, lines)
        if self._deliver(source.job_id, message):
            size = sum(map(len, lines)) + len(lines)
            self._under_way[source.job_id] = self._under_way.get(source.job_id, 0) + size

    def _keep(self, source: _Source, pipe: _Pipe, data: bytes) -> None:
        """Append to the worker's log file."""
        path = os.path.join(self._log_dir, f"{source.file_name}.{'err' if pipe.is_stderr else 'out'}")
        try:
            if pipe.file >= 0 and pipe.written > MAX_FILE:
                os.close(pipe.file)
                pipe.file = -1
                os.replace(path, path + ".old")
            if pipe.file < 0:
                pipe.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                pipe.written = 0
            pipe.written += os.write(pipe.file, data)
        except OSError:  # a full disk: the driver's lines matter more
            return

    def check_invariants(self) -> None:
        """Pipes are read exactly while their job has credit."""
        for source in self._sources.values():
            allowed = self._under_way.get(source.job_id, 0) < self._credit
            assert all(pipe.reading == allowed for pipe in source.pipes if allowed), source


def _unlink(pipe: _Pipe) -> None:
    if pipe.path:
        try:
            os.unlink(pipe.path)
        except FileNotFoundError:
            pass
        pipe.path = ""
