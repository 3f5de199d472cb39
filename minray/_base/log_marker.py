"""How a worker says, inside its output, whose lines follow.

A worker writes ``marker(name)`` to its stdout and stderr before it starts something under another name.
The node, which reads both pipes, takes it out again (``split``) and attributes the lines exactly: a message
beside the pipe would overtake what was printed, or be overtaken by it.

Invariant: a marker is one write of less than PIPE_BUF bytes, so it is never torn; it also ends a line that
had no newline.
"""

from __future__ import annotations

import re

PREFIX = b"\0minray:name "
MAX_NAME = 400
_WHOLE = re.compile(re.escape(PREFIX) + rb"[^\n]*\n")


def marker(name: str) -> bytes:
    """What to write: ``os.write(1, marker(name))`` after a flush, and the same for 2."""
    return PREFIX + name.encode("utf-8", "replace")[:MAX_NAME].replace(b"\n", b" ") + b"\n"


def split(line: bytes) -> tuple[bytes, str] | None:
    """``(what stood before it, name)`` if there is a marker in this line (without its newline), else None."""
    at = line.find(PREFIX)
    if at < 0:
        return None
    return line[:at], line[at + len(PREFIX) :].decode("utf-8", "replace")


def without(data: bytes) -> bytes:
    """The output as the user wrote it."""
    return _WHOLE.sub(b"", data)
