"""Which message of the GCS goes where in the node.

Called by node.service with what comes from the GCS, whether that is in this process or behind a connection.
Orders are idempotent, and after a node has begun to end none is obeyed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minray.wire import messages as m
from minray.wire.messages import Message

if TYPE_CHECKING:
    from minray.node.service import NodeService

Obey = Callable[["NodeService", Any], None]
ORDERS: dict[type[Message], Obey] = {}


def _obeys(kind: type[Message]) -> Callable[[Obey], Obey]:
    def register(obey: Obey) -> Obey:
        ORDERS[kind] = obey
        return obey

    return register


@_obeys(m.StartActor)
def _start_actor(node: NodeService, message: m.StartActor) -> None:
    spec = message.spec
    inherited = node.jobs.foreign_env(spec["job_id"])
    if inherited:
        spec = {**spec, "env_vars": {**inherited, **(spec.get("env_vars") or {})}}
        message = m.StartActor(message.actor_id, message.incarnation, spec)
    node.do(node.table.start_actor(message, node.now()))


@_obeys(m.StopActor)
def _stop_actor(node: NodeService, message: m.StopActor) -> None:
    effects = node.table.stop_actor(
        message.actor_id,
        message.incarnation,
        node.now(),
        graceful=message.graceful,
        reason=message.reason,
    )
    node.do(effects)


@_obeys(m.ClusterView)
def _view(node: NodeService, message: m.ClusterView) -> None:
    if node.membership is not None:
        node.membership.on_view(message)


@_obeys(m.PrepareBundles)
@_obeys(m.CommitBundles)
@_obeys(m.ReleaseBundles)
def _bundles(node: NodeService, message: Message) -> None:
    node.do(node.table.bundles.order(message, node.now()))


@_obeys(m.Introduce)
def _introduce(node: NodeService, message: m.Introduce) -> None:
    node.jobs.introduce(message.job_id, message.job_config)


@_obeys(m.Watch)
def _watch(node: NodeService, message: m.Watch) -> None:
    """Another node asks. If the process lives, the GCS hears of its end like of any other."""
    died = node.deaths.ask(message.worker_id)
    if died is not None:
        node.tell_gcs(died)


@_obeys(m.Died)
def _died(node: NodeService, message: m.Died) -> None:
    """A process of another node, for which somebody here has asked. It may have had workers here."""
    node.do(node.deaths.told(message))
    node.do(node.table.owner_gone(message.worker_id, node.now()))
    node.store.process_died(message.worker_id, node.now())
