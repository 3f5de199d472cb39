"""Death certificates: what a node can say about a worker's end.

Made from the exit status and the peak memory that its parent reaped, what it was ordered, its last lines,
and the stack that faulthandler has left behind. The keys are those of ``wire.messages.Died.cause``; their
text for users is in ``_base.certificates``.

Called by node.service. Invariant: never raises for a file that is not there or not readable.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

STACK_LIMIT = 16 * 1024


class OomWatch:
    """Whether the kernel's out-of-memory killer has struck since the last look. Looks only when asked."""

    def __init__(self, root: str = "/") -> None:
        self._root = root
        self._last = self._kills()

    def struck(self) -> bool:
        """True if it has killed something since the last call."""
        kills = self._kills()
        struck = kills > self._last
        self._last = kills
        return struck

    def _kills(self) -> int:
        total = 0
        for path, key in (
            ("proc/vmstat", b"oom_kill"),
            ("sys/fs/cgroup/memory.events", b"oom_kill"),
            ("sys/fs/cgroup/memory/memory.oom_control", b"oom_kill"),
        ):
            try:
                with open(os.path.join(self._root, path), "rb") as file:
                    lines = file.read().split(b"\n")
            except OSError:
                continue
            for line in lines:
                words = line.split()
                if len(words) == 2 and words[0] == key and words[1].isdigit():
                    total += int(words[1])
        return total


def certificate(
    status: int,
    peak_rss: int,
    *,
    pid: int,
    task: str,
    log_tail: list[str],
    stack_file: str,
    ordered: str | None,
    oom: OomWatch,
) -> dict[str, Any]:
    """The cause of a death.

    Args:
        status: as from waitpid.
        peak_rss: bytes, 0 if unknown.
        task: the name of what ran there, "" if unknown.
        stack_file: where faulthandler writes.
        ordered: why the process was told to end; None: it was not.
    """
    code, number = exit_code(status), 0
    if code < 0:
        number, code = -code, 0
    struck = number == getattr(signal, "SIGKILL", 9) and ordered is None and oom.struck()
    cause: dict[str, Any] = {
        "text": ordered or ended_text(code, number, struck),
        "exit_code": None if number else code,
        "signal": number or None,
        "oom": struck,
        "peak_rss": peak_rss,
        "log_tail": log_tail,
        "stack": read_stack(stack_file),
        "expected": ordered is not None,
        "pid": pid,
    }
    if task:
        cause["task"] = task
    return cause


def exit_code(status: int) -> int:
    """The exit code, or minus the signal."""
    if sys.platform == "win32":
        return status >> 8
    return os.waitstatus_to_exitcode(status)


def ended_text(code: int, number: int, oom: bool) -> str:
    """In words."""
    if oom:
        return "the worker process was killed, probably by the kernel for want of memory"
    if number:
        return f"the worker process was ended by signal {number} ({_name(number)})"
    if code == 0:
        return "the worker process ended by itself (exit code 0) in the middle of its work"
    return f"the worker process ended with exit code {code}"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def read_stack(path: str) -> str:
    """What faulthandler wrote, the beginning of it; "" if nothing."""
    try:
        with open(path, "rb") as file:
            return file.read(STACK_LIMIT).decode("utf-8", "replace").strip()
    except OSError:
        return ""
