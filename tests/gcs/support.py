"""What the tests of the GCS share: specs, a place with one node, and effects sorted by kind."""

from __future__ import annotations

from typing import Any

from minray.gcs.effects import Effects
from minray.wire.messages import ActorEnded, ActorStarted, ActorUpdate, Message

NODE = b"n" * 28
JOB = b"\x01\0\0\0"
OWNER = b"o" * 28
ADDRESS = (NODE, b"w" * 28, "unix:/worker")


def actor_id(number: int, job: bytes = JOB) -> bytes:
    return number.to_bytes(12, "big") + job


def spec(number: int = 1, **changes: Any) -> dict[str, Any]:
    job = changes.get("job_id", JOB)
    made = {
        "actor_id": actor_id(number, job),
        "job_id": job,
        "owner": (NODE, OWNER, "unix:/driver"),
        "name": None,
        "namespace": "ns",
        "lifetime": None,
        "class_name": "Counter",
        "class_blob": b"pickled class",
        "args": b"pickled arguments",
        "arg_refs": [],
        "method_meta": b"methods",
        "options": {"max_restarts": 0},
        "placement_resources": {"CPU": 10_000},
    }
    made.update(changes)
    return made


def started(aid: bytes, incarnation: int = 0, error: Any = None) -> ActorStarted:
    return ActorStarted(aid, incarnation, ADDRESS if error is None else None, error)


def ended(aid: bytes, incarnation: int = 0, **cause: Any) -> ActorEnded:
    return ActorEnded(aid, incarnation, {"text": "exit code 1", **cause})


def orders(effects: Effects) -> list[Message]:
    return [effect[2] for effect in effects if effect[0] == "order"]


def updates(effects: Effects) -> list[tuple[int, str, int]]:
    """(subscriber, state, incarnation) of each notification."""
    found = []
    for effect in effects:
        if effect[0] == "notify":
            assert isinstance(effect[2], ActorUpdate)
            found.append((effect[1], effect[2].state, effect[2].incarnation))
    return found
