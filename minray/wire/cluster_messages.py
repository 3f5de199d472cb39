"""The messages of a cluster: between nodes, the GCS, and owners that lease workers on nodes not their own.

Part of ``messages``, which says what a message is, and exports these, too.
"""

from __future__ import annotations

from typing import Any

from minray.wire.control import Location, Message, Resources, message

# --- several nodes: GCS ↔ node, owner ↔ a node that is not its own -------------------------------


@message(90)
class NodeReport(Message):
    """Node → GCS, regularly and when something changes: what is free there and what waits."""

    available: Resources
    totals: Resources
    load: int  # workers that are wanted and not granted
    waiting: list[tuple[str, Resources, int]]  # description, request, count; a sample, for humans


@message(91)
class ClusterView(Message):
    """GCS → nodes: what has changed among the others since the last one. All at first."""

    nodes: list[tuple[Any, ...]]  # node_id, endpoint, address, totals, available, labels, load
    gone: list[bytes]


@message(92)
class Fenced(Message):
    """GCS → node: you count as dead. It ends what it runs, and comes back as a new node or not at all."""

    reason: str
    dismissed: bool  # the whole cluster ends, in good order


@message(93)
class Introduce(Message):
    """Owner → a node that is not its own, before all else: whose workers these will be."""

    job_id: bytes
    job_config: dict[str, Any]  # sys_path, cwd, namespace, env_vars, log_to_driver, as in Registered


@message(94)
class LeaseSpill(Message):
    """Own node → owner: ask that node for ``count`` of the workers that you want for this key."""

    key: int
    count: int
    node_id: bytes
    endpoint: str
    hold: bool  # that node is to queue it, whatever it has free


@message(95)
class LeaseDecline(Message):
    """A node that is not the owner's → owner: ``count`` of what you want here cannot be had soon."""

    key: int
    count: int


@message(96)
class NodeGone(Message):
    """Node → its processes: that other node counts as dead, even if connections to it seem to stand."""

    node_id: bytes


# --- placement groups: GCS ↔ node -----------------------------------------------------------------


@message(100)
class PrepareBundles(Message):
    """GCS → node: reserve all of these, or none. Answered by BundlesPrepared; idempotent by attempt."""

    group_id: bytes
    attempt: int
    bundles: list[tuple[int, Resources]]  # index in the group, what it holds


@message(101)
class BundlesPrepared(Message):
    """Node → GCS: they are reserved (or not)."""

    group_id: bytes
    attempt: int
    ok: bool
    node_id: bytes


@message(102)
class CommitBundles(Message):
    """GCS → node: everybody has reserved; open the bundles to tasks and actors."""

    group_id: bytes
    attempt: int


@message(103)
class ReleaseBundles(Message):
    """GCS → node: give the bundles back; what runs in them ends, what waits for them fails."""

    group_id: bytes
    attempt: int
    reason: str


# --- objects between nodes: node ↔ node -----------------------------------------------------------


@message(110)
class PullObject(Message):
    """Node → a node with a copy: send me this object."""

    request_id: int
    object_id: bytes
    location: Location


@message(111)
class PullGranted(Message):
    """The answer: it is pinned here, and its bytes come to whoever shows the ticket."""

    request_id: int
    size: int
    ticket: bytes


@message(112)
class PullRefused(Message):
    """The answer: it is not here (any more), or cannot be sent."""

    request_id: int
    reason: str


@message(113)
class PullDone(Message):
    """The puller has all of it, or gives up: the pin ends."""

    request_id: int
