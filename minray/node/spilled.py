"""What of a node's objects is in files: who writes and reads them, and how another node gets one.

Used by ``service``. See ``store.disk`` and ``transfers.files``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minray._base import log
from minray.store.disk import Disk
from minray.store.spill_folders import SpillFolders

if TYPE_CHECKING:
    from minray.node.service import NodeService
    from minray.node.transfers.files import FileHold


def make_disk(node: NodeService, session: dict[str, Any]) -> Disk:
    """The disk of a node, on its reactor. ``session``: dir, prefix."""
    config = node.config
    return Disk(
        node.store,
        SpillFolders(session["dir"], session["prefix"], config.spill_dirs, config.spill_disk_share),
        node_id=node.node_id,
        call_soon=node.reactor.call_soon,
        call_later=node.reactor.call_later,
        now=node.now,
        settled=node.settle,
    )


def open_spilled(node: NodeService, object_id: bytes) -> FileHold | None:
    """For another node: the file of an object that is on disk and not in memory."""
    from minray.node.transfers.files import FileHold  # for nothing in a session of one node

    place = node.store.table.spilled_to(object_id)
    if place is None or node.disk is None:
        return None
    number, offset, length = place
    try:
        return FileHold(node.disk.open(number), number, offset, length)
    except OSError as error:  # it will be restored instead, or be lost in the attempt
        log.warning("the file of spilled object %s cannot be opened: %s", object_id.hex()[:16], error)
        return None
