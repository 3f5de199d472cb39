"""The list of a session's segments, in a file of its folder, so that a later process can remove them.

The node appends a name before it creates the segment and again, with a minus sign, after it unlinked it.
Some systems cannot list shared memory, so this file is all that is left of a session that was killed.
``segments.sweep`` reads it.

Format: a first line ``minray-segments 1 <spec>``, then ``+name`` or ``-name`` per line. Lines are appended
by single writes, so a process that dies leaves at most one incomplete last line, of a segment that was not
made yet. Nothing is synced: the file outlives processes, and a machine that goes down takes the memory along.

Invariant: a segment that exists has a ``+`` line and no ``-`` line after it.
"""

from __future__ import annotations

import os

FILE_NAME = "segments.journal"
_MAGIC = "minray-segments 1 "
_COMPACT_AT = 4096  # dead lines before the file is written anew


class Journal:
    """The writing side; one process of a session has it."""

    def __init__(self, session_dir: str, spec: str) -> None:
        """Open, or go on with, the journal of ``session_dir``."""
        self._path = os.path.join(session_dir, FILE_NAME)
        self._spec = spec
        found = Journal.read(session_dir)
        self._alive: dict[str, None] = dict.fromkeys(found[1] if found else ())
        self._dead = 0
        self._fd = -1
        self._rewrite()

    def add(self, name: str) -> None:
        """Note ``name``; its segment may be created after this returns."""
        self._alive[name] = None
        self._append(f"+{name}\n")

    def remove(self, name: str) -> None:
        """Forget ``name``; its segment is gone."""
        if self._alive.pop(name, 0) is None:
            self._dead += 2
            try:
                self._append(f"-{name}\n")
                if self._dead >= _COMPACT_AT:
                    self._rewrite()
            except OSError:
                # A full disk: the name stays in the file, and sweeping what is gone does no harm.
                return

    def close(self) -> None:
        """Close the file. Later changes are lost."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, line: str) -> None:
        if self._fd >= 0:
            os.write(self._fd, line.encode("ascii"))

    def _rewrite(self) -> None:
        new = self._path + ".new"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | _FLAGS, 0o600)
        lines = [f"{_MAGIC}{self._spec}\n", *(f"+{name}\n" for name in self._alive)]
        os.write(fd, "".join(lines).encode("utf-8", "surrogateescape"))
        self.close()  # Windows replaces no open file
        if os.name == "nt":
            os.close(fd)
            os.replace(new, self._path)
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | _FLAGS)
        else:
            os.replace(new, self._path)
        self._fd = fd
        self._dead = 0

    @staticmethod
    def read(session_dir: str) -> tuple[str, list[str]] | None:
        """The spec and the names of segments that may exist; None if there is no journal."""
        try:
            with open(os.path.join(session_dir, FILE_NAME), "rb") as file:
                text = file.read().decode("utf-8", "surrogateescape")
        except FileNotFoundError:
            return None
        lines = text.split("\n")
        if not lines[0].startswith(_MAGIC):
            raise ValueError(f"{session_dir}/{FILE_NAME} is not a journal of segments: {lines[0][:60]!r}")
        alive: dict[str, None] = {}
        for line in lines[1:-1]:  # what follows the last newline is incomplete
            if line.startswith("+"):
                alive[line[1:]] = None
            elif line.startswith("-"):
                alive.pop(line[1:], None)
        return lines[0][len(_MAGIC) :], list(alive)


_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
