"""Where a session's spill files lie, and how whoever survives the session finds them.

    <session's folder>/spill/…                      where nobody has said anything
    <a folder that was named>/minray_spilled_<prefix>/…   one for each of them; also listed in the session's folder:
    <session's folder>/spill.folders                one path per line, written before the folder is made

Folders have mode 0700, files 0600. With several folders files go to them in turns; one that is full is left out.
``remains`` removes what is listed. Used by ``disk`` (files; on its threads) and by the start of a session (``check``).

Invariants: what is made after ``close`` is removed at once; a folder outside of the session's own stands in the list
before it exists; nothing else than what is called ``minray_spilled_…`` is ever removed.
"""

from __future__ import annotations

import errno
import os

LIST = "spill.folders"
_OWN = "spill"
_PREFIX = "minray_spilled_"
_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def split(setting: str | None) -> list[str]:
    """The folders that the setting names, absolute."""
    return [os.path.abspath(os.path.expanduser(one)) for one in (setting or "").split(os.pathsep) if one.strip()]


def check(setting: str | None) -> None:
    """ValueError, with the folder and the way out, if one of them cannot take spill files."""
    for folder in split(setting):
        problem = _problem(folder)
        if problem:
            raise ValueError(
                f"the folder for spilled objects {folder!r} {problem}: name one in which this user may write"
                " (init(object_spilling_directory=…), minray start --object-spilling-directory, MINRAY_SPILL_DIRS), or"
                " none, for the session's own folder"
            )


def _problem(folder: str) -> str:
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        trial = os.path.join(folder, f".{_PREFIX}{os.getpid()}-{os.urandom(4).hex()}")
        os.mkdir(trial, 0o700)
        os.rmdir(trial)
    except FileExistsError:
        return "is a file"
    except NotADirectoryError:
        return "lies below a file"
    except OSError as error:
        return f"cannot be written to ({error.strerror or error})"
    return ""


def listed(session_dir: str) -> list[str]:
    """The folders outside of ``session_dir`` that its session may have made."""
    try:
        with open(os.path.join(session_dir, LIST), encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [line for line in lines if os.path.isabs(line) and os.path.basename(line).startswith(_PREFIX)]


class SpillFolders:
    """The folders of one session. ``setting``: as ``check`` takes it."""

    def __init__(self, session_dir: str, prefix: str, setting: str | None, full_share: float) -> None:
        given = split(setting)
        self.paths = [os.path.join(folder, _PREFIX + prefix) for folder in given]
        self._full_share = full_share
        self._next = 0
        self._closed = False
        if not given:
            self.paths = [os.path.join(session_dir, _OWN)]
            return
        text = "".join(f"{path}\n" for path in self.paths).encode("utf-8", "surrogateescape")
        fd = os.open(os.path.join(session_dir, LIST), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS, 0o600)
        try:
            os.write(fd, text)
        finally:
            os.close(fd)
        for folder, path in zip(given, self.paths, strict=True):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            os.mkdir(path, 0o700)

    def in_turn(self) -> list[str]:
        """All of them; the one whose turn it is comes first."""
        first = self._next % len(self.paths)
        self._next += 1
        return self.paths[first:] + self.paths[:first]

    def create(self, folder: str, number: int, size: int) -> tuple[int, str]:
        """A new file for ``size`` bytes: descriptor and path. OSError if there is no room, or no such folder."""
        path = os.path.join(folder, f"{number:x}")
        if not os.path.isdir(folder):
            self._make(folder)
        self._check_room(folder, size)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
        try:
            self._check_open()
        except OSError:  # closed while the disk took its time
            os.close(fd)
            os.unlink(path)
            raise
        return fd, path

    def close(self) -> None:
        """From now on no file and no folder is made. Callable on any thread; does not wait for the disk."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.ECANCELED, "the node ends")

    def _make(self, folder: str) -> None:
        """The session's own one when it is first needed, or one that somebody has removed."""
        self._check_open()
        try:
            os.mkdir(folder, 0o700)  # its parent is there; if not, the session has been removed
        except FileExistsError:  # another thread was here
            return
        if self._closed:
            os.rmdir(folder)
            self._check_open()

    def _check_room(self, folder: str, size: int) -> None:
        """A disk that runs full stops everybody on the machine: some of it is left."""
        if not hasattr(os, "statvfs"):
            return
        found = os.statvfs(folder)
        total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
        if total and free - size < (1.0 - self._full_share) * total:
            raise OSError(
                f"writing {size} bytes to {folder} would leave less than {1.0 - self._full_share:.0%} of that disk"
                f" free ({free} of {total} bytes are; MINRAY_SPILL_DISK_SHARE={self._full_share:g})"
            )
