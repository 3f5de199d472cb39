"""Every message that crosses a process boundary, in one place.

A message on the wire is a tuple of built-in values whose first item is a small integer tag. Tags are
only ever appended. Two kinds exist:

* **control messages** are frozen slotted classes, registered by ``@message(tag)``; ``pack`` and
  ``unpack`` turn them into tuples and back (see ``control``);
* **hot messages** (task batches, results, releases) are plain tuples, because building a dataclass
  costs as much as the rest of the work. Their layout is written beside their tag below.

Ids are ``bytes``; resources are ``dict[str, int]`` in units of 1/10000; an *address* is the tuple
``(node_id, worker_id, endpoint)``; a *location* is ``(node_id, segment_id, offset, length)``; a
*payload* is what ``worker.serialization`` produced, opaque here (``bytes``, or a tuple of built-ins).
"""

from __future__ import annotations

from typing import Any

from minray.wire.cluster_messages import (
    BundlesPrepared,
    ClusterView,
    CommitBundles,
    Fenced,
    Introduce,
    LeaseDecline,
    LeaseSpill,
    NodeGone,
    NodeReport,
    PrepareBundles,
    PullDone,
    PullGranted,
    PullObject,
    PullRefused,
    ReleaseBundles,
)
from minray.wire.control import Address, Location, Message, Resources, message, pack, unpack

__all__ = [  # and every message below
    "Address",
    "BundlesPrepared",
    "ClusterView",
    "CommitBundles",
    "Fenced",
    "Introduce",
    "LeaseDecline",
    "LeaseSpill",
    "Location",
    "Message",
    "NodeGone",
    "NodeReport",
    "PrepareBundles",
    "PullDone",
    "PullGranted",
    "PullObject",
    "PullRefused",
    "ReleaseBundles",
    "Resources",
    "message",
    "pack",
    "unpack",
]

# --- hot messages: plain tuples ---------------------------------------------------------------
#
# TASKS    owner → leased worker: (TASKS, lease_no, [spec, …], {function_id: pickled function} or None)
# CALLS    caller → actor's worker: (CALLS, incarnation, [spec, …], {…} or None)
#          spec = (seq, attempt, function_id or method name, args payload, extra dict or None)
# RESULTS  worker → owner: (RESULTS, [result, …])
#          result = (seq, attempt, status, value, exec_ns, retained or None)
# RELEASES borrower → owner: (RELEASES, [(object_id, grants), …])
# BORROWS  any → owner: (BORROWS, [(object_id, taker's Address), …]): the taker is one grant richer
# FETCH    borrower → owner: (FETCH, [object_id, …]): answer each with VALUES as soon as it is there
# VALUES   owner → borrower: (VALUES, [(object_id, status, value), …])
TASKS, CALLS, RESULTS, RELEASES, BORROWS, FETCH, VALUES = 1, 2, 3, 4, 5, 6, 7


# --- any two processes ------------------------------------------------------------------------


@message(20)
class Hello(Message):
    """The first frame on every connection, from the side that dialled. Names who speaks."""

    role: str  # "driver", "worker", "node", "tool"
    worker_id: bytes  # identity of the process, new for each process; a node's id for role "node"
    node_id: bytes  # b"" where not known yet
    job_id: bytes  # b"" where not known yet
    pid: int
    start_time: float  # the process's start as psutil tells it: pid + start_time is a life
    endpoint: str  # where this process listens; "" if it does not


@message(21)
class Request(Message):
    """A call that is answered by one Reply with the same ``request_id`` on the same connection."""

    request_id: int
    method: str
    args: tuple[Any, ...]


@message(22)
class Reply(Message):
    """The answer. ``ok`` False: ``value`` is ``(error kind, text)``, e.g. ``("ValueError", "…")``."""

    request_id: int
    ok: bool
    value: Any


# --- core worker (driver or worker) ↔ its node ------------------------------------------------


@message(30)
class Register(Message):
    """First message of a core worker to its node, after Hello."""

    is_driver: bool
    worker_number: int  # for a worker: the number the node forked it under; -1 for a driver
    job_info: dict[str, Any]  # driver: namespace or None, entrypoint, sys_path, cwd, metadata


@message(31)
class Registered(Message):
    """The node's answer: who and where the process is, and what it needs to work."""

    node_id: bytes
    node_address: str
    gcs_endpoint: str  # equal to the node's own endpoint on the head's machine
    job_id: bytes
    session: dict[str, Any]  # name, dir, temp_dir, log_dir, totals of resources, labels, namespace,
    #                          segment_dir, node_name, status_page (path), slot (index in that page)
    job_config: dict[str, Any]  # for workers: sys_path, cwd, namespace, env_vars of their job


@message(32)
class LeaseDemand(Message):
    """Owner → node: for this key I want ``wanted`` workers in all (0 ends the demand). Absolute,
    so that it can be repeated and replaced; the node answers with LeaseGrants while there is room."""

    key: int  # the owner's own number of the scheduling key
    wanted: int
    resources: Resources
    depth: int  # nesting depth of the tasks: deeper is served first
    strategy: Any  # None, "SPREAD", or a tuple such as ("affinity", node_id, soft)
    env_vars: dict[str, str]  # runtime_env's; workers are shared only among equals
    description: str  # what a message about infeasibility calls it, e.g. "task f"
    refused: int  # workers that this node has spilled or declined, in all, as far as the owner has heard
    hold: bool  # to a node that is not the owner's: queue it, rather than decline
    again: bool  # what runs there is tried again if its worker dies


@message(33)
class LeaseGrant(Message):
    """Node → owner: this worker is yours, under this lease number (which grows per worker)."""

    key: int
    lease_no: int
    worker: Address
    resource_ids: dict[str, list[tuple[int, int]]]  # e.g. {"GPU": [(0, 10000)]}


@message(34)
class LeaseConfirm(Message):
    """Node → worker: from now on you serve this lease. Specs of smaller numbers bounce."""

    lease_no: int
    owner: Address
    job_id: bytes
    resources: Resources
    resource_ids: dict[str, list[tuple[int, int]]]


@message(35)
class LeaseReturn(Message):
    """Owner → node: I need this lease no more; nothing of mine is unfinished there."""

    lease_no: int
    retire: bool  # end the worker too (max_calls reached)


@message(36)
class LeaseRevoke(Message):
    """Node → worker: end this lease. The worker finishes the running task, gives the unstarted ones
    back to the owner by GiveBack(ended=True) and then answers LeaseEnded."""

    lease_no: int


@message(37)
class LeaseEnded(Message):
    """Worker → node: nothing of this lease runs here any more."""

    lease_no: int


@message(38)
class LeaseInfeasible(Message):
    """Node → owner: no node can ever satisfy this demand. ``fatal`` False is a warning to be shown
    once, True (after the grace) means: fail the tasks of that key with TaskUnschedulableError."""

    key: int
    fatal: bool
    text: str  # the request and every node's totals


@message(39)
class Blocked(Message):
    """Worker → node: user code waits for the runtime; its CPUs may be lent to others."""

    lease_no: int  # -1 for an actor


@message(40)
class Unblocked(Message):
    """Worker → node: it goes on, at once; the balance may be negative for a while."""

    lease_no: int


@message(41)
class Watch(Message):
    """Core worker → node (→ GCS → that node): tell me by Died when this process ends; at once if it is
    dead already."""

    worker_id: bytes
    node_id: bytes  # of the process; b"": this node's


@message(42)
class Died(Message):
    """Node → watchers, and → the owner that holds the dead worker's lease (``lease_no`` ≥ 0)."""

    worker_id: bytes
    lease_no: int
    running_seq: int  # sequence number and attempt of the task that it was running, or -1
    running_attempt: int
    cause: dict[str, Any]  # text, exit_code, signal, oom (guess), peak_rss (bytes), log_tail (list),
    #                        stack (text of faulthandler), expected (True for an ordered end)


@message(43)
class KillWorker(Message):
    """Owner → node: end the leased worker by force (cancel(force=True))."""

    lease_no: int


@message(44)
class ExitWorker(Message):
    """Node → worker: end yourself: gracefully (atexit runs, output is flushed), or at once."""

    graceful: bool
    reason: str


@message(45)
class LogLines(Message):
    """Node → driver: lines of a worker's output, each without its newline."""

    worker_pid: int
    name: str  # function or class that runs there
    is_stderr: bool
    lines: list[str]


@message(46)
class LogAck(Message):
    """Driver → node: this many bytes of lines have been printed (flow control)."""

    count: int


@message(47)
class WorkerName(Message):
    """Worker → node: the name that its log lines carry from now on (function or actor class)."""

    name: str


# --- object store -----------------------------------------------------------------------------


@message(50)
class ExtentRequest(Message):
    """Process → node: a segment of at least ``size`` bytes to write into."""

    request_id: int
    size: int


@message(51)
class ExtentGrant(Message):
    """Node → process: yours to allocate in. ``name`` opens it (see store.segments)."""

    request_id: int
    segment_id: int
    name: str
    size: int


@message(52)
class ExtentRefused(Message):
    """Node → process: after the grace nothing could be freed. ``info`` says how full and with what."""

    request_id: int
    info: dict[str, Any]


@message(53)
class ExtentReturn(Message):
    """Process → node: these segments of mine are empty and may go."""

    segment_ids: list[int]


@message(54)
class Sealed(Message):
    """Writer → node, before anybody else hears of it: these objects live there."""

    objects: list[tuple[bytes, bytes, int, int, int]]  # object_id, owner's worker_id, segment, offset, length


@message(55)
class Free(Message):
    """Owner → node: nobody references these any more (deferred there while somebody pins them). Or their
    writer, of what it tells nobody of."""

    objects: list[tuple[bytes, int, int, int]]  # object_id, segment, offset, length


@message(56)
class Freed(Message):
    """Node → writer: these ranges of your extents are yours again."""

    ranges: list[tuple[int, int, int]]  # segment, offset, length
    wanted: bool  # others come first: return what is empty before you use it


@message(57)
class Pin(Message):
    """Process → node: keep these where they are while I read them (one message per batch)."""

    request_id: int
    objects: list[tuple[bytes, Location]]


@message(58)
class Pinned(Message):
    """Node → process: per object ``("pinned", segment name, segment size, location)``,
    ``("moved", …the same)`` when it is pinned but elsewhere, or ``("gone", reason)``."""

    request_id: int
    answers: list[tuple[Any, ...]]


@message(59)
class Unpin(Message):
    """Process → node: the last view of these is gone, once per Pin."""

    objects: list[bytes]


@message(60)
class Trim(Message):
    """Node → writers: memory is short. Return what is empty, report what may go to disk, then say Trimmed."""


@message(61)
class SegmentsGone(Message):
    """Node → who ever pinned something there: these segments are unlinked, unmap them."""

    segment_ids: list[int]


@message(62)
class Narrow(Message):
    """Process → node: of these pinned objects I still read only these ranges ``(start, end)``, relative
    to the object. Holds until its last Unpin or its next Pin; lets the rest go once the object is freed."""

    objects: list[tuple[bytes, list[tuple[int, int]]]]


@message(63)
class Trimmed(Message):
    """Writer → node, for each Trim: what is empty has come back, and what was private is reported."""


@message(64)
class ExtentCancel(Message):
    """Process → node: that request is not needed any more. What was granted meanwhile stays granted."""

    request_id: int


@message(65)
class StoreReport(Message):
    """Node → GCS, when it changes: how much of its objects is on disk, for humans."""

    store: dict[str, int]  # on_disk, spilled_bytes, restored_bytes


@message(66)
class LeftBehind(Message):
    """Node → owner: a process that is dead had written these for you, whether or not it could tell you so."""

    node_id: bytes  # where they lie
    objects: list[tuple[bytes, int, int, int]]  # object_id, segment, offset, length


# --- owner ↔ leased worker or actor -----------------------------------------------------------


@message(70)
class Steal(Message):
    """Owner → worker: give back up to ``count`` tasks that have not started, from the tail."""

    lease_no: int
    count: int


@message(71)
class GiveBack(Message):
    """Worker → owner: these have not run here and will not. ``ended``: the lease is over."""

    lease_no: int
    seqs: list[tuple[int, int]]  # seq, attempt
    ended: bool
    blocked: bool  # the worker waits inside the runtime: send nothing until it says Ready


@message(72)
class Ready(Message):
    """Worker → owner: unblocked, specs are welcome again."""

    lease_no: int


@message(73)
class Cancel(Message):
    """Owner → worker: this attempt is not wanted any more."""

    seq: int
    attempt: int
    recursive: bool


@message(74)
class StreamAck(Message):
    """Owner → worker: so many items of this generator have been consumed (backpressure)."""

    seq: int
    attempt: int
    consumed: int


@message(75)
class PinForever(Message):
    """Any → owner: this reference left the runtime (plain pickle); keep the object for your life."""

    object_id: bytes


@message(76)
class ObjectLost(Message):
    """Borrower → owner: no copy of it can be had from where you said it lies."""

    object_id: bytes
    location: Location
    reason: str


# --- actors: GCS ↔ callers, GCS ↔ node, node ↔ worker -----------------------------------------


@message(80)
class ActorUpdate(Message):
    """GCS → subscribers of an actor. ``state``: PENDING, ALIVE, RESTARTING, DEAD."""

    actor_id: bytes
    state: str
    incarnation: int
    address: Any  # Address when ALIVE, else None
    cause: dict[str, Any]  # why it is RESTARTING or DEAD; "creation_error": payload if __init__ raised


@message(81)
class StartActor(Message):
    """GCS → node, idempotent by (actor_id, incarnation): dedicate a worker to this actor."""

    actor_id: bytes
    incarnation: int
    spec: dict[str, Any]  # see gcs.actors.ActorSpec


@message(82)
class StopActor(Message):
    """GCS → node: end that actor's worker; gracefully (after its queue) or at once."""

    actor_id: bytes
    incarnation: int
    graceful: bool
    reason: str


@message(83)
class CreateActor(Message):
    """Node → worker: become this actor. The worker answers ActorStarted."""

    actor_id: bytes
    incarnation: int
    spec: dict[str, Any]
    resource_ids: dict[str, list[tuple[int, int]]]


@message(84)
class ActorStarted(Message):
    """Worker → node → GCS: ``__init__`` has run. ``error``: payload of what it raised, or None."""

    actor_id: bytes
    incarnation: int
    address: Any
    error: Any


@message(85)
class ActorEnded(Message):
    """Node → GCS: the worker of that incarnation is gone (or could never be placed)."""

    actor_id: bytes
    incarnation: int
    cause: dict[str, Any]  # as in Died; "unschedulable": True where no node could hold it;
    #                        "intended": True after exit_actor, StopActor or __ray_terminate__
