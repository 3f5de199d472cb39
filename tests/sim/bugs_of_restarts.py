"""Bugs of what starts anew: actors, and the head of the cluster. See ``planting``."""

from __future__ import annotations

from typing import Any

from minray.gcs.actors import ActorTable
from minray.gcs.placement_groups import PlacementGroupTable
from minray.node.actor_placement import ActorPlacements
from minray.node.gcs_link import GcsLink
from minray.wire.messages import ActorUpdate
from minray.worker.actor_calls import ActorCalls
from minray.worker.gcs_line import GcsLine

from .planting import Replacement, bug

# -- an actor is restarted: at the GCS -----------------------------------------------------------------


@bug(ActorTable, "_restart", "for no reason|come to rest|unfinished|are left|reasons to restart|time stands still")
def a_new_incarnation_keeps_its_number(original: Replacement) -> Replacement:
    def restart(table: ActorTable, actor: Any, cause: Any) -> Any:
        effects = original(table, actor, cause)
        actor.incarnation -= 1
        return effects

    return restart


@bug(ActorTable, "_restart", "with max_restarts=")
def an_actor_restarts_for_ever(original: Replacement) -> Replacement:
    def restart(table: ActorTable, actor: Any, cause: Any) -> Any:
        left = actor.restarts_left
        effects = original(table, actor, cause)
        actor.restarts_left = left
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


@bug(ActorCalls, "on_update", "is given up after")
def calls_that_wait_for_a_restart_are_charged(original: Replacement) -> Replacement:
    def on_update(calls: ActorCalls, update: ActorUpdate) -> None:
        actor = calls.actors.get(update.actor_id)
        if actor is not None and update.state == "RESTARTING":
            for task in actor.queue:
                task.retries -= task.retries > 0
        original(calls, update)

    return on_update


@bug(ActorCalls, "_interrupted", "allowed")
def an_interrupted_call_costs_no_retry(original: Replacement) -> Replacement:
    def interrupted(calls: ActorCalls, actor: Any, cause: Any = None) -> None:
        batch = [(task, task.retries) for task in actor.inflight.values()]
        original(calls, actor, cause)
        for task, retries in batch:
            task.retries = retries

    return interrupted


@bug(ActorCalls, "_interrupted", "after a later call")
def interrupted_calls_come_last(original: Replacement) -> Replacement:
    def interrupted(calls: ActorCalls, actor: Any, cause: Any = None) -> None:
        before = len(actor.queue)
        original(calls, actor, cause)
        actor.queue.rotate(before - len(actor.queue))

    return interrupted


@bug(ActorCalls, "on_update", "has given up attempt|which is given up|fails as if")
def the_last_words_of_an_actor_are_not_waited_for(original: Replacement) -> Replacement:
    def on_update(calls: ActorCalls, update: ActorUpdate) -> None:
        original(calls, update)
        actor = calls.actors.get(update.actor_id)
        if actor is not None and actor.draining is not None:
            calls._drained(actor)

    return on_update


# -- the head is started again -------------------------------------------------------------------------


@bug(ActorPlacements, "living", "reasons to restart|ends for no reason|side by side")
def a_node_does_not_say_who_lives_there(_: Replacement) -> Replacement:
    return lambda placements: []


@bug(PlacementGroupTable, "node_joined", "keeps attempt|is not open|in the book")
def bundles_of_a_node_that_comes_back_are_not_recognised(original: Replacement) -> Replacement:
    def node_joined(table: PlacementGroupTable, node_id: bytes, totals: Any, labels: Any, held: Any, now: float) -> Any:
        return original(table, node_id, totals, labels, (), now)

    return node_joined


@bug(GcsLine, "_dial", "has no answer|come to rest|objects are left|unfinished")
def what_has_no_answer_is_not_asked_again(original: Replacement) -> Replacement:
    def dial(line: GcsLine) -> None:
        line._open.clear()
        original(line)

    return dial


@bug(GcsLink, "_dial", "has outlived its job|unfinished tasks")
def a_node_does_not_ask_again(original: Replacement) -> Replacement:
    def dial(link: GcsLink) -> None:
        link._unanswered.clear()
        original(link)

    return dial
