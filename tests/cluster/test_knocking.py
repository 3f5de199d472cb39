"""Strangers at all ports of a cluster at work: garbage, half messages, slow ones, and floods of connections. Work goes
on, newcomers who know the token get in, and nothing of it stays."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import minray as ray
from tests.cluster.conftest import eventually
from tests.cluster.test_tls import settings, tcp_ports
from tests.e2e.support import ROOT
from tests.wire.certificates import make_authority, make_certificate

COUNT = 1500  # connections to each port
ROUNDS = 20
GROWTH = 48 * 1024 * 1024  # bytes: 256 strangers, with TLS, and the allocator's leftovers
SIZE = 2_000_000


@ray.remote
def double(value):
    return value + value


@ray.remote(num_cpus=0, resources={"there": 1})
class Counter:
    def __init__(self):
        self.sum = 0

    def add(self, number):
        self.sum += number
        return self.sum


class Flood:
    """See flood.py."""

    def __init__(self, ports: set[tuple[str, int]]) -> None:
        command = [sys.executable, "-m", "tests.cluster.flood", str(COUNT), *(f"{host}:{port}" for host, port in ports)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)
        self.knocked = threading.Event()
        self.said = ""
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline().strip()
        self.knocked.set()

    def end(self) -> None:
        self.process.communicate()
        self._thread.join()


@contextlib.contextmanager
def flooded(ports: set[tuple[str, int]]) -> Iterator[Flood]:
    flood = Flood(ports)
    try:
        yield flood
    finally:
        flood.end()


def work(number: int, counter) -> None:
    """A round of tasks, calls and objects, here and there and between. ``number``: how many rounds there were."""
    byte = bytes([number % 256])
    spread = [double.options(resources={"there": 0.1} if i % 2 else {}).remote(i) for i in range(40)]
    sums = [counter.add.remote(1) for _ in range(40)]
    big = double.options(resources={"there": 0.1}).remote(byte * SIZE)
    assert ray.get(spread) == [2 * i for i in range(40)]
    assert ray.get(sums) == list(range(40 * number + 1, 40 * number + 41))
    assert ray.get(big) == byte * (2 * SIZE)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_work_goes_on_while_strangers_knock(make_cluster, tmp_path, tls):
    files = {}
    if tls:
        make_authority(tmp_path, "ours")
        files = settings(make_certificate(tmp_path, "node", "ours"))
    cluster = make_cluster(
        {"resources": {"there": 2}, "num_cpus": 2}, node_timeout_s=20.0, gcs_reconnect_s=20.0, handshake_s=5.0, **files
    )
    cluster.connect()
    counter = Counter.remote()
    work(0, counter)
    nodes = cluster.list_all_nodes()
    daemons = [psutil.Process(node.daemon_pid) for node in nodes]
    before = [(daemon.memory_info().rss, daemon.num_fds()) for daemon in daemons]
    ports = tcp_ports()
    assert len(ports) >= 5  # two nodes, two workers, the driver

    with flooded(ports) as flood:
        number = 1
        while number < ROUNDS or not flood.knocked.is_set():
            work(number, counter)
            number += 1
            if number == 3:  # a node that knows the token
                late = cluster.add_node(resources={"late": 1})
                assert ray.get(double.options(resources={"late": 1}).remote(4)) == 8
                cluster.remove_node(late)
        assert flood.said == f"knocked {COUNT}"
        ray.shutdown()
        cluster.connect()  # and a driver
        work(0, Counter.remote())
        # Those who said half of something and hold on are cut off, at the latest after handshake_s.
        for daemon, (_, fds) in zip(daemons, before, strict=True):
            eventually(lambda: daemon.num_fds() <= fds + 20, f"the strangers are gone from {daemon}")  # noqa: B023

    for node, daemon, (rss, _) in zip(nodes, daemons, before, strict=True):
        assert node.alive() and daemon.memory_info().rss <= rss + GROWTH
        log = Path(node.session_dir, "logs", "daemon.log").read_text()
        assert "refused 127.0.0.1:" in log and log.count("\n") < 100 and "Traceback" not in log
