"""Segments: named pieces of memory that several processes map. One contract, two implementations.

``SharedMemorySegments`` are POSIX shared memory (Linux, macOS) or named mappings (Windows), the same that
``multiprocessing.shared_memory`` makes, without its tracker process. ``FileSegments`` are mapped files in
the session's folder, for hosts whose ``/dev/shm`` is missing or small. Nodes create and unlink; everybody
opens. ``choose`` picks for a session; ``from_spec`` gives every other process the same choice.

Invariants
* A name stands in the session's journal before its segment exists, so ``journal.sweep`` finds them all
  however the session died.
* ``unlink`` removes the name, never the memory under somebody's mapping, and is idempotent.
* Names have at most 30 characters (macOS), made of letters, digits and ``-``.
"""

from __future__ import annotations

import mmap
import os
import re
import sys
import threading
from typing import Any, Protocol

from minray._base.machine import SHM_MIN, shm_free
from minray.store.errors import SegmentGone, StoreError
from minray.store.journal import Journal
from minray.store.mapping import SegmentMap

MAX_NAME = 30
_SLOW_TO_FREE = 64 << 20
_NAME = re.compile(r"[A-Za-z0-9-]{1,30}")
_SHM_FOLDER = "/dev/shm"
_O_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_O_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


class Segments(Protocol):
    """The contract. ``spec`` tells another process which implementation this is (see ``from_spec``)."""

    spec: str

    def create(self, name: str, size: int) -> None:
        """Make a segment of ``size`` bytes. FileExistsError if the name is taken; OSError on shortage."""

    def open(self, name: str, size: int, *, writable: bool = False) -> SegmentMap:
        """Map it. SegmentGone if there is none of that name, or if it is smaller than ``size``."""

    def unlink(self, name: str) -> bool:
        """Remove the name; memory goes with the last mapping. False if there was none."""

    def list(self, prefix: str) -> list[str]:
        """Names that start with ``prefix``, sorted: of all processes where the system can tell, else
        of those that this process created."""

    def free_bytes(self) -> int | None:
        """What the place of the segments has free; None where it can't be asked."""

    def close(self) -> None:
        """Close the journal. Segments stay."""


def segment_name(prefix: str, segment_id: int) -> str:
    """The name of a session's segment. ValueError if the prefix leaves no room for the number."""
    return check_name(f"{prefix}{segment_id:x}")


def check_name(name: str) -> str:
    """``name`` if it can name a segment on every system, else ValueError."""
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"a segment's name has 1 to {MAX_NAME} letters, digits and '-', got {name!r}")
    return name


def choose(setting: str, session_dir: str, *, journal: bool = True) -> Segments:
    """The implementation for a new session: ``setting`` is "shm", "file" or "auto".

    auto takes shared memory unless ``/dev/shm`` is missing, not writable, or has less than 256 MiB free.
    Called by the process that creates segments; ``journal`` False for one that only opens them.
    """
    if setting not in ("auto", "shm", "file"):
        raise ValueError(f"segments must be 'auto', 'shm' or 'file', got {setting!r}")
    if setting == "auto":
        setting = "shm" if _shm_is_usable() else "file"
    spec = "shm" if setting == "shm" else f"file:{os.path.join(session_dir, 'segments')}"
    return from_spec(spec, Journal(session_dir, spec) if journal else None)


def from_spec(spec: str, journal: Journal | None = None) -> Segments:
    """The implementation that ``Segments.spec`` describes."""
    kind, _, folder = spec.partition(":")
    if kind == "shm" and not folder:
        return SharedMemorySegments(journal)
    if kind == "file" and folder:
        return FileSegments(folder, journal)
    raise ValueError(f"not a description of segments: {spec!r}")


def sweep(session_dir: str) -> list[str]:
    """Unlink every segment that the journal of a dead session names; returns those that existed.

    The caller has made sure that the session is dead. Without a journal there is nothing to do.
    """
    found = Journal.read(session_dir)
    if found is None:
        return []
    spec, names = found
    segments = from_spec(spec)
    return [name for name in names if segments.unlink(name)]


def _shm_is_usable() -> bool:
    if sys.platform == "win32":
        return True
    try:
        import _posixshmem  # noqa: F401
    except ImportError:
        return False
    if not sys.platform.startswith("linux"):
        return True
    free = shm_free("/")
    return free is not None and free >= SHM_MIN and os.access(_SHM_FOLDER, os.W_OK)


class _Descriptors:
    """What both implementations share on POSIX: a segment is a file descriptor."""

    can_pwrite = hasattr(os, "pwrite")

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal

    def _open_fd(self, name: str, flags: int) -> int:
        raise NotImplementedError

    def _unlink_name(self, name: str) -> None:
        raise NotImplementedError

    def create(self, name: str, size: int) -> None:
        check_name(name)
        if size <= 0:
            raise ValueError(f"a segment has at least one byte, got {size}")
        if self._journal is not None:
            self._journal.add(name)
        fd = self._open_fd(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            os.ftruncate(fd, size)
        except OSError:
            self.unlink(name)
            raise
        finally:
            os.close(fd)

    def open(self, name: str, size: int, *, writable: bool = False) -> SegmentMap:
        try:
            fd = self._open_fd(check_name(name), os.O_RDWR if writable else os.O_RDONLY)
        except FileNotFoundError:
            raise SegmentGone(f"segment {name} does not exist") from None
        keep_fd = False
        try:
            actual = os.fstat(fd).st_size
            if actual < size:
                raise SegmentGone(f"segment {name} has {actual} bytes, expected {size}")
            mapping = _map(fd, size, writable)
            keep_fd = writable and self.can_pwrite
        finally:
            if not keep_fd:
                os.close(fd)
        return SegmentMap(name, size, mapping, writable=writable, fd=fd if keep_fd else -1)

    def unlink(self, name: str) -> bool:
        fd = self._keep(check_name(name))
        try:
            self._unlink_name(name)
        except FileNotFoundError:
            existed = False
        except PermissionError:
            if sys.platform != "win32":
                raise
            return True  # Windows removes no mapped file: the journal keeps its name for the sweep
        else:
            existed = True
        finally:
            if fd >= 0:
                threading.Thread(target=os.close, args=(fd,), name="minray-unlink", daemon=True).start()
        if self._journal is not None:
            self._journal.remove(name)
        return existed

    def _keep(self, name: str) -> int:
        """A descriptor of a large segment that is about to lose its name, -1 for a small one. Giving a gigabyte back
        to the system takes 0.3 s: the last close does it, on a thread, and not whoever removes the name."""
        if sys.platform == "win32":  # which removes no open file
            return -1
        try:
            fd = self._open_fd(name, os.O_RDONLY)
        except OSError:
            return -1
        if os.fstat(fd).st_size >= _SLOW_TO_FREE:
            return fd
        os.close(fd)
        return -1

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()


def _map(fd: int, size: int, writable: bool) -> mmap.mmap:
    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    options: dict[str, Any] = {"access": access}
    if sys.version_info >= (3, 13) and sys.platform != "win32":
        options["trackfd"] = False  # or every mapping costs a second descriptor
    return mmap.mmap(fd, size, **options)


class FileSegments(_Descriptors):
    """Mapped files in one folder."""

    def __init__(self, folder: str, journal: Journal | None = None) -> None:
        super().__init__(journal)
        self.folder = folder
        self.spec = f"file:{folder}"

    def __repr__(self) -> str:
        return f"FileSegments({self.folder!r})"

    def create(self, name: str, size: int) -> None:
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        super().create(name, size)

    def _open_fd(self, name: str, flags: int) -> int:
        binary = getattr(os, "O_BINARY", 0)
        return os.open(os.path.join(self.folder, name), flags | _O_CLOEXEC | _O_NOFOLLOW | binary, 0o600)

    def _unlink_name(self, name: str) -> None:
        os.unlink(os.path.join(self.folder, name))

    def list(self, prefix: str) -> list[str]:
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if name.startswith(prefix))

    def free_bytes(self) -> int | None:
        return _free_bytes(self.folder)


class _PosixSharedMemory(_Descriptors):
    """``shm_open`` and ``shm_unlink``, through the module that multiprocessing uses."""

    spec = "shm"
    can_pwrite = sys.platform != "darwin"

    def __init__(self, journal: Journal | None = None) -> None:
        try:
            import _posixshmem
        except ImportError:
            raise StoreError(
                "this Python has no shared memory (module _posixshmem): set MINRAY_SEGMENTS=file"
            ) from None
        super().__init__(journal)
        self._shm: Any = _posixshmem
        self._created: set[str] = set()

    def __repr__(self) -> str:
        return "SharedMemorySegments()"

    def create(self, name: str, size: int) -> None:
        super().create(name, size)
        self._created.add(name)

    def _open_fd(self, name: str, flags: int) -> int:
        # shm_open sets close-on-exec by itself
        fd: int = self._shm.shm_open("/" + name, flags, mode=0o600)
        return fd

    def _unlink_name(self, name: str) -> None:
        self._created.discard(name)
        self._shm.shm_unlink("/" + name)

    def list(self, prefix: str) -> list[str]:
        names: Any = self._created
        if sys.platform.startswith("linux"):
            try:
                names = os.listdir(_SHM_FOLDER)
            except FileNotFoundError:
                names = self._created
        return sorted(name for name in names if name.startswith(prefix))

    def free_bytes(self) -> int | None:
        return _free_bytes(_SHM_FOLDER) if sys.platform.startswith("linux") else None


class _WindowsSharedMemory:
    """Named mappings of the paging file. They live as long as a handle: the creator keeps one."""

    spec = "shm"

    def __init__(self, journal: Journal | None = None) -> None:
        self._held: dict[str, Any] = {}
        self._journal = journal  # for symmetry: dead sessions leave nothing here

    def __repr__(self) -> str:
        return "SharedMemorySegments()"

    def create(self, name: str, size: int) -> None:
        if size <= 0:
            raise ValueError(f"a segment has at least one byte, got {size}")
        if check_name(name) in self._held or self._exists(name):
            raise FileExistsError(f"segment {name} exists")
        self._held[name] = self._mmap(name, size, mmap.ACCESS_WRITE)

    def open(self, name: str, size: int, *, writable: bool = False) -> SegmentMap:
        if not self._exists(check_name(name)):
            raise SegmentGone(f"segment {name} does not exist")
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        return SegmentMap(name, size, self._mmap(name, size, access), writable=writable)

    def unlink(self, name: str) -> bool:
        held = self._held.pop(check_name(name), None)
        if held is None:
            return False
        held.close()
        return True

    def list(self, prefix: str) -> list[str]:
        return sorted(name for name in self._held if name.startswith(prefix))

    def free_bytes(self) -> int | None:
        return None

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    @staticmethod
    def _mmap(name: str, size: int, access: int) -> mmap.mmap:
        make: Any = mmap.mmap  # tagname exists on Windows only
        mapping: mmap.mmap = make(-1, size, tagname=name, access=access)
        return mapping

    @staticmethod
    def _exists(name: str) -> bool:
        winapi: Any = __import__("_winapi")
        try:
            handle = winapi.OpenFileMapping(winapi.FILE_MAP_READ, False, name)
        except FileNotFoundError:
            return False
        winapi.CloseHandle(handle)
        return True


def _free_bytes(folder: str) -> int | None:
    try:
        stats = os.statvfs(folder)
    except (OSError, AttributeError):
        return None
    return stats.f_bavail * stats.f_frsize


def SharedMemorySegments(journal: Journal | None = None) -> Segments:
    """Shared memory by this system's own means. StoreError where this Python has none."""
    if sys.platform == "win32":
        return _WindowsSharedMemory(journal)
    return _PosixSharedMemory(journal)
