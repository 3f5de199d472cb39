"""Bugs of drivers and workers: references, tasks, queues, streams, calls of actors. See ``planting``."""

from __future__ import annotations

from typing import Any

from minray.wire.messages import Blocked
from minray.worker.core import Core
from minray.worker.lineage import Lineage
from minray.worker.owner import TaskManager
from minray.worker.references import ObjectRecord, ReferenceTable
from minray.worker.task_queue import TaskQueue

from .planting import Replacement, bug

# -- references ----------------------------------------------------------------------------------------


@bug(ObjectRecord, "borrowed_away", "which .* has freed")
def the_owner_forgets_its_borrowers(_: Replacement) -> Replacement:
    return lambda record: False


@bug(ReferenceTable, "on_death", "objects are left")
def dead_borrowers_stay(_: Replacement) -> Replacement:
    def on_death(table: ReferenceTable, worker_id: bytes) -> list[bytes]:
        return [i for i in table._borrowed_from.get(worker_id, ()) if i in table.objects]

    return on_death


@bug(ReferenceTable, "end_scope", "which .* has freed")
def a_kept_argument_is_not_told(original: Replacement) -> Replacement:
    def end_scope(table: ReferenceTable, ids: list[bytes]) -> Any:
        told = original(table, ids)
        return [(i, taker) for i, taker in told or () if taker != table.me]

    return end_scope


@bug(Core, "_unhold_arguments", "objects are left")
def arguments_inside_values_stay_held(original: Replacement) -> Replacement:
    def unhold(core: Core, task: Any) -> None:
        task.nested = ()
        original(core, task)

    return unhold


# -- tasks ---------------------------------------------------------------------------------------------


@bug(TaskQueue, "block", "a blocked worker keeps tasks")
def a_blocked_worker_keeps_its_tasks(_: Replacement) -> Replacement:
    def block(queue: TaskQueue) -> None:
        if not queue.blocked and not queue.ended and queue.owner is not None:
            queue.blocked = True
            queue.effects.append(("node", Blocked(queue.lease_no)))

    return block


@bug(Lineage, "await_lost", "without its value")
def what_is_lost_while_another_is_awaited_counts_as_there(_: Replacement) -> Replacement:
    return lambda lineage, task, waiter: False


# -- several nodes -------------------------------------------------------------------------------------


@bug(TaskManager, "on_decline", "unfinished tasks")
def what_was_declined_is_not_asked_for_again(_: Replacement) -> Replacement:
    def on_decline(manager: TaskManager, node_id: bytes, msg: Any) -> None:
        manager.keys[msg.key].elsewhere[node_id].declined += msg.count

    return on_decline
