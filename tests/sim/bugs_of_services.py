"""Bugs of nodes and of the GCS: leases, spilling, bundles, deaths, actors, placement groups. See ``planting``."""

from __future__ import annotations

from typing import Any

from minray.gcs.actors import ActorTable
from minray.gcs.placement_groups import PlacementGroupTable
from minray.node.bundles import Bundles
from minray.node.leases import LeaseTable
from minray.node.membership import Membership

from .planting import Replacement, bug

# -- leases, workers, deaths ---------------------------------------------------------------------------


@bug(LeaseTable, "unblocked", "book|holds|free|available")
def a_cpu_that_was_lent_is_not_taken_back(_: Replacement) -> Replacement:
    def unblocked(table: LeaseTable, worker_id: bytes, lease_no: int, now: float) -> Any:
        lease = table._lease_of(worker_id, lease_no)
        if lease is not None:
            lease.blocked, lease.lent = False, {}
        return []

    return unblocked


@bug(ActorTable, "_drop_name", "names and actors disagree")
def a_dead_actor_keeps_its_name(_: Replacement) -> Replacement:
    return lambda table, actor: None


# -- placement groups ----------------------------------------------------------------------------------


@bug(Bundles, "_give_back", "in the book")
def a_reservation_that_is_given_up_is_not_given_back(_: Replacement) -> Replacement:
    def give_back(bundles: Bundles, attempt: Any) -> None:
        attempt.ids.clear()
        attempt.reserved = False

    return give_back


@bug(PlacementGroupTable, "_abort", "keeps attempt")
def nobody_hears_that_an_attempt_is_over(original: Replacement) -> Replacement:
    return lambda table, *args, **options: original(table, *args, **options) and []


@bug(PlacementGroupTable, "node_lost", "counts as there on a machine that is lost")
def bundles_of_a_lost_node_count_as_there(original: Replacement) -> Replacement:
    def node_lost(table: PlacementGroupTable, node_id: bytes, now: float) -> Any:
        places = {group: dict(group.places) for group in table._groups.values()}
        for group in places:
            group.places = {i: place for i, place in group.places.items() if place[0] != node_id}
        effects = original(table, node_id, now)
        for group, before in places.items():
            group.places = before
        return effects

    return node_lost


@bug(PlacementGroupTable, "_commit", "is not open")
def only_the_first_node_of_a_group_opens_its_bundles(original: Replacement) -> Replacement:
    def commit(table: PlacementGroupTable, *args: Any) -> Any:
        effects = original(table, *args)
        orders = [effect for effect in effects if effect[0] == "order"]
        return [effect for effect in effects if effect not in orders[1:]]

    return commit


@bug(Bundles, "lease_ended", "waits for . leases to end, and has")
def a_group_that_closes_waits_for_ever(_: Replacement) -> Replacement:
    return lambda bundles, lease: None


# -- several nodes -------------------------------------------------------------------------------------


@bug(Membership, "_gone", "unfinished tasks|objects are left")
def a_frozen_machine_is_waited_for(_: Replacement) -> Replacement:
    return lambda membership, node_id: None
