"""Fixtures of the cluster's tests. Their Clusters report often and are declared dead soon: nothing here waits long."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import minray as ray
from minray.cluster_utils import Cluster
from minray.worker.tool import Tool
from tests.cluster.shell import Shell
from tests.e2e.support import Driver

QUICK = {"heartbeat_s": 0.2, "node_timeout_s": 1.5, "gcs_reconnect_s": 0.5, "prestart": False}
WAIT_S = 20.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These tests start minray themselves; on the other targets of the conformance suite they say nothing."""
    if os.environ.get("MINRAY_TEST_TARGET", "minray") == "minray":
        return
    for item in items:
        if Path(str(item.fspath)).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.skip(reason="only for minray's own processes"))


def eventually(condition: Callable[[], Any], what: str, limit: float = WAIT_S) -> Any:
    """Poll until it is true, and return what it is. For what other processes do."""
    deadline = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {limit} s"
        time.sleep(0.01)
    return value


@pytest.fixture
def make_cluster() -> Iterator[Callable[..., Cluster]]:
    """``make_cluster({…}, {…})``: a cluster of a head and one node per dict of arguments."""
    made: list[Cluster] = []

    def make(*nodes: dict[str, Any], head: dict[str, Any] | None = None, **settings: Any) -> Cluster:
        system = {**QUICK, **settings}
        cluster = Cluster(True, head_node_args={"_system_config": system, **(head or {})})
        made.append(cluster)
        for args in nodes:
            cluster.add_node(**args)
        return cluster

    yield make
    if ray.is_initialized():
        ray.shutdown()
    for cluster in made:
        cluster.shutdown()


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """``drive(program, …)`` starts a script (see tests/e2e)."""
    drivers: list[Driver] = []

    def start(program: str, **options: Any) -> Driver:
        drivers.append(Driver(tmp_path, program, **options))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.end()


@pytest.fixture
def shell() -> Iterator[Shell]:
    """A user's machine for commands."""
    made = Shell()
    yield made
    made.close()


def ask_node(cluster: Cluster, node: Any, method: str, *args: Any) -> Any:
    """A question to one node of the cluster."""
    with Tool(cluster._config, node._started.endpoint, node._started.token) as tool:
        return tool.ask(method, *args)


def objects_at(cluster: Cluster, node: Any) -> int:
    """How many shared objects that node has, copies of others' among them."""
    return int(ask_node(cluster, node, "stats")["store"]["objects"])


def alive(cluster: Cluster) -> set[str]:
    """The ids of the nodes that the head counts as alive."""
    assert cluster.head_node is not None
    return {node["NodeID"] for node in ask_node(cluster, cluster.head_node, "nodes") if node["Alive"]}
