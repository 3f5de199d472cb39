"""Helpers on top of the core: pools, queues, iteration over results, small questions to the cluster.

Everything in this room is written as a user would write it: it imports only minray's public names
(a test keeps that), so that each helper is also an example of how far the public face carries.

* ``actor_pool``      ``ActorPool``: one queue of work in front of a fixed set of actors
* ``iteration``       ``as_completed``, ``map_unordered``: results in the order in which they come
* ``queue``           ``Queue`` (imported by its own name: it loads asyncio)
* ``cluster``         ``list_named_actors``, ``get_node_ip_address``
* ``check_serialize`` ``inspect_serializability``: what stops an object from being pickled, and where
* ``serialization``   ``register_serializer``, ``deregister_serializer``
* ``debug``           ``log_once``
* ``testing``         ``SignalActor``, ``Semaphore``, ``wait_for_condition`` (imported by its own name)
* ``placement_group`` bundles of resources reserved together (made in ``minray.placement_group``)
* ``scheduling_strategies`` where things run: in a placement group, on a node, by labels
"""

from __future__ import annotations

from minray.util import scheduling_strategies
from minray.util.actor_pool import ActorPool
from minray.util.check_serialize import inspect_serializability
from minray.util.cluster import get_node_ip_address, list_named_actors
from minray.util.debug import log_once
from minray.util.iteration import as_completed, map_unordered
from minray.util.placement_group import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from minray.util.serialization import deregister_serializer, register_serializer

__all__ = [
    "ActorPool",
    "as_completed",
    "deregister_serializer",
    "get_current_placement_group",
    "get_node_ip_address",
    "get_placement_group",
    "inspect_serializability",
    "list_named_actors",
    "log_once",
    "map_unordered",
    "placement_group",
    "placement_group_table",
    "register_serializer",
    "remove_placement_group",
    "scheduling_strategies",
]
