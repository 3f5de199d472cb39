"""What this machine gives without any runtime: socket round trips, memory copies, standard pools.

A runtime can't be faster than its floor: one synchronous task costs at least one round trip between two
processes, one put at least one copy. The pools of the standard library are the yardstick that every user
has at hand. Floors run in a peer of their own, with the same clock and windows as the rows.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

from .row import Bench, Metric, RowList, Sample, SkipRow

rows = RowList()

_MESSAGE = b"x" * 64

# The other end of a copy: sends so many bytes of warm memory for every byte that it is sent.
_SOURCE = """\
import socket, sys
port, size = map(int, sys.argv[1:])
data = memoryview(bytearray(b"x") * size)
with socket.create_connection(("127.0.0.1", port)) as peer:
    while peer.recv(1):
        peer.sendall(data)
"""

# The other end: connects back over TCP, or serves the descriptor that it inherited.
_ECHO = """\
import socket, sys
kind, value = sys.argv[1:]
if kind == "tcp":
    peer = socket.create_connection(("127.0.0.1", int(value)))
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
else:
    peer = socket.socket(fileno=int(value))
while True:
    data = peer.recv(65536)
    if not data:
        break
    peer.sendall(data)
"""


@contextmanager
def _unix_peer() -> Iterator[socket.socket]:
    if not hasattr(socket, "AF_UNIX"):
        raise SkipRow("no unix sockets here")
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", _ECHO, "unix", str(theirs.fileno())]
    with theirs:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    with process, ours:
        yield ours
        ours.shutdown(socket.SHUT_WR)


@contextmanager
def _tcp_peer() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        process = subprocess.Popen([sys.executable, "-c", _ECHO, "tcp", str(port)])
        server.settimeout(30)
        ours, _ = server.accept()
    ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with process, ours:
        yield ours
        ours.shutdown(socket.SHUT_WR)


def _round_trips(bench: Bench, peer: socket.socket, spin: bool) -> Sample:
    """64 bytes there and back; the waiter sleeps in the kernel, or spins on a non-blocking socket."""
    peer.setblocking(not spin)

    def sleeping() -> None:
        peer.sendall(_MESSAGE)
        peer.recv(65536)

    def spinning() -> None:
        peer.send(_MESSAGE)
        while True:
            try:
                peer.recv(65536)
            except BlockingIOError:
                continue
            return

    try:
        return bench.rate(spinning if spin else sleeping)
    finally:
        peer.setblocking(True)


@rows.add("unix_round_trip", "unix socket round trip, sleeping", session=False)
def unix_round_trip(bench: Bench) -> Sample:
    """Two processes, one unix socket, blocking reads."""
    with _unix_peer() as peer:
        return _round_trips(bench, peer, spin=False)


@rows.add("unix_spinning", "unix socket round trip, waiter spins", session=False)
def unix_spinning(bench: Bench) -> Sample:
    """The same; the one who waits polls instead of sleeping."""
    with _unix_peer() as peer:
        return _round_trips(bench, peer, spin=True)


@rows.add("tcp_round_trip", "TCP loopback round trip, sleeping", session=False)
def tcp_round_trip(bench: Bench) -> Sample:
    """Two processes, one loopback connection, blocking reads."""
    with _tcp_peer() as peer:
        return _round_trips(bench, peer, spin=False)


@rows.add("tcp_spinning", "TCP loopback round trip, waiter spins", session=False)
def tcp_spinning(bench: Bench) -> Sample:
    """The same; the one who waits polls instead of sleeping."""
    with _tcp_peer() as peer:
        return _round_trips(bench, peer, spin=True)


@rows.add("memcpy", Metric("memcpy", "memory copy, warm", "GB/s"), session=False)
def memcpy(bench: Bench) -> Sample:
    """One array copied over another, both touched before."""
    import numpy

    source = numpy.ones(bench.size(100 * 1024 * 1024), dtype=numpy.int64)
    target = numpy.zeros_like(source)
    return bench.rate(lambda: numpy.copyto(target, source), source.nbytes / 1e9)


@rows.add("memcpy_fresh", Metric("memcpy_fresh", "memory copy into fresh memory", "GB/s"), session=False)
def memcpy_fresh(bench: Bench) -> Sample:
    """The same into a new mapping each time: every page is a fault first."""
    import mmap

    import numpy

    source = numpy.ones(bench.size(100 * 1024 * 1024), dtype=numpy.int64)

    def copy() -> None:
        with mmap.mmap(-1, source.nbytes) as mapping:
            target = numpy.frombuffer(mapping, dtype=numpy.int64)
            numpy.copyto(target, source)
            del target  # a mapping with a live view can't be closed

    return bench.rate(copy, source.nbytes / 1e9)


@contextmanager
def raw_copies(size: int) -> Iterator[Callable[[], float]]:
    """A function that copies ``size`` bytes of another process to this one over a loopback connection, between
    buffers that both are warm, and says how many seconds that took."""
    target = memoryview(bytearray(b"x") * size)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        process = subprocess.Popen([sys.executable, "-c", _SOURCE, str(port), str(size)])
        server.settimeout(30)
        peer, _ = server.accept()

    def copy() -> float:
        begin, at = time.perf_counter(), 0
        peer.sendall(b"x")
        while at < size:
            count = peer.recv_into(target[at:])
            if not count:
                raise ConnectionError("the other process has ended")
            at += count
        return time.perf_counter() - begin

    with process, peer:
        yield copy
        peer.shutdown(socket.SHUT_WR)


@rows.add("tcp_copy", Metric("tcp_copy", "TCP loopback copy of 1 GB, warm", "GB/s"), session=False)
def tcp_copy(bench: Bench) -> Sample:
    """From one process's buffer into another's."""
    size = bench.size(10**9)
    with raw_copies(size) as copy:
        return bench.rate(copy, size / 1e9)


def _context() -> multiprocessing.context.BaseContext:
    """Forking where it exists: the quickest the standard library offers. This process has no threads."""
    return multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)


def _processes() -> int:
    return os.cpu_count() or 1


@rows.add("executor_sync", "ProcessPoolExecutor, submit and result", session=False)
def executor_sync(bench: Bench) -> Sample:
    """One call at a time."""
    with ProcessPoolExecutor(_processes(), mp_context=_context()) as pool:
        return bench.rate(lambda: pool.submit(abs, 1).result())


@rows.add("executor_async", "ProcessPoolExecutor, 1,000 at once", session=False)
def executor_async(bench: Bench) -> Sample:
    """A thousand calls submitted, then all results; per call."""
    count = bench.size(1000)

    def call() -> None:
        for future in [pool.submit(abs, 1) for _ in range(count)]:
            future.result()

    with ProcessPoolExecutor(_processes(), mp_context=_context()) as pool:
        return bench.rate(call, count)


@rows.add("pool_apply", "multiprocessing.Pool, apply", session=False)
def pool_apply(bench: Bench) -> Sample:
    """One call at a time."""
    with _context().Pool(_processes()) as pool:
        return bench.rate(lambda: pool.apply(abs, (1,)))


@rows.add("pool_apply_async", "multiprocessing.Pool, apply_async, 1,000 at once", session=False)
def pool_apply_async(bench: Bench) -> Sample:
    """A thousand calls submitted, then all results; per call."""
    count = bench.size(1000)

    def call() -> None:
        for result in [pool.apply_async(abs, (1,)) for _ in range(count)]:
            result.get()

    with _context().Pool(_processes()) as pool:
        return bench.rate(call, count)


@rows.add("pool_map", "multiprocessing.Pool, map in chunks of 1", session=False)
def pool_map(bench: Bench) -> Sample:
    """A thousand items in one map, each a message of its own; per item."""
    items = list(range(bench.size(1000)))
    with _context().Pool(_processes()) as pool:
        return bench.rate(lambda: pool.map(abs, items, chunksize=1), len(items))
