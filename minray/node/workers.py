"""The worker processes of a node, as effects: started, watched, ended, and their remains examined.

What the pure tables order (``start``, ``exit``) is done here: pipes, a slot of the status page, a file for
faulthandler's stack, the launcher's order. What the launcher reports becomes a death certificate and goes to
``ended``, after the worker's last lines.

Called by node.service on the reactor's thread. Invariant: what a worker was given (pipes, slot, files) is
taken back exactly once, when its parent has reaped it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minray._base.status_page import StatusPage
from minray.node.certificates import OomWatch, certificate
from minray.node.demands import WorkerClass
from minray.node.launcher import Launcher
from minray.node.logs import LogHub

SLOTS = 1024  # per status page; there are as many pages as it takes

Ended = Callable[[int, dict[str, Any], tuple[int, int, int]], None]  # number, cause, what ran


class StatusPages:
    """Slots for any number of workers."""

    def __init__(self, folder: str, slots: int = SLOTS) -> None:
        self._folder = folder
        self._slots = slots
        self._pages: list[StatusPage] = []
        self._free: list[tuple[StatusPage, int]] = []

    def take(self) -> tuple[StatusPage, int]:
        """A cleared slot."""
        if not self._free:
            page = StatusPage(os.path.join(self._folder, f"status{len(self._pages)}"), self._slots)
            self._pages.append(page)
            self._free = [(page, slot) for slot in reversed(range(self._slots))]
            return self._free.pop()
        page, slot = self._free.pop()
        page.clear(slot)
        return page, slot

    def give_back(self, page: StatusPage, slot: int) -> None:
        """Its worker is dead and was read."""
        self._free.append((page, slot))

    def close(self) -> None:
        """Unmap all of them."""
        for page in self._pages:
            page.close()


@dataclass(slots=True, eq=False)
class _Process:
    page: StatusPage
    slot: int
    stack_file: str
    pid: int = 0
    ordered: str | None = None  # why it was told to end
    suspicion: str = ""  # why it had to be killed, though nobody ordered its end
    memory_ran_out: bool = False  # that was why
    beside: int = 0  # so many others worked here then


class WorkerProcesses:
    """See the file's head; a LauncherEvents.

    Args:
        folder: the session's.
        job_info: what workers of a job need: sys_path, cwd.
        launch: makes the launcher for these events.
        hear_out: is to hear what a worker has said, before it is asked how it ended.
        ended: is told of each end.
        lost: is told that no more workers can be had.
    """

    def __init__(
        self,
        folder: str,
        logs: LogHub,
        *,
        job_info: Callable[[bytes], dict[str, Any]],
        launch: Callable[[WorkerProcesses], Launcher],
        hear_out: Callable[[int], None],
        ended: Ended,
        lost: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._logs = logs
        self._job_info = job_info
        self._hear_out = hear_out
        self._ended = ended
        self._lost = lost
        self._pages = StatusPages(folder)
        self._oom = OomWatch()
        self._processes: dict[int, _Process] = {}
        self.launcher = launch(self)

    def __len__(self) -> int:
        return len(self._processes)

    # -- orders ------------------------------------------------------------------------------------

    def start(self, number: int, worker_id: bytes, worker_class: WorkerClass) -> None:
        """Start a worker."""
        page, slot = self._pages.take()
        stack_file = os.path.join(self._folder, f"stack{number}")
        self._processes[number] = _Process(page, slot, stack_file)
        stdout, stderr = self._logs.open(number, worker_id, worker_class.job_id)
        job = self._job_info(worker_class.job_id)
        order = {
            "worker_number": number,
            "worker_id": worker_id,
            "sys_path": job["sys_path"],
            "cwd": job["cwd"],
            "env_vars": dict(worker_class.env_vars),
            "status_page": page.path,
            "slot": slot,
            "stack_file": stack_file,
            "stdout": stdout,
            "stderr": stderr,
        }
        self.launcher.start(number, order)

    def expect_end(self, number: int, reason: str) -> None:
        """It is told to end, or has said that it will: its end is no accident."""
        process = self._processes.get(number)
        if process is not None and process.ordered is None:
            process.ordered = reason

    def kill(self, number: int, suspicion: str = "") -> None:
        """End it and its process group by force."""
        process = self._processes.get(number)
        if process is not None:
            process.suspicion = process.suspicion or suspicion
            self.launcher.kill(number)

    def kill_for_memory(self, number: int, text: str, beside: int) -> None:
        """The same, because memory runs out, while so many others work here."""
        process = self._processes.get(number)
        if process is not None:
            process.memory_ran_out, process.beside = True, beside
            self.kill(number, text)

    def pid(self, number: int) -> int | None:
        """Of a process, once it is known."""
        process = self._processes.get(number)
        return process.pid or None if process is not None else None

    def registered(self, number: int, pid: int) -> None:
        """It has connected, and thus opened its pipes."""
        process = self._processes.get(number)
        if process is not None:
            process.pid = pid
        self._logs.started(number, pid)

    def close(self) -> None:
        """The session ends: whoever is left is killed by the launcher's end."""
        self.launcher.close()
        self._pages.close()

    # -- reports -----------------------------------------------------------------------------------

    def on_forked(self, number: int, pid: int) -> None:
        """LauncherEvents."""
        process = self._processes.get(number)
        if process is not None:
            process.pid = pid

    def on_failed(self, number: int, reason: str) -> None:
        """LauncherEvents: it never was."""
        process = self._processes.pop(number, None)
        if process is not None:
            self._logs.close(number)
            self._pages.give_back(process.page, process.slot)
            self._ended(number, {"text": reason, "expected": False}, (-1, -1, -1))

    def on_exited(self, number: int, status: int, peak_rss: int) -> None:
        """LauncherEvents: it is reaped. Its last lines go out before its death is known."""
        process = self._processes.get(number)
        if process is None:
            return
        self._hear_out(number)
        del self._processes[number]
        task = self._logs.name(number)
        cause = certificate(
            status,
            peak_rss,
            pid=process.pid,
            task="" if task == "worker" else task,
            log_tail=self._logs.close(number),
            stack_file=process.stack_file,
            ordered=process.ordered,
            oom=self._oom,
        )
        if process.suspicion and not cause["expected"]:
            cause["text"] = process.suspicion
            if process.memory_ran_out:
                cause.update(memory_ran_out=True, beside=process.beside)
        try:
            os.unlink(process.stack_file)
        except FileNotFoundError:
            pass
        running = process.page.read(process.slot)
        self._pages.give_back(process.page, process.slot)
        self._ended(number, cause, running)

    def on_launcher_lost(self, reason: str) -> None:
        """LauncherEvents: nobody can say any more how workers end."""
        self._processes.clear()
        self._lost(reason)
