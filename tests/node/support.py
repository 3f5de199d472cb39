"""What the tests of the node's machines share: a LeaseTable with a clock, and sorted effects."""

from __future__ import annotations

import itertools
from typing import Any, TypeVar

from minray.node.demands import WorkerClass
from minray.node.leases import LeaseTable
from minray.node.worker_pool import WorkerPool
from minray.wire.messages import LeaseDemand, Message, Resources, StartActor

NODE = b"n" * 28
JOB = b"\x01\0\0\0"
OTHER_JOB = b"\x02\0\0\0"
DRIVER = b"d" * 28
CPU1: Resources = {"CPU": 10_000}
CLASS = WorkerClass(JOB)
M = TypeVar("M", bound=Message)


def worker_ids() -> Any:
    """Ids in order: the worker's number, padded."""
    numbers = itertools.count(1)
    return lambda: b"w" + next(numbers).to_bytes(27, "big")


def actor_order(number: int = 1, incarnation: int = 0, **spec: Any) -> StartActor:
    made: dict[str, Any] = {
        "actor_id": number.to_bytes(12, "big") + JOB,
        "class_name": "Counter",
        "owner": (NODE, DRIVER, "unix:/driver"),
        "job_id": JOB,
        "placement_resources": CPU1,
        "lifetime_resources": {},
        **spec,
    }
    return StartActor(made["actor_id"], incarnation, made)


class World:
    """A lease table whose effects are gathered and whose ordered workers register when told to."""

    def __init__(self, cpus: int = 2, totals: Resources | None = None, **pool: Any) -> None:
        self.now = 100.0
        self.pool = WorkerPool(cpus=cpus, new_worker_id=worker_ids(), **pool)
        self.table = LeaseTable(NODE, totals or {"CPU": cpus * 10_000}, self.pool)
        self.table.driver_joined(DRIVER, (NODE, DRIVER, "unix:/driver"), CLASS)
        self.ordered: list[int] = []  # numbers of workers to be started
        self.exits: list[tuple[int, bool, str]] = []
        self.sent: list[tuple[bytes, Message]] = []
        self.to_gcs: list[Message] = []
        self.warnings: list[str] = []
        self.asked: list[bytes] = []  # placement groups that the GCS is asked about

    def do(self, effects: list[tuple[Any, ...]]) -> None:
        for kind, *rest in effects:
            if kind == "start":
                self.ordered.append(rest[0])
            elif kind == "exit":
                self.exits.append((rest[0], rest[1], rest[2]))
            elif kind == "send":
                self.sent.append((rest[0], rest[1]))
            elif kind == "gcs":
                self.to_gcs.append(rest[0])
            elif kind == "group":
                self.asked.append(rest[0])
            else:
                assert kind == "warn", kind
                self.warnings.append(rest[1])
        self.table.check_invariants()

    # -- what happens ------------------------------------------------------------------------------

    def demand(self, wanted: int, key: int = 1, owner: bytes = DRIVER, **fields: Any) -> None:
        made = {
            "resources": CPU1,
            "depth": 0,
            "strategy": None,
            "env_vars": {},
            "description": f"task f{key}",
            "refused": 0,
            "hold": False,
            "again": True,
            "job": JOB,
            **fields,
        }
        job = WorkerClass(made.pop("job"))
        if owner not in self.table.addresses:  # another driver
            self.table.driver_joined(owner, (NODE, owner, "unix:/other"), job)
        self.do(self.table.demand(owner, LeaseDemand(key, wanted, **made), self.now))

    def register_all(self) -> None:
        """Every ordered worker arrives, and those ordered because of that."""
        while self.ordered:
            self.register(self.ordered.pop(0))

    def register(self, number: int) -> None:
        worker = self.pool.workers[number]
        self.do(self.table.registered(number, (NODE, worker.worker_id, f"unix:/w{number}"), self.now))

    def exit(self, number: int, running: tuple[int, int, int] = (-1, -1, -1), **cause: Any) -> None:
        worker, effects = self.table.exited(number, {"text": "exit code 1", **cause}, running, self.now)
        assert worker is not None
        self.do(effects)

    def ended(self, lease_no: int) -> None:
        lease = self.table.leases[lease_no]
        self.do(self.table.ended(lease.worker_id, lease_no, self.now))

    def pass_time(self, seconds: float) -> None:
        """Move on, doing what is due at its moment."""
        end = self.now + seconds
        idle_turns = 0
        while (due := self.table.next_deadline()) is not None and due <= end:
            idle_turns = 0 if due > self.now else idle_turns + 1
            assert idle_turns < 20, f"to be called at {due} again and again, and it is {self.now}"
            self.now = max(self.now, due)
            self.do(self.table.tick(self.now))
        self.now = end

    # -- what came of it ---------------------------------------------------------------------------

    def take(self, kind: type[M], to: bytes | None = None) -> list[M]:
        """Sent messages of one kind, which are then forgotten."""
        found = [m for target, m in self.sent if isinstance(m, kind) and to in (None, target)]
        self.sent = [(t, m) for t, m in self.sent if not (isinstance(m, kind) and to in (None, t))]
        return found

    def number_of(self, worker_id: bytes) -> int:
        return int.from_bytes(worker_id[1:], "big")
