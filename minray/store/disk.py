"""Objects between memory and files: threads that write and read, at the node. Nothing here waits on the reactor.

::

    table ─("spill")──▶ queue ─▶ thread: segment's mapping ═══▶ file ──────────▶ table.spilled │ spill_failed
    table ─("restore")─▶ queue, bounded ─▶ restorer.reserve ─▶ Room
                                             └▶ thread: file ═══▶ Room's mapping ─▶ restorer.fill (Sealed) │ failed
    table ─("unspill")▶ queue ─▶ thread: unlink

The *restorer* is a ``StoreClient`` like those of the workers: what it has read is an object that it reports, under
the restorer's id. So a restored object's memory is accounted, pinned and given back as all memory is.

Reading from a mapping while its object may be freed and its bytes overwritten is harmless: the table discards what
belongs to no object any more. Threads start when there is something to do and end when there is nothing.

Made by ``node.service``. Invariants: at most THREADS threads; at most READING bytes have rooms and are not read (but
for one larger object); a file is known by its path here from ``spilled`` until ``unspill``.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from minray._base import log
from minray.store.authority import StoreAuthority
from minray.store.client import IDLE_S, Room, StoreClient
from minray.store.errors import SegmentGone
from minray.store.extents import Effect
from minray.store.mapping import SegmentMap
from minray.store.spill_folders import SpillFolders
from minray.wire.messages import Freed, Message

THREADS = 4
READING = 256 << 20
STEP = 8 << 20  # bytes per write
SCRATCH = 1 << 20
END_S = 1.0
_O_READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_NO_ROOM = (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE)  # pass, unlike damage
Job = Callable[[], None]
write, close = os.write, os.close  # of files of spilled objects; tests have them fail


class Disk:
    """See the module.

    Args:
        store: the node's authority; gets what happens as calls of its table.
        call_soon: runs a function on the reactor's thread; callable anywhere.
        call_later: (seconds, function), on the reactor's thread.
        now: the table's clock.
        settled: called after each step that began here.
    """

    def __init__(
        self,
        store: StoreAuthority,
        folders: SpillFolders,
        *,
        node_id: bytes,
        call_soon: Callable[[Callable[[], None]], None],
        call_later: Callable[[float, Callable[[], None]], Any],
        now: Callable[[], float],
        settled: Callable[[], None] = lambda: None,
    ) -> None:
        self.folders = folders
        self._store = store
        self._call_soon = call_soon
        self._call_later = call_later
        self._now = now
        self._settled = settled
        self._paths: dict[int, str] = {}
        self._restores: deque[Effect] = deque()  # that have no room yet
        self._reading = 0
        self._jobs: deque[Job] = deque()
        self._lock = threading.Lock()
        self._threads: dict[threading.Thread, None] = {}
        self._trim: Any = None
        self.closed = False
        self.restorer = StoreClient(
            store.segments,
            node_id=node_id,
            worker_id=store.table.restorer_id,
            send=lambda message: store.on_message(store.table.restorer_id, message, now()),
        )
        store.attach_disk(self._perform, self._to_restorer)

    def __repr__(self) -> str:
        return f"<Disk {len(self._paths)} files, {len(self._threads)} threads, {len(self._restores)} restores wait>"

    def close(self) -> None:
        """The node ends. Files stay, for whoever removes the session's remains."""
        self.closed = True
        self.folders.close()
        with self._lock:
            self._jobs.clear()
            threads = list(self._threads)
        if self._trim is not None:
            self._trim.cancel()
        until = time.monotonic() + END_S
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        self.restorer.close()

    def open(self, number: int) -> int:
        """A descriptor of that file, to read from; valid also when the file goes. OSError."""
        return os.open(self._paths[number], _O_READ)

    # --- effects ----------------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        kind = effect[0]
        if self.closed:
            return
        if kind == "spill":
            self._start(partial(self._write, effect[1], effect[2], self.folders.in_turn()))
        elif kind == "restore":
            self._restores.append(effect)
            self._reserve()
        else:
            assert kind == "unspill", effect
            self._start(partial(_unlink, self._paths.pop(effect[1])))

    def _to_restorer(self, message: Message) -> None:
        self.restorer.on_message(message)
        if isinstance(message, Freed) and self._trim is None and not self.closed:
            self._trim = self._call_later(IDLE_S, self._trim_idle)

    def _trim_idle(self) -> None:
        self._trim = None
        if not self.closed:
            due = self.restorer.trim_idle(self._now())
            if due is not None:
                self._trim = self._call_later(max(1.0, due - self._now()), self._trim_idle)
            self._settled()

    # --- threads ----------------------------------------------------------------------------------------

    def _start(self, job: Job) -> None:
        with self._lock:
            self._jobs.append(job)
            if len(self._threads) >= THREADS:
                return
            thread = threading.Thread(target=self._work, name="minray-disk", daemon=True)
            self._threads[thread] = None
        try:
            thread.start()
        except RuntimeError as error:  # no more threads: if none is there, this one does it
            with self._lock:
                del self._threads[thread]
                alone = not self._threads
            log.warning("no thread for the disk: %s", error)
            if alone:
                self._work()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._threads.pop(threading.current_thread(), None)
                    return
                job = self._jobs.popleft()
            job()

    def _say(self, call: Callable[[], None]) -> None:
        """From a thread: run it on the reactor's."""

        def run() -> None:
            if not self.closed:
                call()
                self._settled()

        self._call_soon(run)

    # --- writing ----------------------------------------------------------------------------------------

    def _write(self, number: int, objects: list[tuple[Any, ...]], folders: list[str]) -> None:
        """On a thread: all of them, into the first folder that takes them."""
        reasons = []
        for folder in folders:
            try:
                path = self._write_to(folder, number, objects)
            except (OSError, MemoryError) as error:
                reasons.append(f"{folder}: {error or 'no memory'}")
            else:
                self._say(partial(self._written, number, path))
                return
        self._say(partial(self._not_written, number, "; ".join(reasons)))

    def _write_to(self, folder: str, number: int, objects: list[tuple[Any, ...]]) -> str:
        fd, path = self.folders.create(folder, number, sum(one[4] for one in objects))
        try:
            try:
                self._write_all(fd, objects)
            finally:
                close(fd)  # which may be the first to say that there is no room (NFS)
        except BaseException:
            _unlink(path)
            raise
        return path

    def _write_all(self, fd: int, objects: list[tuple[Any, ...]]) -> None:
        maps: dict[str, SegmentMap] = {}
        try:
            for _, name, size, offset, length in objects:
                try:
                    if name not in maps:
                        maps[name] = self._store.segments.open(name, size)
                except SegmentGone:  # all that was in it is freed: nobody will read this part of the file
                    os.lseek(fd, length, os.SEEK_CUR)
                    continue
                view = maps[name].view(offset, length)
                done = 0
                while done < length:
                    if self.closed:
                        raise OSError(errno.ECANCELED, "the node ends")
                    done += write(fd, view[done : done + STEP])
                del view
        finally:
            for segment in maps.values():
                segment.close()

    def _written(self, number: int, path: str) -> None:
        self._paths[number] = path
        now = self._now()
        self._store.do(self._store.table.spilled(number, now), now)

    def _not_written(self, number: int, reason: str) -> None:
        log.warning("objects could not be written to disk: %s", reason)
        now = self._now()
        self._store.do(self._store.table.spill_failed(number, reason, now), now)

    # --- reading ----------------------------------------------------------------------------------------

    def _reserve(self) -> None:
        """Ask for rooms, in order, for as much as may be under way."""
        while self._restores and (not self._reading or self._reading + self._restores[0][3] <= READING):
            _, object_id, place, length = self._restores.popleft()
            if not self._store.table.is_read_from(object_id, place):  # it was freed meanwhile
                continue
            self._reading += length
            self.restorer.reserve(length, partial(self._reserved, object_id, place, length))

    def _reserved(
        self, object_id: bytes, place: tuple[int, int], length: int, room: Room | None, error: Exception | None
    ) -> None:
        if self.closed:
            return
        if room is None:
            self._reading -= length
            self._failed(object_id, f"there is no room to read it from disk: {error}", "full")
            self._reserve()
            return
        self._store.table.read_began()
        path = self._paths.get(place[0])
        if path is None:  # it was freed meanwhile
            self._ended(object_id, place, room, "its file is gone", False)
        else:
            self._start(partial(self._read, object_id, place, room, path))

    def _read(self, object_id: bytes, place: tuple[int, int], room: Room, path: str) -> None:
        """On a thread."""
        reason, full = "", False
        try:
            _read_into(room, path, place[1])
        except (OSError, MemoryError) as error:
            reason = f"it cannot be read from {path}: {error or 'no memory'}"
            full = isinstance(error, MemoryError) or error.errno in _NO_ROOM
        self._say(partial(self._ended, object_id, place, room, reason, full))

    def _ended(self, object_id: bytes, place: tuple[int, int], room: Room, reason: str, full: bool) -> None:
        self._reading -= room.size
        self._store.table.read_ended(self._now())
        if not reason and self._store.table.is_read_from(object_id, place):
            self.restorer.fill(room, object_id, b"")
        else:
            self.restorer.cancel(room)
            if reason and self._store.table.is_read_from(object_id, place):
                self._failed(object_id, reason, "full" if full else "lost")
        self._reserve()

    def _failed(self, object_id: bytes, reason: str, kind: str) -> None:
        now = self._now()
        self._store.do(self._store.table.restore_failed(object_id, reason, kind, now), now)

    def stats(self) -> dict[str, int]:
        """Counts, for diagnostics and tests."""
        return {"files": len(self._paths), "threads": len(self._threads), "restores": len(self._restores)}


def _read_into(room: Room, path: str, offset: int) -> None:
    with open(os.open(path, _O_READ), "rb", buffering=0) as file:
        file.seek(offset)
        scratch = memoryview(bytearray(min(SCRATCH, room.size)))
        at = 0
        while at < room.size:
            count = room.map.receive(room.offset + at, room.size - at, file.readinto, scratch)
            if not count:
                raise OSError(f"it ends {room.size - at} bytes too early")
            at += count


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as error:  # on Windows somebody may still read it: it goes with the session's folder
        log.warning("%s could not be removed: %s", path, error)
