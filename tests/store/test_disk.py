"""Files for what memory has no room for: real threads, real files, a full disk, broken files, what is left behind."""

from __future__ import annotations

import errno
import os
import queue
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minray.store import disk as disk_module
from minray.store import spill_folders
from minray.store.disk import Disk
from minray.store.holds import Gone, Hold
from minray.store.remains import remove_session
from minray.store.segments import Segments, choose
from minray.store.spill_folders import SpillFolders
from tests.store.support import MIB, NODE, World, object_id, pattern

LIMIT_S = 30.0


class OnDisk(World):
    """A world whose disk is the real one. Its threads' news are taken like messages."""

    def __init__(self, segments: Segments, session: Path, setting: str | None = None, **options: Any) -> None:
        super().__init__(segments, **{"capacity": 4 * MIB, "grace_s": 1.0, **options})
        self.news: queue.Queue[Callable[[], None]] = queue.Queue()
        self.session = session
        self.files = SpillFolders(str(session), "test", setting, full_share=1.0)
        self.real = Disk(
            self.authority,
            self.files,
            node_id=NODE,
            call_soon=self.news.put,
            call_later=lambda seconds, call: None,
            now=self.clock.monotonic,
        )

    def deliver(self) -> bool:
        if super().deliver():
            return True
        until = time.monotonic() + LIMIT_S
        while self.real._threads or not self.news.empty():
            assert time.monotonic() < until, "a thread of the disk does not end"
            try:
                news = self.news.get(timeout=0.01)
            except queue.Empty:  # a thread that has nothing to say, as after removing a file
                continue
            news()
            return True
        return False

    def put(self, client: Any, number: int, size: int = MIB) -> tuple[bytes, Any]:
        oid = object_id(number, client._worker_id)
        return oid, client.write(size, [(0, pattern(number, size))], oid)

    def read(self, client: Any, number: int, what: tuple[bytes, Any], size: int = MIB) -> None:
        (held,) = client.acquire([what])
        assert isinstance(held, Hold), held
        assert held.view == pattern(number, size)
        held.release()
        client.drain()

    def paths(self) -> list[str]:
        return sorted(os.path.join(f, n) for f in self.files.paths if os.path.isdir(f) for n in os.listdir(f))

    def close(self) -> None:
        self.real.close()
        super().close()


@pytest.fixture
def make(segments: Segments, tmp_path: Path) -> Iterator[Callable[..., OnDisk]]:
    made: list[OnDisk] = []

    def world(**options: Any) -> OnDisk:
        made.append(OnDisk(segments, tmp_path, **options))
        return made[-1]

    yield world
    for one in made:
        one.close()


def test_three_times_the_capacity_goes_and_comes_back(make: Callable[..., OnDisk], tmp_path: Path) -> None:
    world = make()
    client = world.client("a")
    made = [world.put(client, n, 300_000) for n in range(42)]
    for n, what in enumerate(made):
        world.read(client, n, what, 300_000)
    world.settle()
    world.check()
    stats = world.table.stats()
    assert stats.spilled_bytes > 8 * MIB and stats.restored_objects > 20
    folder = tmp_path / "spill"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(os.stat(path).st_mode) for path in world.paths()} == {0o600}
    assert len(world.paths()) < stats.spilled_objects  # fused
    client.free(made)
    world.settle()
    assert world.paths() == [] and world.real.stats() == {"files": 0, "threads": 0, "restores": 0}


def test_folders_take_turns_and_one_that_is_full_is_left_out(
    make: Callable[..., OnDisk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    world = make(setting=os.pathsep.join([str(one), str(two)]))
    client = world.client("a")
    made = [world.put(client, n) for n in range(12)]
    assert [len(os.listdir(folder)) > 0 for folder in world.files.paths] == [True, True]
    real = os.write

    def full(fd: int, data: Any) -> int:
        if str(one) in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("whose descriptor it is can be asked on Linux only")
    monkeypatch.setattr(disk_module, "write", full)
    before = len(os.listdir(world.files.paths[0]))
    made += [world.put(client, n) for n in range(12, 24)]
    assert len(os.listdir(world.files.paths[0])) == before
    for n, what in enumerate(made):
        world.read(client, n, what)


def test_a_full_disk_loses_nothing_and_the_store_goes_on(
    make: Callable[..., OnDisk], monkeypatch: pytest.MonkeyPatch
) -> None:
    from minray.store.errors import StoreFull

    world = make()
    client = world.client("a")
    with monkeypatch.context() as patch:

        def full(fd: int, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(disk_module, "write", full)
        made = []
        with pytest.raises(StoreFull, match=r"moved to disk.*No space left") as caught:
            while True:
                made.append(world.put(client, len(made)))
        assert caught.value.info["disk_error"]
        assert world.paths() == []  # half a file is no file
        for n, what in enumerate(made):
            world.read(client, n, what)
    made.append(world.put(client, len(made)))  # there is room again
    for n, what in enumerate(made):
        world.read(client, n, what)
    assert world.table.stats().disk_error == ""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("when", ["write", "close"])
def test_a_disk_that_fails_in_the_middle(
    make: Callable[..., OnDisk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, when: str
) -> None:
    """One folder: the other one takes the file. Both: who asks hears it, of each folder; then there is room again."""
    from minray.store.errors import StoreFull

    one, two = tmp_path / "one", tmp_path / "two"
    world = make(setting=os.pathsep.join([str(one), str(two)]))
    client = world.client("a")
    broken = [str(one)]
    begun: list[int] = []
    real_write, real_close = os.write, os.close

    def fails(fd: int) -> bool:
        path = os.path.realpath(f"/proc/self/fd/{fd}")
        return any(path.startswith(folder) for folder in broken)

    def write(fd: int, data: Any) -> int:
        if when == "write" and fails(fd) and fd in begun:
            begun.remove(fd)
            raise OSError(number, os.strerror(number))
        begun.append(fd)
        return real_write(fd, data[: 100 * 1000])

    def close(fd: int) -> None:
        failed = when == "close" and fails(fd)
        real_close(fd)
        if failed:
            raise OSError(number, os.strerror(number))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("whose descriptor it is can be asked on Linux only")
    monkeypatch.setattr(disk_module, "write", write)
    monkeypatch.setattr(disk_module, "close", close)
    made = [world.put(client, n) for n in range(8)]
    assert [len(os.listdir(folder)) for folder in world.files.paths] == [0, len(world.paths())]  # no half of a file
    assert not world.table.stats().disk_error
    broken.append(str(two))
    with pytest.raises(StoreFull) as caught:
        while True:
            made.append(world.put(client, len(made)))
    text = str(caught.value)
    assert text.count(os.strerror(number)) == 2 and "MINRAY_SPILL_DIRS" in text
    assert all(f"{folder}: [Errno {number}]" in text for folder in world.files.paths)
    for n, what in enumerate(made):  # what is there can be read
        world.read(client, n, what)
    broken.clear()
    more = [world.put(client, n) for n in range(len(made), len(made) + 8)]
    for n, what in enumerate([*made, *more]):
        world.read(client, n, what)
    client.free([*made, *more])
    world.settle()
    assert world.paths() == []


def slow_disk(monkeypatch: pytest.MonkeyPatch) -> queue.Queue[None]:
    """Each write waits for an item."""
    go = queue.Queue[None]()
    real = os.write

    def slow(fd: int, data: Any) -> int:
        go.get(timeout=LIMIT_S)
        return real(fd, data)

    monkeypatch.setattr(disk_module, "write", slow)
    return go


def test_what_is_freed_while_its_file_is_written_leaves_a_hole(
    make: Callable[..., OnDisk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its segment may be gone when its turn comes. That is no failure of the disk."""
    world = make()
    client, other = world.client("a"), world.client("b")
    made = [world.put(client, n) for n in range(4)]
    client.report(made)
    go = slow_disk(monkeypatch)
    failed: list[str] = []
    monkeypatch.setattr(world.table, "spill_failed", lambda number, reason, now: failed.append(reason))
    rooms: list[Any] = []
    other.reserve(3 * MIB, lambda room, error: rooms.append(room))
    deliver_messages(world)
    assert len(world.table._spills.files) == 1 and world.table._spills.writing == 3 * MIB
    names = world.segments.list(world.table._prefix)
    client.free(made[1:2])
    deliver_messages(world)
    assert len(world.segments.list(world.table._prefix)) < len(names)  # unlinked, before it is written
    for _ in range(10):
        go.put(None)
    world.settle()
    assert rooms and rooms[0] is not None and not failed
    other.cancel(rooms[0])
    for n in (0, 2, 3):
        world.read(client, n, made[n])


def deliver_messages(world: OnDisk) -> None:
    """Not what the disk's threads say."""
    while World.deliver(world):
        pass


def test_a_slow_disk_serves_in_order_and_lets_nobody_time_out(
    make: Callable[..., OnDisk], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make()  # whose grace is a second
    client = world.client("a")
    made = [world.put(client, n) for n in range(4)]
    real, minutes = os.write, []

    def slow(fd: int, data: Any) -> int:
        """Takes a minute of the store's time."""
        passed = threading.Event()

        def minute() -> None:
            for _ in range(60):
                world.advance_to(world.clock.monotonic() + 1.0)
            minutes.append(1)
            passed.set()

        world.news.put(minute)
        assert passed.wait(LIMIT_S)
        return real(fd, data)

    monkeypatch.setattr(disk_module, "write", slow)
    served: list[tuple[Any, Any]] = []
    others = [world.client(f"w{n}") for n in range(3)]
    for other in others:
        other.reserve(MIB, lambda room, error, other=other: served.append((other, room)))
    while len(served) < 3:
        assert world.deliver()
    assert [other for other, room in served if room is not None] == others and len(minutes) > 1
    for other, room in served:
        other.cancel(room)
    for n, what in enumerate(made):
        world.read(client, n, what)


def test_a_disk_is_not_filled_to_the_last_byte(tmp_path: Path) -> None:
    folders = SpillFolders(str(tmp_path), "test", None, full_share=1e-9)
    with pytest.raises(OSError, match="MINRAY_SPILL_DISK_SHARE"):
        folders.create(folders.in_turn()[0], 1, 100)


@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_a_file_that_is_damaged_is_a_lost_object(make: Callable[..., OnDisk], damage: str) -> None:
    world = make()
    client = world.client("a")
    made = [world.put(client, n) for n in range(8)]
    for path in world.paths():
        if damage == "removed":
            os.unlink(path)
        else:
            os.truncate(path, 100)
    (held,) = client.acquire(made[:1])
    assert isinstance(held, Gone) and held.kind == "lost" and "cannot be read from" in held.reason
    world.read(client, 7, made[7])
    client.free(made)
    world.settle()
    assert world.table.stats().objects == 0


def test_nothing_waits_for_a_slow_disk_but_who_needs_it(
    make: Callable[..., OnDisk], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make()
    client, other = world.client("a"), world.client("b")
    first = world.put(other, 100, 1000)
    other.report([first])
    go = slow_disk(monkeypatch)
    made = [world.put(client, n) for n in range(2)]
    answers: list[Any] = []
    client.reserve(3 * MIB, lambda room, error: answers.append(room))
    while World.deliver(world):
        pass
    assert not answers and len(world.real._threads) >= 1
    done: list[Any] = []
    client.acquire_async([first], lambda held, error: done.extend(held))
    while World.deliver(world):
        pass
    assert isinstance(done[0], Hold) and not answers  # answered while the disk is at it
    for _ in range(20):
        go.put(None)
    world.settle()
    assert answers and answers[0] is not None
    client.cancel(answers[0])
    done[0].release()
    for n, what in enumerate(made):
        world.read(client, n, what)


# --- folders ----------------------------------------------------------------------------------------


def test_a_folder_that_was_named_gets_one_of_its_own_which_goes_with_the_session(tmp_path: Path) -> None:
    session, named = tmp_path / "session", tmp_path / "named"
    session.mkdir()
    (tmp_path / "precious").mkdir()
    folders = SpillFolders(str(session), "abc", str(named), full_share=1.0)
    (path,) = folders.paths
    assert path == str(named / "minray_spilled_abc") and stat.S_IMODE(os.stat(path).st_mode) == 0o700
    fd, _ = folders.create(path, 1, 10)
    os.close(fd)
    with open(session / spill_folders.LIST, "a") as file:
        file.write(f"{tmp_path / 'precious'}\nrelative/minray_spilled_x\n")
    remove_session(str(session))
    assert not session.exists() and os.listdir(named) == [] and (tmp_path / "precious").exists()


def test_a_link_in_the_list_is_not_followed(tmp_path: Path) -> None:
    session, precious = tmp_path / "session", tmp_path / "precious"
    session.mkdir()
    precious.mkdir()
    (precious / "file").touch()
    link = tmp_path / "minray_spilled_abc"
    link.symlink_to(precious)
    (session / spill_folders.LIST).write_text(f"{link}\n")
    remove_session(str(session))
    assert (precious / "file").exists()


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, problem in [
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "below", "lies below a file"),
        ("/proc/nowhere", "cannot be written to"),
    ]:
        with pytest.raises(ValueError, match=problem) as caught:
            spill_folders.check(str(folder))
        assert repr(str(folder)) in str(caught.value) and "object_spilling_directory" in str(caught.value)
    spill_folders.check(os.pathsep.join([str(tmp_path / "a"), str(tmp_path / "b")]))
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "file"] and not os.listdir(tmp_path / "a")
    spill_folders.check(None)


def test_threads_end_with_their_work(make: Callable[..., OnDisk]) -> None:
    world = make()
    client = world.client("a")
    made = [world.put(client, n) for n in range(12)]
    world.settle()
    assert not world.real._threads
    assert len(made) == 12


def test_sessions_can_be_swept_from_outside(tmp_path: Path) -> None:
    """The segments' journal and the list of folders are both read by whoever comes later."""
    session = tmp_path / "session"
    session.mkdir()
    made = choose("file", str(session))
    world = OnDisk(made, session, setting=str(tmp_path / "named"))
    client = world.client("a")
    for n in range(8):
        world.put(client, n)
    assert world.paths()
    remove_session(str(session))  # as if all its processes had been killed
    assert os.listdir(tmp_path / "named") == [] and not session.exists()
    world.close()
