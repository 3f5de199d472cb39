"""A node in a cluster: what it reports, whom it knows, jobs and processes of other nodes. As in test_service."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from minray.node.demands import Demand, DemandQueue
from minray.node.membership import COUNTED, load_of
from minray.wire.messages import (
    ClusterView,
    CreateActor,
    Died,
    Introduce,
    LeaseGrant,
    NodeGone,
    NodeReport,
    Registered,
    Reply,
    Request,
    Watch,
)

from .processes import wait_for
from .support import CLASS, CPU1, DRIVER, JOB, NODE, OTHER_JOB, actor_order
from .test_service import Bench, demand

OTHER = b"o" * 28
FAR = b"f" * 28


class Clustered(Bench):
    more: ClassVar[dict[str, Any]] = {"clustered": True, "gcs_endpoint": "tcp:9.9.9.9:1", "is_head": False}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Clustered]:
    made = Clustered(tmp_path, prestart=False)
    yield made
    made.end()
    made.close()


def test_a_node_that_is_not_the_head(bench: Clustered) -> None:
    assert "node:__internal_head__" not in bench.node.totals
    assert bench.driver().take(Registered).gcs_endpoint == "tcp:9.9.9.9:1"
    assert bench.node.table._last_no > 1 << 31  # lease numbers are unique in the cluster


def test_it_reports_at_once_on_change_and_regularly(bench: Clustered) -> None:
    first = bench.told_gcs(NodeReport)
    assert first.available == first.totals and first.load == 0 and first.waiting == []
    driver = bench.driver()
    driver.take(Registered)
    driver.send(demand(resources={"disk": 10_000}))
    bench.worker(1).take(Registered)
    driver.take(LeaseGrant)
    changed = wait_for(lambda: next((m for m in reports(bench) if m.available != first.available), None))
    assert changed.available["disk"] == 20_000
    count = len(reports(bench))
    wait_for(lambda: len(reports(bench)) > count)  # nothing changes, and it goes on


def reports(bench: Clustered) -> list[NodeReport]:
    return [message for message in bench.to_gcs if isinstance(message, NodeReport)]


def test_it_reports_what_waits(bench: Clustered) -> None:
    driver = bench.driver()
    driver.take(Registered)
    driver.send(demand(key=1, wanted=5, resources={"disk": 30_000}), demand(key=2, resources={"GPU": 10_000}))
    bench.worker(1).take(Registered)
    report = wait_for(lambda: next((m for m in reports(bench) if len(m.waiting) == 2), None))
    assert report.load in (4, 5)
    assert {(tuple(request.items())) for _, request, _ in report.waiting} == {
        (("disk", 30_000),), (("GPU", 10_000),)
    }  # fmt: skip


def test_the_load_of_a_long_queue_is_estimated() -> None:
    queue = DemandQueue()
    for key in range(COUNTED + 10):
        queue.add(Demand(DRIVER, key, CLASS, 3, CPU1, 0, "task f"))
    assert load_of(queue) == 3 * COUNTED + 10


def news(node_id: bytes = OTHER) -> ClusterView:
    return ClusterView([(node_id, "tcp:o:1", "o", {"CPU": 80_000}, {"CPU": 80_000}, {}, 0)], [])


def test_the_view(bench: Clustered) -> None:
    bench.do(lambda: bench.node.on_gcs(news()))
    bench.do(lambda: bench.node.on_gcs(news(NODE)))
    assert set(bench.node.view.nodes) == {OTHER}
    assert bench.node.view.free({"CPU": 50_000}) is not None and not bench.node.view.feasible({"CPU": 90_000})
    bench.node.view.book(OTHER, {"CPU": 20_000}, 2)
    assert bench.node.view.free({"CPU": 50_000}) is None
    assert "CPU: 8" in bench.node.view.describe_totals()
    bench.do(lambda: bench.node.on_gcs(ClusterView([], [OTHER])))
    assert not bench.node.view.nodes


def test_the_processes_of_a_node_hear_who_is_gone(bench: Clustered) -> None:
    driver = bench.driver()
    driver.take(Registered)
    driver.send(demand())
    worker = bench.worker(1)
    worker.take(Registered)
    bench.do(lambda: bench.node.on_gcs(news()))
    bench.do(lambda: bench.node.on_gcs(ClusterView([], [OTHER])))
    assert driver.take(NodeGone) == worker.take(NodeGone) == NodeGone(OTHER)


def test_a_death_on_another_node(bench: Clustered) -> None:
    driver = bench.driver()
    driver.take(Registered)
    driver.send(Watch(FAR, OTHER), Watch(FAR, OTHER))
    assert bench.told_gcs(Watch) == Watch(FAR, OTHER)
    died = Died(FAR, -1, -1, -1, {"text": "exit code 1"})
    bench.do(lambda: bench.node.on_gcs(died))
    assert driver.take(Died) == died
    assert not [message for message in bench.to_gcs if isinstance(message, Watch)]


def test_other_nodes_ask(bench: Clustered) -> None:
    driver = bench.driver()
    driver.take(Registered)
    bench.do(lambda: bench.node.on_gcs(Watch(FAR, NODE)))
    assert bench.told_gcs(Died).cause["unknown"]
    bench.do(lambda: bench.node.on_gcs(Watch(driver.hello.worker_id, NODE)))
    assert not [message for message in bench.to_gcs if isinstance(message, Died)]
    driver.conn.close()
    assert bench.told_gcs(Died).worker_id == driver.hello.worker_id


def test_an_actor_of_a_job_whose_driver_is_elsewhere(bench: Clustered) -> None:
    config = {"sys_path": ["/far"], "cwd": "/", "namespace": "n", "env_vars": {"A": "1", "B": "1"}}
    config["driver"] = (OTHER, FAR, "tcp:o:1")
    order = actor_order(
        1,
        actor_id=b"a" * 12 + OTHER_JOB,
        job_id=OTHER_JOB,
        owner=(OTHER, FAR, "tcp:o:1"),
        env_vars={"B": "2"},
    )
    bench.do(lambda: bench.node.on_gcs(Introduce(OTHER_JOB, config)))
    bench.do(lambda: bench.node.on_gcs(Introduce(OTHER_JOB, config)))
    bench.do(lambda: bench.node.on_gcs(order))
    started = wait_for(lambda: bench.launcher.orders.get(1))
    assert started["sys_path"] == ["/far"] and started["env_vars"] == {"A": "1", "B": "2"}
    worker = bench.worker(1)
    assert worker.take(Registered).session["namespace"] == "n"
    assert worker.take(CreateActor).actor_id == order.actor_id
    (waits,) = [m for m in bench.to_gcs if isinstance(m, Request) and m.method == "job_end"]
    bench.do(lambda: bench.node.on_gcs(Reply(waits.request_id, True, True)))
    wait_for(lambda: bench.node.table.pool.workers[1].state == "LEAVING")


def test_a_job_that_is_over_and_of_which_nothing_is_left_is_forgotten(bench: Clustered) -> None:
    jobs, table = bench.node.jobs, bench.node.table
    driver = bench.driver()
    driver.take(Registered)
    driver.send(demand())
    worker = bench.worker(1)
    worker.take(Registered)
    driver.conn.close()
    bench.told_gcs(Died)
    wait_for(lambda: bench.launcher.killed)
    assert JOB in jobs._configs  # it still ends
    bench.exits(1)
    bench.do(lambda: bench.node.on_gcs(actor_order(2, lifetime="detached")))  # before the GCS has heard of the end
    started = wait_for(lambda: bench.launcher.orders.get(2))
    assert started["sys_path"] == ["/job"]
    bench.worker(2).take(Registered)
    bench.exits(2)
    wait_for(lambda: 2 not in table.pool.workers)
    assert JOB in jobs._configs  # there may be more such orders
    (waits,) = [m for m in bench.to_gcs if isinstance(m, Request) and m.method == "job_end"]
    bench.do(lambda: bench.node.on_gcs(Reply(waits.request_id, True, True)))
    wait_for(lambda: JOB not in jobs._configs)
    assert JOB not in table.homes and not jobs._ended

    bench.do(lambda: bench.node.on_gcs(Introduce(JOB, {"sys_path": ["/again"], "ended": True})))
    bench.do(lambda: bench.node.on_gcs(actor_order(1, lifetime="detached")))
    started = wait_for(lambda: bench.launcher.orders.get(3))
    assert started["sys_path"] == ["/again"]
    bench.worker(3).take(Registered)
    bench.exits(3)
    wait_for(lambda: not jobs._configs)


def test_the_drivers_job_travels_to_the_gcs(bench: Clustered) -> None:
    bench.driver(env_vars={"A": "1"}).take(Registered)
    (said,) = [m.args[0] for m in bench.to_gcs if isinstance(m, Request) and m.method == "add_job"]
    assert said["config"]["sys_path"] == ["/job"] and said["config"]["env_vars"] == {"A": "1"}


def test_nothing_of_it_in_a_session_of_one_node(tmp_path: Path) -> None:
    alone = Bench(tmp_path, prestart=False)
    try:
        driver = alone.driver()
        driver.take(Registered)
        driver.send(demand())
        alone.worker(1).take(Registered)
        driver.take(LeaseGrant)
        assert alone.node.membership is None
        time.sleep(0)
        assert not [message for message in alone.to_gcs if isinstance(message, NodeReport)]
        (said,) = [m.args[0] for m in alone.to_gcs if isinstance(m, Request) and m.method == "add_job"]
        assert "config" not in said
        assert JOB in alone.node.jobs.drivers
    finally:
        alone.end()
        alone.close()
