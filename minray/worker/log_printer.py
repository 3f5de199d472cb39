"""Workers' output in the driver: ``(name pid=…) text``, in order, nothing lost.

Printing may block (a pager, a slow terminal), so it has a thread of its own, started with the first line;
the reactor only hands lines over. Printed bytes are acknowledged, and the node reads the workers' pipes only
as far as that: a driver that prints slowly slows the printing workers down, not itself.

Called by worker.connect. After ``close`` everything that had arrived has been printed.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

from minray.wire.messages import LogAck, LogLines, Message


class LogPrinter:
    """Prints LogLines; ``ack`` sends LogAck to the node."""

    def __init__(self, ack: Callable[[Message], None]) -> None:
        self._ack = ack
        self._lines: queue.SimpleQueue[LogLines | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def on_lines(self, _conn: Any, msg: LogLines) -> None:
        """Reactor: lines have come."""
        self._lines.put(msg)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="minray-log", daemon=True)
            self._thread.start()

    def close(self, timeout: float) -> None:
        """Print what is there, and end."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._lines.put(None)
            self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            msg = self._lines.get()
            if msg is None:
                return
            prefix = f"({msg.name} pid={msg.worker_pid}) "
            stream: TextIO = sys.stderr if msg.is_stderr else sys.stdout
            size = sum(len(line) + 1 for line in msg.lines)
            try:
                stream.write("".join(f"{prefix}{line}\n" for line in msg.lines))
                stream.flush()
            except (OSError, ValueError):
                pass  # the user's stream is closed or its reader gone: nobody wants the lines
            self._ack(LogAck(size))
