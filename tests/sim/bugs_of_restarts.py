"""Bugs of what starts anew: actors, and the head of the cluster. See ``planting``."""

from __future__ import annotations

from typing import Any

from minray.gcs.actors import ActorTable
from minray.wire.messages import ActorUpdate
from minray.worker.actor_calls import ActorCalls
from minray.worker.gcs_line import GcsLine

from .planting import Replacement, bug

# -- an actor is restarted: at the GCS -----------------------------------------------------------------


@bug(ActorTable, "_restart", "for no reason|come to rest|unfinished|objects are left|reasons to restart")
def a_new_incarnation_keeps_its_number(original: Replacement) -> Replacement:
    def restart(table: ActorTable, actor: Any, cause: Any) -> Any:
        effects = original(table, actor, cause)
        actor.incarnation -= 1
        return effects

    return restart


@bug(ActorTable, "_restart", "ends for no reason")
def a_restart_costs_two(original: Replacement) -> Replacement:
    def restart(table: ActorTable, actor: Any, cause: Any) -> Any:
        effects = original(table, actor, cause)
        actor.restarts_left -= actor.restarts_left > 0
        return effects

    return restart


@bug(ActorTable, "ended", "reasons to restart|ends for no reason")
def the_end_of_an_older_incarnation_counts(original: Replacement) -> Replacement:
    def ended(table: ActorTable, node_id: bytes, report: Any) -> Any:
        actor = table._actors.get(report.actor_id)
        if actor is not None and actor.awaited is None and actor.state != "DEAD" and actor.node_id is not None:
            return table._end_of_incarnation(actor, dict(report.cause))
        return original(table, node_id, report)

    return ended


# -- an actor is restarted: at its callers -------------------------------------------------------------


@bug(ActorCalls, "on_update", "has given up attempt|which is given up|fails as if")
def the_last_words_of_an_actor_are_not_waited_for(original: Replacement) -> Replacement:
    def on_update(calls: ActorCalls, update: ActorUpdate) -> None:
        original(calls, update)
        actor = calls.actors.get(update.actor_id)
        if actor is not None and actor.draining is not None:
            calls._drained(actor)

    return on_update


# -- the head is started again -------------------------------------------------------------------------


@bug(GcsLine, "_dial", "has no answer|come to rest|objects are left|unfinished")
def what_has_no_answer_is_not_asked_again(original: Replacement) -> Replacement:
    def dial(line: GcsLine) -> None:
        line._open.clear()
        original(line)

    return dial
