"""What the GCS remembers of one actor, and its states. Pure.

The picture and the rules are in ``actors``; this file is its nouns. Invariant: only ActorTable changes a record.
"""

from __future__ import annotations

from typing import Any

from minray.gcs.effects import Row
from minray.wire.messages import ActorUpdate

PENDING, ALIVE, RESTARTING, DEAD = "PENDING", "ALIVE", "RESTARTING", "DEAD"
STARTED, LOST, OVER = "started", "lost", "over"
AT_ONCE, FIRST_PAUSE_S, LONGEST_PAUSE_S = 3, 0.1, 10.0

NEXT: dict[tuple[str, str], str] = {
    (PENDING, STARTED): ALIVE,
    (RESTARTING, STARTED): ALIVE,
    (PENDING, LOST): RESTARTING,
    (ALIVE, LOST): RESTARTING,
    (RESTARTING, LOST): RESTARTING,
    (PENDING, OVER): DEAD,
    (ALIVE, OVER): DEAD,
    (RESTARTING, OVER): DEAD,
}


def pause_s(failures: int) -> float:
    """How long an actor waits for its next start that has ended so often in a row before it was ready."""
    if failures <= AT_ONCE:
        return 0.0
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures - AT_ONCE - 1, 30)))


class Actor:
    """One actor's record; only ActorTable changes it."""

    __slots__ = (
        "actor_id",
        "address",
        "awaited",
        "bounces",
        "cause",
        "failures",
        "incarnation",
        "leaving",
        "node_id",
        "restarts_left",
        "spec",
        "state",
        "subscribers",
    )

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.actor_id: bytes = spec["actor_id"]
        self.state = PENDING
        self.incarnation = 0
        self.address: Any = None  # Address while ALIVE
        self.node_id: bytes | None = None  # the node that has the order to run this incarnation
        self.restarts_left: int = spec["options"].get("max_restarts", 0)  # -1: without end
        self.awaited: int | None = None  # the killed incarnation whose end is waited for before the restart
        self.bounces = 0  # how often nodes had no room for this incarnation
        self.failures = 0  # how many incarnations in a row have ended before they were ready
        self.leaving = False  # out of scope: its end is not to be followed by a restart
        self.cause: dict[str, Any] = {}  # of the latest restart, or of the death
        self.subscribers: set[int] = set()

    @property
    def detached(self) -> bool:
        return bool(self.spec.get("lifetime") == "detached")

    @property
    def owner_id(self) -> bytes:
        return bytes(self.spec["owner"][1])

    @property
    def name_key(self) -> tuple[str, str] | None:
        name = self.spec.get("name")
        return (self.spec.get("namespace") or "", name) if name else None

    def row(self) -> Row:
        return (
            self.state, self.incarnation, self.address, self.node_id, self.restarts_left, self.awaited,
            self.leaving, self.cause,
        )  # fmt: skip

    def take_row(self, row: Row) -> None:
        (
            self.state, self.incarnation, self.address, self.node_id, self.restarts_left, self.awaited,
            self.leaving, self.cause,
        ) = row  # fmt: skip

    def update(self) -> ActorUpdate:
        return ActorUpdate(self.actor_id, self.state, self.incarnation, self.address, self.cause)

    def info(self) -> dict[str, Any]:
        """What a handle is made of."""
        spec = self.spec
        return {
            "actor_id": self.actor_id,
            "job_id": spec["job_id"],
            "owner": spec["owner"],
            "name": spec.get("name"),
            "namespace": spec.get("namespace"),
            "lifetime": spec.get("lifetime"),
            "class_name": spec["class_name"],
            "method_meta": spec["method_meta"],
            "options": spec["options"],
            "state": self.state,
            "incarnation": self.incarnation,
            "address": self.address,
            "cause": self.cause,
        }

    def __repr__(self) -> str:
        name = self.spec.get("class_name")
        return f"Actor({name}, {self.actor_id.hex()}, {self.state} #{self.incarnation})"
