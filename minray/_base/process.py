"""A process's life: its pid together with the moment it started.

Pids are used again, so nobody may signal or mourn a process by its pid alone. ``start_time`` is the second
half of the identity that travels in ``Hello`` and is written into session folders. On Linux it is read from
``/proc`` (seconds since boot, exact to a clock tick, untouched by changes of the wall clock) without psutil,
which would cost a daemon 15 ms and 3 MB; elsewhere psutil answers. The numbers are only ever compared with
numbers from the same machine.

Invariant: a zombie counts as dead, because everything it held is gone already.
"""

from __future__ import annotations

import os

_TICKS = float(os.sysconf("SC_CLK_TCK")) if hasattr(os, "sysconf") else 100.0
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_SLACK = 0.02  # two clock ticks: the same number may have been rounded on its way


def _linux_stat(pid: int) -> list[bytes] | None:
    """The fields of ``/proc/<pid>/stat`` from the state on, or None where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            data = file.read(2048)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return data[data.rindex(b")") + 2 :].split()


def start_time(pid: int) -> float | None:
    """When the living process ``pid`` started, or None if there is none (a zombie is none)."""
    if os.path.exists("/proc/self/stat"):
        fields = _linux_stat(pid)
        if fields is None or fields[0] in (b"Z", b"X", b"x"):
            return None
        return int(fields[19]) / _TICKS
    return _psutil_start_time(pid)


def _psutil_start_time(pid: int) -> float | None:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(process.create_time())
    except psutil.NoSuchProcess:
        return None


def is_alive(pid: int, started: float) -> bool:
    """Whether the very process that had ``pid`` and started at ``started`` still runs."""
    if pid <= 0:
        return False
    now = start_time(pid)
    return now is not None and abs(now - started) <= _SLACK


def private_memory(pid: int) -> int:
    """Bytes of memory that the process uses alone, about: without mapped files and shared memory. 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
            fields = file.read(256).split()
        return (int(fields[1]) - int(fields[2])) * _PAGE
    except (FileNotFoundError, ProcessLookupError):
        return 0 if os.path.exists("/proc/self/statm") else _psutil_memory(pid)


def _psutil_memory(pid: int) -> int:
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def own_identity() -> tuple[int, float]:
    """``(pid, start_time)`` of this process."""
    pid = os.getpid()
    return pid, start_time(pid) or 0.0
