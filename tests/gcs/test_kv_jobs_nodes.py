"""The three small tables."""

from __future__ import annotations

from typing import Any

import pytest

from minray.gcs.jobs import JobTable
from minray.gcs.kv import KvTable
from minray.gcs.nodes import SAMPLE, NodeTable, Unplaceable


def test_kv_puts_gets_and_deletes() -> None:
    table = KvTable()
    assert table.put(b"ns", b"k", b"1", overwrite=False)[0] is False
    assert table.put(b"ns", b"k", b"2", overwrite=False) == (True, [])
    assert table.get(b"ns", b"k") == b"1"
    assert table.put(b"ns", b"k", b"2", overwrite=True)[0] is True
    assert table.get(b"ns", b"k") == b"2" and table.get(b"other", b"k") is None
    assert table.exists(b"ns", b"k") and not table.exists(b"ns", b"l")
    assert table.delete(b"ns", b"k", by_prefix=False)[0] == 1
    assert table.delete(b"ns", b"k", by_prefix=False) == (0, [])
    table.check_invariants()


def test_kv_by_prefix() -> None:
    table = KvTable()
    for key in (b"a2", b"a1", b"b1"):
        table.put(b"", key, b"", overwrite=True)
    assert table.keys(b"", b"a") == [b"a1", b"a2"]
    count, effects = table.delete(b"", b"a", by_prefix=True)
    assert count == 2 and len(effects) == 2 and table.keys(b"", b"") == [b"b1"]


def test_kv_rows_of_different_pairs_never_meet_and_restore() -> None:
    table = KvTable()
    rows = {}
    for namespace, key in ((b"ab", b"c"), (b"a", b"bc"), (b"", b"abc")):
        ((_, _, row_key, row),) = table.put(namespace, key, namespace + b"/" + key, overwrite=True)[1]
        rows[row_key] = row
    assert len(rows) == 3
    other = KvTable()
    other.restore(list(rows.items()))
    assert other.get(b"a", b"bc") == b"a/bc"


def test_kv_refuses_what_is_not_bytes() -> None:
    with pytest.raises(TypeError, match="the key of a key-value pair must be bytes, not str"):
        KvTable().put(b"", "key", b"", overwrite=True)  # type: ignore[arg-type]


def job_info(number: int, **more: Any) -> dict[str, Any]:
    return {"driver_worker_id": bytes([number]) * 28, "driver_pid": number, **more}


def test_jobs_count_from_one_and_are_never_used_again() -> None:
    table = JobTable(lambda: "made up")
    first, _ = table.add(job_info(1), now=5.0)
    assert first == {"job_id": b"\x01\0\0\0", "namespace": "made up"}
    assert table.add(job_info(1), now=6.0) == (first, [])
    second, _ = table.add(job_info(2, namespace="mine"), now=7.0)
    assert second == {"job_id": b"\x02\0\0\0", "namespace": "mine"}
    assert table.of_driver(bytes([2]) * 28) == b"\x02\0\0\0"
    assert table.finish(b"\x02\0\0\0", now=8.0)[0] and not table.finish(b"\x02\0\0\0", now=9.0)[0]
    assert table.of_driver(bytes([2]) * 28) is None
    assert table.add(job_info(3), now=9.0)[0]["job_id"] == b"\x03\0\0\0"
    shown = table.public()
    assert [(job["job_id"], job["is_dead"]) for job in shown] == [
        ("01000000", False),
        ("02000000", True),
        ("03000000", False),
    ]
    assert not table.finish(b"none", now=1.0)[0]
    table.check_invariants()


def test_old_jobs_are_forgotten_and_the_rest_restored() -> None:
    table = JobTable(lambda: "", keep_finished=2)
    rows: dict[bytes, Any] = {}
    for number in range(1, 6):
        answer, effects = table.add(job_info(number), now=1.0)
        effects += table.finish(answer["job_id"], now=2.0)[1] if number < 5 else []
        rows.update({effect[2]: effect[3] for effect in effects})
    rows = {key: row for key, row in rows.items() if row is not None}
    assert len(rows) == 3
    other = JobTable(lambda: "", keep_finished=2)
    other.restore(list(rows.items()))
    assert other.add(job_info(9), now=3.0)[0]["job_id"] == b"\x06\0\0\0"
    assert other.of_driver(bytes([5]) * 28) == b"\x05\0\0\0"
    table.check_invariants()
    other.check_invariants()


def test_a_job_that_is_over_and_in_use_is_remembered() -> None:
    used = {b"\x01\0\0\0"}
    table = JobTable(lambda: "", keep_finished=2, in_use=lambda job_id: job_id in used)
    for number in range(1, 7):
        answer, _ = table.add(job_info(number, node_id=b"n", config={"a": number}), now=1.0)
        table.finish(answer["job_id"], now=2.0)
        table.check_invariants()
    assert [job["job_id"][:2] for job in table.public()] == ["01", "06"]
    introduction = table.introduction(b"\x01\0\0\0", b"n")
    assert introduction is not None and introduction["ended"]
    used.clear()
    answer, _ = table.add(job_info(7), now=1.0)
    table.finish(answer["job_id"], now=2.0)
    assert [job["job_id"][:2] for job in table.public()] == ["06", "07"]


def node(number: int, **resources: int) -> dict[str, Any]:
    return {"node_id": bytes([number]) * 28, "resources": resources, "hostname": "here"}


def test_nodes_join_die_and_are_shown_under_rays_keys() -> None:
    table = NodeTable(keep_dead=1)
    for number in (1, 2, 3):
        table.add(node(number, CPU=20_000), now=1.0)
    assert table.totals() == {"CPU": 6.0}
    assert table.lost(bytes([1]) * 28, "no heartbeat")[0]
    assert not table.lost(bytes([1]) * 28, "no heartbeat")[0]
    assert [(n["Alive"], n["Resources"], n["DeathReasonMessage"]) for n in table.public()] == [
        (True, {"CPU": 2.0}, ""),
        (True, {"CPU": 2.0}, ""),
        (False, {}, "no heartbeat"),
    ]
    table.lost(bytes([2]) * 28, "too")
    assert [n["NodeID"][:2] for n in table.public()] == ["03", "02"]
    assert table.public()[0]["NodeManagerHostname"] == "here"
    table.check_invariants()


def test_placement_prefers_nodes_that_fit_with_few_actors() -> None:
    table = NodeTable()
    assert table.place({}, {}) is None
    for number in (1, 2, 3):
        table.add(node(number, **({"GPU": 10_000} if number > 1 else {"CPU": 10_000})), now=1.0)
    wish = {"placement_resources": {"GPU": 10_000}}
    assert {table.place(wish, {}) for _ in range(6)} == {bytes([2]) * 28, bytes([3]) * 28}
    assert table.place(wish, {bytes([2]) * 28: 5}) == bytes([3]) * 28
    hopeless = {"placement_resources": {"TPU": 1}, "owner": (bytes([2]) * 28, b"", "")}
    assert table.place(hopeless, {}) == bytes([2]) * 28  # the owner's node will say that it is infeasible
    hopeless["owner"] = (b"gone", b"", "")
    assert table.place(hopeless, {}) is not None


def test_placement_looks_at_a_sample() -> None:
    table = NodeTable()
    for number in range(100):
        table.add(node(number, CPU=10_000), now=1.0)
    busy = {bytes([number]) * 28: 1 for number in range(100) if number != 50}
    chosen = [table.place({"placement_resources": {"CPU": 1}}, busy) for _ in range(100)]
    assert chosen.count(bytes([50]) * 28) == SAMPLE


def test_affinity() -> None:
    table = NodeTable()
    table.add(node(1), now=1.0)
    table.add(node(2), now=1.0)
    two, gone = bytes([2]) * 28, b"g" * 28
    assert table.place({"strategy": ("affinity", two, False)}, {two: 9}) == two
    with pytest.raises(Unplaceable, match=gone.hex()):
        table.place({"strategy": ("affinity", gone, False)}, {})
    assert table.place({"strategy": ("affinity", gone, True)}, {}) is not None


def test_restored_nodes_are_dead_until_they_join_again() -> None:
    table = NodeTable()
    ((_, _, key, row),) = table.add(node(1, CPU=10_000), now=1.0)
    other = NodeTable()
    other.restore([(key, row)])
    assert not other.is_alive(key) and other.totals() == {}
    other.add(node(1, CPU=10_000), now=2.0)
    assert other.is_alive(key) and other.totals() == {"CPU": 1.0}
    other.check_invariants()
