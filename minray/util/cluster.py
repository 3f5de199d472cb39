"""Small questions to the cluster: who has a name, where this process's node is.

No state. ``list_named_actors`` starts the runtime if it is not there, as every call of the API does;
``get_node_ip_address`` does not.
"""

from __future__ import annotations

import minray as ray
from minray.cluster_state import list_named_actors

__all__ = ["get_node_ip_address", "list_named_actors"]


def get_node_ip_address(address: str | None = None) -> str:
    """The address at which this node is reached by others; loopback for a node of its own.

    :param address: accepted for compatibility. No packet is sent: a machine without a route answers too.
    """
    if ray.is_initialized():
        here = ray.get_runtime_context().get_node_id()
        for node in ray.nodes():
            if node["NodeID"] == here:
                return str(node["NodeManagerAddress"])
    return "127.0.0.1"
