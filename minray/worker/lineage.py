"""What an owner keeps of its finished tasks, so that results that are lost can be made again. Pure.

::

    a task ends, and a result of it lies in shared memory ──▶ Made ──(nobody needs it any more)──▶ gone
                                                              ▲  │
                                                   it ends    │  ▼  the node with the result is lost
                                       the task runs once more, behind those of its inputs that are lost, too

A Made is needed while one of its stored results is, or while a Made that took one of its results is: then the whole
chain can run again. It holds neither large values nor references: what was freed meanwhile is made again as well. So
lineage costs the size of the arguments that travelled with the task and of the small values that these only named,
and of that there is a bound: beyond it the oldest are given up, which the error says when it comes to it.

A task does not wait for what its arguments only name, so it may end first. What they name is held until it is there
(``Awaited``); then its value is kept if that is small, and else what made it.

Running once more is charged as a retry. Not made again are: what ``put`` made, the results of tasks with
max_retries=0 and of actors' methods with max_task_retries=0, the items of streaming generators, and what needs an
input that cannot be made again and was freed. Small results are not made again either, but known still, unless they
contain references and were there before the task that took them had ended. Only sessions of several nodes have
lineage: on one node, a stored object is lost together with its owner.

Called by worker.core. Invariants: ``results`` counts the records that name a Made, ``users`` the Mades that name it as
an input, and a Made with neither is gone (``check_invariants``); a task runs at most once at a time; what is awaited is
held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minray.wire.messages import ObjectLost, pack
from minray.worker.references import PENDING, ObjectRecord
from minray.worker.tasks import DYNAMIC, ERROR, INLINE, STORED, STREAMING, Task

if TYPE_CHECKING:
    from minray.worker.core import Core

ENTRY_BYTES = 800  # of a Made and its Task, about
KNOWN_BYTES = 200  # of a small value that it knows, beside the value
INDEX_OF_PUT = bytes(4)


class Final:
    """Stands for results that are not made again, and says why."""

    __slots__ = ("why",)

    def __init__(self, why: str) -> None:
        self.why = why

    def release(self) -> None:
        """A result is freed."""


PUT = Final("it was made by put(), and what put() made cannot be made again")
NO_RETRIES = Final("its task has no retries left (see max_retries)")
ACTOR = Final("an actor's method made it, and such a result is made again only with max_task_retries")
STREAM = Final("a streaming generator made it, and its items are not made again")


class Made:
    """A finished task: a result of it lies in shared memory, or is an input of another Made."""

    __slots__ = ("inputs", "known", "lineage", "nested", "results", "size", "task", "top", "users", "why")

    def __init__(self, lineage: Lineage, task: Task) -> None:
        self.lineage = lineage
        self.task = task
        self.top = list(task.top) if task.top is not None else None
        self.nested = task.nested
        self.known: dict[bytes, tuple[int, Any]] = {}  # inputs that are small: status and value
        self.inputs: dict[Made, None] = {}
        self.results = 0  # records of results that name it
        self.users = 0  # Mades that name it
        self.size = ENTRY_BYTES + _size(task.payload) + sum(_size(one[2]) for one in _filled(task))
        self.why = ""  # it cannot run again

    def release(self) -> None:
        """A result is freed."""
        self.results -= 1
        if not self.results and not self.users:
            self.lineage.forget(self)


class Awaited:
    """An argument that was only named, and not there yet when the task that took it had ended. Held until it is."""

    __slots__ = ("lineage", "made", "maker", "object_id")

    def __init__(self, lineage: Lineage, made: Made, object_id: bytes, maker: int) -> None:
        self.lineage = lineage
        self.made = made
        self.object_id = object_id
        self.maker = maker  # the task that makes it

    def ready(self, object_id: bytes, record: ObjectRecord) -> None:
        """It is there, or has failed."""
        self.lineage.on_awaited(self, record)


class Lineage:
    """All Mades of one process. ``limit``: bytes."""

    def __init__(self, core: Core, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._core = core
        self._made: dict[int, Made] = {}  # by seq, oldest first
        self._come: dict[int, list[Awaited]] = {}  # by maker, whose outcome is about to be told

    # -- what is kept --------------------------------------------------------------------------------

    def on_outcome(self, task: Task) -> None:
        """A task has ended; its results are in their records, its arguments are still held."""
        stored = [record for record in self._results_of(task) if record.status == STORED]
        come = self._come.pop(task.seq, ()) if self._come else ()
        if not stored and not come:
            return
        final = _final(task)
        made = self._made.get(task.seq)
        if final is None and made is None:
            made = self._keep(task)
        for record in stored:
            if record.made is not None and record.made is not made:
                record.made.release()
                record.made = None
            if record.made is None:
                record.made = made or final
                if made is not None:
                    made.results += 1
        for awaited in come:
            if made is not None:
                self._add_input(awaited.made, made)
            self._core.refs.unhold(awaited.object_id)
        if made is not None and not made.results and not made.users:
            self.forget(made)
        if self.bytes > self.limit:
            self._shrink()

    def _keep(self, task: Task) -> Made:
        task.parent = None  # it has been waited for; what submitted it need not stay
        made = self._made[task.seq] = Made(self, task)
        self.bytes += made.size
        for object_id in dict.fromkeys(_argument_ids(task.top, task.nested)):
            maker = self._maker_of(object_id)
            if maker is not None:
                self._add_input(made, maker)
        for object_id in dict.fromkeys(task.nested):
            record = self._core.objects[object_id]
            if record.owner is None and self._maker_of(object_id) is None:
                self._know_later(made, object_id, record)
        for _, status, value, object_id, _ in _filled(task):
            if object_id not in task.nested and _is_complete(status, value):
                made.known[object_id] = (status, value)  # it counts as an argument
        return made

    def _maker_of(self, object_id: bytes) -> Made | None:
        """What is kept of the task that has made it. (Index 0 is what was put: also a task's own large arguments.)"""
        seq = self._core.seq_of(object_id)
        return None if seq is None or object_id[24:] == INDEX_OF_PUT else self._made.get(seq)

    def _add_input(self, made: Made, maker: Made) -> None:
        if self._is_kept(made) and maker not in made.inputs:
            made.inputs[maker] = None
            maker.users += 1

    def _is_kept(self, made: Made) -> bool:
        return self._made.get(made.task.seq) is made

    # -- what was only named, and is small or not there yet --------------------------------------------

    def _know_later(self, made: Made, object_id: bytes, record: ObjectRecord) -> None:
        if record.status == PENDING:
            if isinstance(record.task, Task) and _final(record.task) is None:
                self._core.refs.hold(object_id)
                self._core.when_ready(object_id, record, Awaited(self, made, object_id, record.task.seq))
        elif record.task is None and _is_complete(record.status, record.value):  # else it stands for an actor
            made.known[object_id] = (record.status, record.value)
            size = KNOWN_BYTES + (_size_of_error if record.status == ERROR else _size)(record.value)
            made.size += size
            self.bytes += size

    def on_awaited(self, awaited: Awaited, record: ObjectRecord) -> None:
        """It has come. If it is too large to keep, its task is kept as soon as that has told its outcome."""
        if not self._is_kept(awaited.made):
            self._core.refs.unhold(awaited.object_id)
        elif _is_complete(record.status, record.value):
            self._know_later(awaited.made, awaited.object_id, record)
            self._core.refs.unhold(awaited.object_id)
            if self.bytes > self.limit:
                self._shrink()
        else:
            self._come.setdefault(awaited.maker, []).append(awaited)

    def _results_of(self, task: Task) -> list[ObjectRecord]:
        core, n = self._core, task.num_returns
        if n == STREAMING:
            stream = task.stream
            assert stream is not None
            ids = [core.object_id(task.seq, 2 + i) for i in range(stream.produced)]
        else:
            ids = [core.object_id(task.seq, 1 + i) for i in range(1 if n == DYNAMIC else n)]
        return [core.objects[object_id] for object_id in ids if object_id in core.objects]

    def forget(self, made: Made) -> None:
        """Nobody needs it, nor perhaps what only it needed. A stack, not recursion: chains may be long."""
        stack = [made]
        while stack:
            made = stack.pop()
            if not self._is_kept(made):
                continue  # it was given up earlier
            del self._made[made.task.seq]
            self.bytes -= made.size
            stack += self._let_go(made)

    @staticmethod
    def _let_go(made: Made) -> list[Made]:
        """It needs its inputs no more. Returns those that nobody needs now."""
        inputs, made.inputs = made.inputs, {}
        for one in inputs:
            one.users -= 1
        return [one for one in inputs if not one.users and not one.results]

    def _shrink(self) -> None:
        """Too much: give up the oldest. What they made lives on, but cannot be made again."""
        while self.bytes > self.limit and self._made:
            made = next(iter(self._made.values()))
            made.why = f"the lineage of its task was given up, for it is bounded: lineage_bytes={self.limit}"
            del self._made[made.task.seq]
            self.bytes -= made.size
            made.task, made.top, made.nested, made.known = _GIVEN_UP, None, (), {}
            for one in self._let_go(made):
                self.forget(one)

    # -- what is lost ----------------------------------------------------------------------------------

    def on_unreadable(self, object_id: bytes, location: Any, reason: str) -> None:
        """This process cannot read what should lie at ``location``. If the owner is another one: it is told, and
        asked for the object once more."""
        core = self._core
        record = core.objects[object_id]
        if record.owner is None:
            self.on_lost(object_id, location, reason)
        elif record.status == STORED and record.value[0] == location:
            if record.owner[1] not in core.dead:
                core.effects.append(("send", record.owner, pack(ObjectLost(object_id, location, reason))))
            inner, record.contains = record.contains, ()
            record.status, record.value = PENDING, None
            for one in inner:
                core.refs.unhold(one)
            core.fetch(object_id, record)

    def on_lost(self, object_id: bytes, location: Any, reason: str) -> None:
        """Owner: no copy of it can be had, says a process that has looked at ``location``."""
        record = self._core.objects.get(object_id)
        if record is None or record.owner is not None or record.status != STORED or record.value[0] != location:
            return  # it is made again already, or was
        todo: list[Made] = []
        self._take_back(object_id, record, reason, todo)
        while todo:
            self._run_again(todo.pop(), location[0], reason, todo)

    def await_lost(self, task: Task, waiter: Any) -> bool:
        """All arguments of a task have come, one after the other: what was lost meanwhile is waited for again. False:
        nothing was."""
        for _, object_id in task.top or ():
            record = self._core.objects[object_id]
            if record.status == PENDING:
                task.unresolved += 1
                self._core.when_ready(object_id, record, waiter)
        return task.unresolved > 0

    def _take_back(self, object_id: bytes, record: ObjectRecord, reason: str, todo: list[Made]) -> None:
        """The record of a lost object has no value any more: it waits for its task, or has failed."""
        inner, record.contains = record.contains, ()
        record.status, record.value, record.shared = PENDING, None, False
        made = record.made if record.made is not None else PUT
        for one in inner:
            self._core.refs.unhold(one)
        why = made.why or (_final_why(made.task) if isinstance(made, Made) else "")
        if why:
            self._core.complete(object_id, ERROR, ("unmade", object_id, reason, why))
        else:
            assert isinstance(made, Made)
            record.task = made.task
            todo.append(made)

    def _run_again(self, made: Made, node_id: bytes, reason: str, todo: list[Made]) -> None:
        core, task = self._core, made.task
        if task.seq in core.owner.tasks or task.seq in core.calls.tasks or made.why:
            return
        ids = [core.object_id(task.seq, 1 + i) for i in range(max(1, task.num_returns))]
        for object_id in ids:  # its other results were in the same place
            record = core.objects.get(object_id)
            if record is not None and _lies_at(record, node_id):
                self._take_back(object_id, record, reason, [])
        missing = self._missing_input(made)
        if missing is not None:
            why = f"it is made from object {missing.hex()}, which was freed and cannot be made again"
            self._fail(task, ids, reason, why)
            return
        task.top = None if made.top is None else [(where, self._input(i, made.known)) for where, i in made.top]
        task.nested = made.nested
        inputs = self._recall_inputs(made, todo)
        for object_id in inputs:
            if _lies_at(core.objects[object_id], node_id):
                self._take_back(object_id, core.objects[object_id], reason, todo)
        task.attempt += 1
        task.retries -= task.retries > 0
        task.extra = None if task.actor is None else _without_top(task.extra)
        task.error, task.cancelled, task.unresolved = None, False, 0
        core.submit(task, 0.0, ids)
        for object_id in inputs:
            core.refs.unhold(object_id)

    def _fail(self, task: Task, ids: list[bytes], reason: str, why: str) -> None:
        """Those of its results that wait for it cannot be had."""
        task.top, task.nested = None, ()
        for object_id in ids:
            record = self._core.objects.get(object_id)
            if record is not None and record.status == PENDING:
                self._core.complete(object_id, ERROR, ("unmade", object_id, reason, why))

    def _missing_input(self, made: Made) -> bytes | None:
        """One of its inputs that was freed and cannot be made again."""
        for object_id in dict.fromkeys(_argument_ids(made.top, made.nested)):
            if object_id in self._core.objects or object_id in made.known:
                continue
            maker = self._maker_of(object_id)
            if maker is None or _final_why(maker.task):
                return object_id
        return None

    def _input(self, object_id: bytes, known: dict[bytes, tuple[int, Any]]) -> bytes:
        """The id under which a small value is to be had: another one, if the object was freed meanwhile."""
        if object_id in self._core.objects or object_id not in known:
            return object_id
        again = self._core.object_id(self._core.next_seq(), 0)
        self._own(again, known[object_id])
        return again

    def _own(self, object_id: bytes, known: tuple[int, Any] = (PENDING, None)) -> ObjectRecord:
        """There once more, until the task holds it."""
        record = self._core.refs.own(object_id, local=0)
        record.status, record.value = known
        return record

    def _recall_inputs(self, made: Made, todo: list[Made]) -> list[bytes]:
        """Let what was freed of its inputs be made again. Returns all of them, held: the loss of one may be the end of
        another."""
        inputs = _argument_ids(made.task.top, made.task.nested)
        for object_id in inputs:
            if object_id not in self._core.objects:
                if object_id in made.known:
                    self._own(object_id, made.known[object_id])
                else:
                    maker = self._maker_of(object_id)
                    assert maker is not None, f"input {object_id.hex()} is missing"
                    record = self._own(object_id)
                    record.task, record.made = maker.task, maker
                    maker.results += 1
                    todo.append(maker)
            self._core.refs.hold(object_id)
        return inputs

    # -- invariants ------------------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """Raise AssertionError if the counts are wrong."""
        results: dict[Made, int] = {}
        users: dict[Made, int] = {}
        for record in self._core.objects.values():
            if isinstance(record.made, Made):
                results[record.made] = results.get(record.made, 0) + 1
        for made in self._made.values():
            for one in made.inputs:
                users[one] = users.get(one, 0) + 1
        for seq, made in self._made.items():
            assert made.task.seq == seq and not made.why, f"task {seq}: is given up"
            assert made.results == results.get(made, 0), f"task {seq}: {made.results} results counted"
            assert made.users == users.get(made, 0), f"task {seq}: {made.users} users counted"
            assert made.results or made.users, f"task {seq}: nobody needs its lineage"
        assert self.bytes == sum(made.size for made in self._made.values()), "the sum of sizes is wrong"


def _final(task: Task) -> Final | None:
    """Why the results of that task are not made again; None: they are."""
    if task.num_returns == STREAMING:
        return STREAM
    if task.retries == 0:
        return NO_RETRIES if task.actor is None else ACTOR
    return None


def _final_why(task: Task) -> str:
    final = _final(task)
    return "" if final is None else final.why


def _argument_ids(top: list[tuple[Any, bytes]] | None, nested: tuple[bytes, ...]) -> list[bytes]:
    return [*(object_id for _, object_id in top or ()), *nested]


def _filled(task: Task) -> list[tuple[Any, ...]]:
    """The top-level arguments as they travelled: (where, status, value, id, owner)."""
    return [] if task.extra is None else task.extra.get("top", [])


def _without_top(extra: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if extra is None else {name: value for name, value in extra.items() if name != "top"} or None


def _lies_at(record: ObjectRecord, node_id: bytes) -> bool:
    return record.owner is None and record.status == STORED and record.value[0][0] == node_id


def _is_complete(status: int, value: Any) -> bool:
    """Whether the value says it all: it is small, and contains no references."""
    return status == ERROR or (status == INLINE and (type(value) is bytes or not value[2]))


def _size(value: Any) -> int:
    """Bytes of a payload, about."""
    if type(value) is bytes:
        return len(value)
    if type(value) is tuple and len(value) == 3 and type(value[0]) is bytes:
        return len(value[0]) + sum(map(len, value[1]))
    return 0


def _size_of_error(value: Any) -> int:
    """Bytes of an error value, about: of its texts, and of its causes'."""
    if isinstance(value, (bytes, str)):
        return len(value)
    return sum(map(_size_of_error, value)) if type(value) is tuple else 0


_GIVEN_UP = Task(0, "given up", b"", None, 0, 0)
