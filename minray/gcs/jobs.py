"""The jobs of a cluster: one per driver. Pure.

Called by ``service`` when a node reports a new driver (``add_job``) or the end of one (``finish_job``).
Job ids count from 1, four bytes little-endian as Ray writes them, and are never used again in the life of
the tables. A driver that gave no namespace gets one of its own, so that names of strangers never collide.

Invariants: ids only grow; a finished job stays finished; of the finished ones only the newest are kept, and those
that have a detached actor yet: if it restarts on another node, that has to be told what the job's workers need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minray.gcs.effects import Effects, Row, save

TABLE = "jobs"
KEEP_FINISHED = 1000


class JobTable:
    """Every job that runs, and the last ones that ended."""

    def __init__(
        self,
        make_namespace: Callable[[], str],
        keep_finished: int = KEEP_FINISHED,
        in_use: Callable[[bytes], bool] = lambda job_id: False,
    ) -> None:
        self._make_namespace = make_namespace
        self._keep_finished = keep_finished
        self._in_use = in_use  # whether a finished job has something left
        self._jobs: dict[bytes, dict[str, Any]] = {}
        self._by_driver: dict[bytes, bytes] = {}
        self._finished: dict[bytes, None] = {}  # in the order in which they ended
        self._last = 0

    def restore(self, rows: list[tuple[bytes, Row]]) -> None:
        """Take over what an earlier life of the head had saved."""
        for job_id, (job,) in sorted(rows, key=lambda item: int.from_bytes(item[0], "little")):
            self._jobs[job_id] = job
            self._last = max(self._last, int.from_bytes(job_id, "little"))
            if job["is_dead"]:
                self._finished[job_id] = None
            else:
                self._by_driver[job["driver_worker_id"]] = job_id

    def add(self, info: dict[str, Any], now: float) -> tuple[dict[str, Any], Effects]:
        """A new driver's job, as ``{"job_id", "namespace"}``; asked again for one driver, the same answer."""
        driver = info["driver_worker_id"]
        known = self._by_driver.get(driver)
        if known is not None:
            return self._answer(known), []
        self._last += 1
        job_id = self._last.to_bytes(4, "little")
        job = {
            "job_id": job_id,
            "driver_worker_id": driver,
            "driver_pid": info.get("driver_pid", 0),
            "driver_start_time": info.get("driver_start_time", 0.0),
            "node_id": info.get("node_id", b""),
            "namespace": info.get("namespace") or self._make_namespace(),
            "entrypoint": info.get("entrypoint", ""),
            "metadata": info.get("metadata") or {},
            "config": info.get("config"),  # what workers on other nodes need; None in a session of one node
            "start_time": now,
            "end_time": 0.0,
            "is_dead": False,
        }
        self._jobs[job_id] = job
        self._by_driver[driver] = job_id
        return self._answer(job_id), [save(TABLE, job_id, (job,))]

    def _answer(self, job_id: bytes) -> dict[str, Any]:
        return {"job_id": job_id, "namespace": self._jobs[job_id]["namespace"]}

    def of_driver(self, worker_id: bytes) -> bytes | None:
        """The running job of this driver."""
        return self._by_driver.get(worker_id)

    def driver_of(self, job_id: bytes) -> bytes:
        """The worker id of a known job's driver."""
        return bytes(self._jobs[job_id]["driver_worker_id"])

    def was_driver(self, job_id: bytes, worker_id: bytes) -> bool:
        """Whether this was the driver of a job, and that has ended."""
        job = self._jobs.get(job_id)
        return job is not None and bool(job["is_dead"]) and job["driver_worker_id"] == worker_id

    def of_node(self, node_id: bytes) -> list[bytes]:
        """The running jobs whose drivers are on that node."""
        return [job_id for job_id in self._by_driver.values() if self._jobs[job_id]["node_id"] == node_id]

    def is_running(self, job_id: bytes) -> bool:
        """Whether the job is known and its driver lives."""
        job = self._jobs.get(job_id)
        return job is not None and not job["is_dead"]

    def has_ended(self, job_id: bytes) -> bool:
        """Whether this was a job, and its driver is gone. (Old ones are not remembered one by one.)"""
        job = self._jobs.get(job_id)
        return int.from_bytes(job_id, "little") <= self._last if job is None else bool(job["is_dead"])

    def introduction(self, job_id: bytes, node_id: bytes) -> dict[str, Any] | None:
        """What a node must know of a job, if its driver is not there, or not any more: ``Introduce.job_config``."""
        job = self._jobs.get(job_id)
        if job is None or job.get("config") is None or (job["node_id"] == node_id and not job["is_dead"]):
            return None
        return {**job["config"], "namespace": job["namespace"], "ended": job["is_dead"]}

    def finish(self, job_id: bytes, now: float) -> tuple[bool, Effects]:
        """The job's driver is gone. False if the job is unknown or had ended before."""
        job = self._jobs.get(job_id)
        if job is None or job["is_dead"]:
            return False, []
        ended = self._jobs[job_id] = {**job, "is_dead": True, "end_time": now}
        del self._by_driver[job["driver_worker_id"]]
        self._finished[job_id] = None
        effects = [save(TABLE, job_id, (ended,))]
        over = len(self._finished) - self._keep_finished
        if over > 0:
            for oldest in [job_id for job_id in self._finished if not self._in_use(job_id)][:over]:
                del self._finished[oldest], self._jobs[oldest]
                effects.append(save(TABLE, oldest, None))
        return True, effects

    def public(self) -> list[dict[str, Any]]:
        """Every known job, oldest first, as it is shown to users."""
        shown = [{**job, "job_id": job["job_id"].hex()} for job in self._jobs.values()]
        for job in shown:
            job.pop("config", None)
        return shown

    def check_invariants(self) -> None:
        """Raise AssertionError where the table contradicts itself."""
        running = {job_id for job_id, job in self._jobs.items() if not job["is_dead"]}
        assert set(self._by_driver.values()) == running, "the index of drivers is not the running jobs"
        assert set(self._finished) == set(self._jobs) - running, "the list of finished jobs is wrong"
        assert all(int.from_bytes(job_id, "little") <= self._last for job_id in self._jobs)
