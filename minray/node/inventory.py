"""What this node says of itself to a head that has been started again: ``gcs.reunion`` compares it with the tables.

Called by ``gcs_link`` when it dials again. What the node had said before and a head may have lost is all in here, so
nothing of it has to be repeated: actors that are wanted or run here (with what they said when they had started),
those that ended lately, the processes that live here, bundles that are held, whose end elsewhere is waited for, and
which other nodes are counted as alive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minray.node.service import NodeService


def inventory(node: NodeService) -> dict[str, Any]:
    """Built-in values only, for ``add_node``."""
    actors = node.table.actors
    return {
        "bundles": node.table.bundles.held(),
        "actors": actors.living(),
        "ended": actors.lately_ended(),
        "processes": node.deaths.living(),
        "watches": node.deaths.asked_elsewhere(),
        "sees": list(node.view.nodes),
    }
