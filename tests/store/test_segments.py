"""Segments: one contract for shared memory and mapped files; journal and sweep; writing warm and cold."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minray.store import mapping
from minray.store import segments as module
from minray.store.errors import SegmentGone, StoreError
from minray.store.journal import Journal
from minray.store.mapping import SegmentMap
from minray.store.segments import Segments, check_name, choose, from_spec, segment_name, sweep

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def name(segments: Segments) -> Any:
    made = f"mrt{os.urandom(5).hex()}-1"
    yield made
    segments.unlink(made)


# --- the contract ---------------------------------------------------------------------------------


def test_what_one_mapping_writes_another_reads(segments: Segments, name: str) -> None:
    segments.create(name, 256 * KIB)
    other = from_spec(segments.spec)
    writer = segments.open(name, 256 * KIB, writable=True)
    reader = other.open(name, 256 * KIB)
    assert writer.write(1000, b"hello") == 5
    assert bytes(reader.view(998, 9)) == b"\0\0hello\0\0"
    assert writer.close() and reader.close()
    other.close()


def test_another_process_reads_it(segments: Segments, name: str) -> None:
    segments.create(name, 64 * KIB)
    writer = segments.open(name, 64 * KIB, writable=True)
    writer.write(5, b"from the parent")
    code = (
        "import sys; from minray.store.segments import from_spec; s = from_spec(sys.argv[1]);"
        "m = s.open(sys.argv[2], 65536); print(bytes(m.view(5, 15)).decode());"
        "assert 'numpy' not in sys.modules and 'multiprocessing' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, segments.spec, name],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])},
    )
    assert done.stdout.strip() == "from the parent" and done.stderr == ""
    assert segments.list(name) == [name]  # the other process's end unlinked nothing
    writer.close()


def test_views_are_read_only_and_keep_the_mapping(segments: Segments, name: str) -> None:
    segments.create(name, 64 * KIB)
    writer = segments.open(name, 64 * KIB, writable=True)
    writer.write(0, bytes(range(256)))
    view = writer.view(0, 256)
    with pytest.raises(TypeError):
        view[0] = 1
    array = np.frombuffer(view, np.uint8)
    segments.unlink(name)
    assert writer.close() is False
    assert writer.close() is False
    assert array[255] == 255 and array.sum() == sum(range(256))
    del array, view
    gc.collect()
    assert writer.close() is True


def test_names(segments: Segments, name: str) -> None:
    segments.create(name, 1)
    with pytest.raises(FileExistsError):
        segments.create(name, 1)
    assert name in segments.list("mrt")
    assert segments.list("no-such-prefix") == []
    assert segments.unlink(name) is True
    assert segments.unlink(name) is False
    assert segments.list(name) == []
    with pytest.raises(SegmentGone, match="does not exist"):
        segments.open(name, 1)
    for bad in ("", "a/b", "..", "x" * 31, "ü"):
        with pytest.raises(ValueError, match="letters, digits"):
            segments.create(bad, 1)


def test_bad_sizes(segments: Segments, name: str) -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        segments.create(name, 0)
    segments.create(name, 4096)
    with pytest.raises(SegmentGone, match="4096 bytes, expected 8192"):
        segments.open(name, 8192)
    opened = segments.open(name, 4096, writable=True)
    for offset, length in ((-1, 1), (4096, 1), (0, 4097), (10, -1)):
        with pytest.raises(ValueError, match="outside"):
            opened.view(offset, length)
    with pytest.raises(ValueError, match="outside"):
        opened.write(4095, b"xx")
    opened.close()


def test_no_descriptor_is_left(segments: Segments, name: str) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("this system does not list a process's descriptors")
    segments.create(name, 64 * KIB)
    before = count()
    for writable in (False, True):
        opened = segments.open(name, 64 * KIB, writable=writable)
        opened.close()
    assert count() == before


def test_descriptors_are_not_inherited(segments: Segments, name: str) -> None:
    segments.create(name, 64 * KIB)
    opened = segments.open(name, 64 * KIB, writable=True)
    assert opened._fd < 0 or not os.get_inheritable(opened._fd)
    opened.close()


def test_free_bytes_is_a_number_or_unknown(segments: Segments, name: str) -> None:
    segments.create(name, 1)
    free = segments.free_bytes()
    assert free is None or free > 0


# --- writing --------------------------------------------------------------------------------------


def marks(opened: SegmentMap) -> tuple[int, int]:
    return opened._touched, opened._written


@pytest.mark.parametrize("populate", [True, False])
def test_cold_then_known_then_warm(
    segments: Segments, name: str, monkeypatch: pytest.MonkeyPatch, populate: bool
) -> None:
    monkeypatch.setattr(mapping, "_can_populate", populate and sys.platform == "linux")
    segments.create(name, 4 * MIB)
    opened = segments.open(name, 4 * MIB, writable=True)
    if opened._fd < 0:
        pytest.skip("this system cannot write segments through a descriptor")
    data = np.random.default_rng(1).integers(0, 255, 3 * MIB, dtype=np.uint8)
    opened.write(0, data)
    assert marks(opened) == (0, 3 * MIB)
    assert bytes(opened.view(0, 3 * MIB)) == data.tobytes()
    opened.write(0, data[::-1].copy())
    assert marks(opened) == (3 * MIB, 3 * MIB)
    assert bytes(opened.view(0, 3 * MIB)) == data[::-1].tobytes()
    # all three kinds of bytes in one write
    opened.write(2 * MIB + 5, b"x" * (2 * MIB - 5))
    assert marks(opened) == (3 * MIB, 4 * MIB)
    assert bytes(opened.view(2 * MIB, 2 * MIB)) == data[::-1].tobytes()[2 * MIB : 2 * MIB + 5] + b"x" * (
        2 * MIB - 5
    )
    opened.close()


def test_marks_advance_only_contiguously(segments: Segments, name: str) -> None:
    segments.create(name, MIB)
    opened = segments.open(name, MIB, writable=True)
    if opened._fd < 0:
        pytest.skip("this system cannot write segments through a descriptor")
    opened.write(64 * KIB, b"a" * 1000)
    assert opened._written == 0  # what is below may not exist
    opened.write(0, b"b" * 64 * KIB)
    assert opened._written == 64 * KIB
    opened.write(64 * KIB, b"c" * 1000)
    assert opened._written == 64 * KIB + 1024
    opened.close()


def test_a_full_disk_is_an_oserror_and_leaves_the_marks(
    segments: Segments, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments.create(name, MIB)
    opened = segments.open(name, MIB, writable=True)
    if opened._fd < 0:
        pytest.skip("this system cannot write segments through a descriptor")

    def full(fd: int, data: Any, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            opened.write(0, b"x" * 1000)
    assert marks(opened) == (0, 0)
    opened.close()


def test_short_writes_are_continued(segments: Segments, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    segments.create(name, MIB)
    opened = segments.open(name, MIB, writable=True)
    if opened._fd < 0:
        pytest.skip("this system cannot write segments through a descriptor")
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:100], offset))
    opened.write(10, b"0123456789" * 100)
    assert bytes(opened.view(10, 1000)) == b"0123456789" * 100
    opened.close()


@pytest.mark.parametrize("data", [np.arange(6.0).reshape(2, 3), b"", bytearray(b"abc"), np.array(3.5)])
def test_any_contiguous_buffer_can_be_written(segments: Segments, name: str, data: Any) -> None:
    segments.create(name, 4096)
    opened = segments.open(name, 4096, writable=True)
    length = opened.write(64, data)
    assert bytes(opened.view(64, length)) == bytes(memoryview(data).tobytes())
    opened.close()


# --- choosing, the journal, sweeping --------------------------------------------------------------


def test_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("file", str(tmp_path)).spec == f"file:{tmp_path / 'segments'}"
    with pytest.raises(ValueError, match="'auto', 'shm' or 'file', got 'disk'"):
        choose("disk", str(tmp_path))
    monkeypatch.setattr(module, "_shm_is_usable", lambda: False)
    assert choose("auto", str(tmp_path)).spec.startswith("file:")
    monkeypatch.setattr(module, "_shm_is_usable", lambda: True)
    assert choose("auto", str(tmp_path)).spec == "shm"


@pytest.mark.parametrize(("free", "expected"), [(None, False), (64 * MIB, False), (1 << 33, True)])
def test_a_small_or_missing_dev_shm_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, free: int | None, expected: bool
) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux has /dev/shm")
    monkeypatch.setattr(module, "shm_free", lambda root: free)
    assert module._shm_is_usable() is expected


def test_no_posixshmem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "_posixshmem", None)
    assert choose("auto", str(tmp_path)).spec.startswith("file:")
    with pytest.raises(StoreError, match="MINRAY_SEGMENTS=file"):
        choose("shm", str(tmp_path))


@pytest.mark.parametrize("spec", ["", "file:", "disk:/tmp", "shm:x"])
def test_bad_specs(spec: str) -> None:
    with pytest.raises(ValueError, match="not a description"):
        from_spec(spec)


def test_names_of_segments_fit_every_system() -> None:
    assert segment_name("mr0a1b2c3d-", 255) == "mr0a1b2c3d-ff"
    assert check_name("x" * 30) == "x" * 30
    with pytest.raises(ValueError, match="1 to 30"):
        segment_name("x" * 29, 256)


def test_sweep_removes_what_a_dead_session_left(segments: Segments, tmp_path: Path) -> None:
    names = [f"mrt{os.urandom(5).hex()}-{i}" for i in range(3)]
    for one in names:
        segments.create(one, 4096)
    segments.unlink(names[1])
    # killed: nothing was closed
    assert sweep(str(tmp_path)) == [names[0], names[2]]
    assert segments.list(names[0]) == segments.list(names[2]) == []
    assert sweep(str(tmp_path)) == []


def test_sweep_without_a_journal(tmp_path: Path) -> None:
    assert sweep(str(tmp_path)) == []
    assert sweep(str(tmp_path / "missing")) == []


def test_the_name_is_journalled_before_the_segment_exists(
    segments: Segments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(name: str, flags: int) -> int:
        seen.append(Journal.read(str(tmp_path)))
        raise OSError("stop here")

    monkeypatch.setattr(segments, "_open_fd", look)
    with pytest.raises(OSError, match="stop here"):
        segments.create("mrt-x", 10)
    assert seen == [(segments.spec, ["mrt-x"])]


def test_an_incomplete_last_line_is_ignored(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), "shm")
    journal.add("one")
    journal.close()
    with open(tmp_path / "segments.journal", "ab") as file:
        file.write(b"+two\n+thr")
    assert Journal.read(str(tmp_path)) == ("shm", ["one", "two"])
    again = Journal(str(tmp_path), "shm")  # goes on with what is there
    again.remove("one")
    again.close()
    assert Journal.read(str(tmp_path)) == ("shm", ["two"])


def test_the_journal_is_rewritten_when_most_of_it_is_dead(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), "shm")
    journal.add("stays")
    for i in range(3000):
        journal.add(f"n{i}")
        journal.remove(f"n{i}")
    journal.close()
    assert Journal.read(str(tmp_path)) == ("shm", ["stays"])
    assert os.path.getsize(tmp_path / "segments.journal") < 30_000


def test_a_foreign_file_is_not_a_journal(tmp_path: Path) -> None:
    (tmp_path / "segments.journal").write_text("something else\n")
    with pytest.raises(ValueError, match="not a journal"):
        Journal.read(str(tmp_path))
