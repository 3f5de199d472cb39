"""Rows about data that memory has no room for: three times the store's capacity goes through put, get, map and shuffle.

::

    put  ────▶ N blocks, 3 × the store ──▶ get: one after the other, every byte compared
                      ├──▶ map: a task for each, its result fetched and compared
                      └──▶ shuffle: each is split into PARTS, part k of all is merged ──▶ fetched and compared

They write gigabytes to the folder that ``--disk`` names, and run only with it. Each row has a session of its own
whose store holds 512 MiB (times ``--scale``), on both sides alike. A rate counts each byte of the data once, however
often it is written and read for that.

Invariant: a row has no figure unless everything came back as it went.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .row import Bench, Metric, RowList, Sample, SkipRow

rows = RowList()

STORE = 512 << 20  # bytes; at least LEAST
LEAST = 80 << 20  # Ray takes no less
TIMES = 3  # so much data as the store holds
BLOCKS = 64  # that fill it
PARTS = 32  # of a block in a shuffle


class Data:
    """Blocks of 64-bit numbers. They differ by their numbers, which stand at the beginning of each of their parts."""

    def __init__(self, bench: Bench) -> None:
        import numpy

        self.store = bench.size(STORE, least=LEAST)
        items = self.store // BLOCKS // 8 // PARTS * PARTS
        self.count = BLOCKS * TIMES
        self.base = numpy.random.default_rng(1).integers(0, 2**60, items)
        self.bytes = self.base.nbytes * self.count

    def block(self, number: int) -> Any:
        """The next one; the same memory each time."""
        self.base[:PARTS] = number
        return self.base

    def check(self, number: int, array: Any, plus: int = 0) -> None:
        """RuntimeError if that is not block ``number``, with ``plus`` added to everything in it."""
        right = len(array) == len(self.base) and (array[:PARTS] == number + plus).all()
        if not right or not (array[PARTS:] - plus == self.base[PARTS:]).all():
            raise RuntimeError(f"block {number} is not what it was")

    def check_part(self, number: int, array: Any) -> None:
        """RuntimeError if these are not parts ``number`` of all blocks, in order."""
        import numpy

        rows = array.reshape(self.count, -1)
        right = (rows[:, 0] == numpy.arange(self.count)).all()
        if not right or not (rows[:, 1:] == self.base[number::PARTS][1:]).all():
            raise RuntimeError(f"part {number} of the blocks is not what it was")


def _folder(bench: Bench) -> str:
    folder: str | None = bench.options.get("disk")
    if folder is None:
        raise SkipRow("it writes gigabytes: name a folder for them with --disk FOLDER")
    os.makedirs(folder, exist_ok=True)
    return folder


@contextmanager
def _session(bench: Bench, data: Data) -> Iterator[None]:
    """A runtime of two CPUs with that store, and workers that are up."""

    def nothing() -> None:
        return None

    ray: Any = bench.ray
    ray.init(num_cpus=2, object_store_memory=data.store, object_spilling_directory=_folder(bench))
    try:
        task = ray.remote(nothing)
        ray.get([task.remote() for _ in range(4)])
        yield
    finally:
        ray.shutdown()


def _fill(bench: Bench, data: Data) -> list[Any]:
    return [bench.ray.put(data.block(number)) for number in range(data.count)]


def _rate(bench: Bench, data: Data, begin: float) -> Sample:
    return Sample(data.bytes / 1e6 / (bench.clock() - begin), count=data.count)


@rows.add(
    "disk_get",
    Metric("disk_put", "put, three times the store", "MB/s"),
    Metric("disk_get", "get of all of that, one by one", "MB/s"),
    Metric("disk_file_write", "… as many bytes written to plain files", "MB/s"),
    Metric("disk_file_read", "… and read again", "MB/s"),
    session=False,
    writes=True,
)
def disk_get(bench: Bench) -> dict[str, Sample]:
    """Also what the folder's disk does without a runtime (mostly in the system's cache, for both)."""
    data = Data(bench)
    files = _plain_files(bench, data)
    with _session(bench, data):
        begin = bench.clock()
        blocks = _fill(bench, data)
        put = _rate(bench, data, begin)
        begin = bench.clock()
        for number, block in enumerate(blocks):
            data.check(number, bench.ray.get(block))
        return {"disk_put": put, "disk_get": _rate(bench, data, begin), **files}


@rows.add("disk_map", Metric("disk_map", "map over three times the store", "MB/s"), session=False, writes=True)
def disk_map(bench: Bench) -> Sample:
    """All tasks are submitted at once; the results, which together are as large, are fetched in order."""
    ray, data = bench.ray, Data(bench)

    @ray.remote
    def plus_one(array: Any) -> Any:
        return array + 1

    with _session(bench, data):
        blocks = _fill(bench, data)
        begin = bench.clock()
        results = [plus_one.remote(block) for block in blocks]
        for number, result in enumerate(results):
            data.check(number, ray.get(result), plus=1)
        return _rate(bench, data, begin)


@rows.add(
    "disk_shuffle", Metric("disk_shuffle", "shuffle of three times the store", "MB/s"), session=False, writes=True
)
def disk_shuffle(bench: Bench) -> Sample:
    """Every block is split, part k of all blocks goes to task k."""
    ray, data = bench.ray, Data(bench)
    parts = PARTS

    @ray.remote
    def split(array: Any) -> list[Any]:
        return [array[k::parts].copy() for k in range(parts)]

    @ray.remote
    def merge(*arrays: Any) -> Any:
        import numpy

        return numpy.concatenate(arrays)

    with _session(bench, data):
        blocks = _fill(bench, data)
        begin = bench.clock()
        pieces = [split.options(num_returns=parts).remote(block) for block in blocks]
        merged = [merge.remote(*(piece[k] for piece in pieces)) for k in range(parts)]
        del pieces
        for number, result in enumerate(merged):
            data.check_part(number, ray.get(result))
        return _rate(bench, data, begin)


def _plain_files(bench: Bench, data: Data) -> dict[str, Sample]:
    """What a loop over blocks does, without a runtime."""
    with tempfile.TemporaryDirectory(dir=_folder(bench)) as folder:
        begin = bench.clock()
        for number in range(data.count):
            with open(os.path.join(folder, str(number)), "wb", buffering=0) as file:
                _write(file, memoryview(data.block(number)).cast("B"))
        written = _rate(bench, data, begin)
        room = bytearray(data.base.nbytes)
        begin = bench.clock()
        for number in range(data.count):
            with open(os.path.join(folder, str(number)), "rb", buffering=0) as file:
                _read(file, memoryview(room))
        return {"disk_file_write": written, "disk_file_read": _rate(bench, data, begin)}


def _write(file: Any, view: memoryview) -> None:
    while view:
        view = view[file.write(view) :]


def _read(file: Any, view: memoryview) -> None:
    while view:
        view = view[file.readinto(view) :]
