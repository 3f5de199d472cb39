"""What the tables say that a node has, against what it has: reconciled when the node joins. Pure.

    the tables, as a head that was killed has left them      the node, which has run on without it
      actor → node, incarnation, started or not                actors that wait or run there, with their ActorStarted
      killed incarnation whose end is awaited                  those that ended lately, and how
      who created it                                           the processes that live there
                         └──────────────── reconcile ───────────────┘

Called by ``service`` for every node that joins; one that joins for the first time has nothing, and nothing is
expected there. The rules:

* both know the incarnation: what the head has missed of it is caught up with (it has started, it has failed);
* the table has it, the node does not: if it was ever started, or the node knows how it ended, it has died, and the
  restart policy decides; else the order may never have arrived, and is given again (nodes obey it once);
* the node has it, the table does not want it (an older incarnation, a dead actor, a stranger): it is stopped;
* an owner of whom the node says nothing is asked for: mostly it has ended, and its actors end; but it may have
  registered there, and created an actor here, after the node had begun to dial.

Invariant: after ``reconcile`` each actor that the table has on this node runs there, is on its way there, or is not
there any more; and each that the node has without the table's wish was told to stop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minray.gcs.actor_record import ALIVE
from minray.gcs.actors import ActorTable
from minray.gcs.effects import Effects, order
from minray.wire.messages import ActorEnded, ActorStarted, Watch

ActorKey = tuple[bytes, int]  # actor_id, incarnation
AWAY = "it ended while the head of the cluster was away"


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a node says of itself when it joins: the part that only counts if it was there before."""

    actors: dict[ActorKey, tuple[Any, Any] | None] = field(default_factory=dict)  # started: (address, error), or None
    ended: dict[ActorKey, dict[str, Any]] = field(default_factory=dict)  # the latest of each actor, with its cause
    processes: frozenset[bytes] | None = None  # worker ids, drivers' among them; None: it was never in before
    watches: tuple[Watch, ...] = ()  # processes elsewhere whose end somebody there waits for
    sees: tuple[bytes, ...] = ()  # the other nodes that it counts as alive

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Inventory:
        """From what ``add_node`` brings; see node.inventory."""
        return cls(
            {(actor_id, no): started for actor_id, no, started in info.get("actors") or ()},
            {(actor_id, no): cause for actor_id, no, cause in info.get("ended") or ()},
            frozenset(info["processes"]) if "processes" in info else None,
            tuple(Watch(worker_id, node_id) for worker_id, node_id in info.get("watches") or ()),
            tuple(info.get("sees") or ()),
        )


def reconcile(table: ActorTable, node_id: bytes, told: Inventory) -> Effects:
    """Make the table of actors agree with what a node that joins has told of itself."""
    effects: Effects = []
    for (actor_id, incarnation), said in told.actors.items():
        report = None if said is None else ActorStarted(actor_id, incarnation, *said)
        effects += table.found(node_id, actor_id, incarnation, report)
    for actor in table.on_node(node_id):
        incarnation = actor.incarnation if actor.awaited is None else actor.awaited
        if (actor.actor_id, incarnation) in told.actors:
            continue
        cause = told.ended.get((actor.actor_id, incarnation))
        unborn = actor.state != ALIVE and actor.awaited is None
        if cause is None and unborn:
            effects.append(table.order_again(actor))
        elif cause is not None and "creation_error" in cause and unborn:
            failed = ActorStarted(actor.actor_id, incarnation, None, cause["creation_error"])
            effects += table.started(node_id, failed)
        else:
            effects += table.ended(node_id, ActorEnded(actor.actor_id, incarnation, cause or {"text": AWAY}))
    for owner_id in table.owners_on(node_id) if told.processes is not None else ():
        if owner_id not in (told.processes or ()):
            effects.append(order(node_id, Watch(owner_id, node_id)))
    return effects
