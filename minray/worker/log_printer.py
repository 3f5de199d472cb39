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
from typing import TextIO

from minray.wire.messages import LogAck, LogLines, pack
from minray.wire.reactor import Connection
from minray.wire.transports import nearest, split_tcp


class LogPrinter:
    """Prints LogLines; whoever sent them hears of it by LogAck. Lines of other nodes say where they are from."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[tuple[Connection, LogLines] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def on_lines(self, conn: Connection, msg: LogLines) -> None:
        """Reactor: lines have come."""
        self._lines.put((conn, msg))
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
            entry = self._lines.get()
            if entry is None:
                return
            conn, msg = entry
            prefix = f"({msg.name} pid={msg.worker_pid}{_where(conn)}) "
            stream: TextIO = sys.stderr if msg.is_stderr else sys.stdout
            size = sum(len(line) + 1 for line in msg.lines)
            try:
                stream.write("".join(f"{prefix}{line}\n" for line in msg.lines))
                stream.flush()
            except (OSError, ValueError):
                pass  # the user's stream is closed or its reader gone: nobody wants the lines
            conn.send(pack(LogAck(size)))


def _where(conn: Connection) -> str:
    """``, ip=…`` for another node."""
    if conn.hello is None:
        return ""
    part = nearest(conn.hello.endpoint, same_machine=False)
    return f", ip={split_tcp(part[4:])[0]}" if part.startswith("tcp:") else ""
