"""The reference table alone: each count, and then several processes in every order that sockets allow.

``Processes`` is a model of what processes do with references: put, call, answer, yield, fetch, forget, die. The
messages between them are in order per pair, and in any order between pairs. Never is an object freed while
somebody who is alive can still ask for it; and when all let go, nothing is left.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from minray.wire.messages import Address
from minray.worker.references import ERROR, INLINE, PENDING, STORED, ReferenceTable

NODE = b"n" * 28
EXAMPLES = int(os.environ.get("MINRAY_TEST_SEEDS", "60"))


def address(name: str) -> Address:
    return (NODE, name.encode() * 28, f"unix:/{name}")


A, B, C, D = (address(name) for name in "ABCD")
X, Y, Z = b"x" * 28, b"y" * 28, b"z" * 28


class Table(ReferenceTable):
    """A table that owns its effects."""

    def __init__(self, me: Address) -> None:
        super().__init__(me, [])

    def did(self) -> list[tuple[Any, ...]]:
        """The effects since the last call; a freed record as its id only."""
        made = [effect[:2] if effect[0] == "freed" else effect for effect in self.effects]
        self.effects.clear()
        self.check_invariants()
        return made


# -- one process -----------------------------------------------------------------------------------


def test_the_last_local_reference_frees() -> None:
    table = Table(A)
    table.own(X, local=2).status = STORED
    table.drop(X)
    assert table.did() == []
    table.drop(X)
    assert table.did() == [("freed", X)]
    assert not table.objects


def test_small_objects_go_without_a_word_but_unfinished_ones_are_told() -> None:
    table = Table(A)
    table.own(X).status = INLINE
    table.drop(X)
    assert table.did() == []
    table.own(Y).task = object()
    table.drop(Y)
    assert table.did() == [("freed", Y)]


def test_a_hold_keeps_what_has_no_reference() -> None:
    table = Table(A)
    table.own(X).status = STORED
    table.hold(X)
    table.drop(X)
    assert table.did() == []
    table.unhold(X)
    assert table.did() == [("freed", X)]


def test_an_unknown_object_of_this_process_cannot_be_held() -> None:
    table = Table(A)
    with pytest.raises(KeyError, match="not known here"):
        table.hold(X)
    with pytest.raises(KeyError, match="not known here"):
        table.hold(X, A)
    table.drop(X)  # of an earlier session: no effect
    table.unhold(X)
    assert table.did() == []


def test_an_outer_object_keeps_the_inner_ones() -> None:
    table = Table(A)
    for object_id in (X, Y, Z):
        table.own(object_id).status = STORED
    table.set_contains(table.objects[X], (Y, Y, Z))
    table.set_contains(table.objects[Y], (Z,))
    for object_id in (Y, Z):
        table.drop(object_id)
    assert table.did() == []
    table.drop(X)
    assert sorted(table.did()) == [("freed", X), ("freed", Y), ("freed", Z)]


def test_a_chain_longer_than_the_stack() -> None:
    table = Table(A)
    ids = [i.to_bytes(28, "big") for i in range(20_000)]
    before = table.own(ids[0])
    for object_id in ids[1:]:
        record = table.own(object_id)
        table.set_contains(record, (ids[ids.index(object_id) - 1] if before is None else before_id(object_id),))
        table.drop(before_id(object_id))
    table.drop(ids[-1])
    assert not table.objects


def before_id(object_id: bytes) -> bytes:
    return (int.from_bytes(object_id, "big") - 1).to_bytes(28, "big")


def test_a_pinned_object_stays() -> None:
    table = Table(A)
    table.own(X)
    table.pin_forever(X)
    table.pin_forever(Y)  # unknown: no effect
    table.drop(X)
    assert table.did() == []
    assert X in table.objects


# -- lending and borrowing ---------------------------------------------------------------------------


def test_the_owner_counts_whom_it_gives_to() -> None:
    table = Table(A)
    table.own(X).status = STORED
    assert table.give(X, B) is True
    assert table.did() == [("watch", B)]
    assert table.give(X, B) is True
    table.drop(X)
    table.on_releases(B[1], [(X, 1)])
    assert table.did() == []
    table.on_releases(B[1], [(X, 1)])
    assert table.did() == [("freed", X)]


def test_a_borrower_gives_its_grants_back_at_once() -> None:
    table = Table(B)
    assert table.receive([(X, A, True), (X, A, True)]) == (X, X)
    table.set_contains(table.own(Y), (X, X))
    table.borrow(X, A)
    assert table.did() == [("watch", A)]
    table.drop(Y)
    assert table.did() == []
    table.drop(X)
    assert table.did() == [("release", A, X, 2), ("freed", X)]


def test_nobody_grants_to_the_owner() -> None:
    table = Table(B)
    table.receive([(X, A, True)])
    table.borrow(X, A)
    assert table.give(X, A) is False
    assert table.did() == [("watch", A)]


def test_a_borrower_in_its_own_right_tells_the_owner_whom_it_gives_to() -> None:
    table = Table(B)
    table.receive([(X, A, True)])
    table.borrow(X, A)
    table.did()
    assert table.give(X, C) is True
    assert table.did() == [("borrow", A, X, C)]


def test_releases_may_overtake_the_borrows_that_they_answer() -> None:
    table = Table(A)
    table.own(X).status = STORED
    table.give(X, B)
    table.drop(X)
    table.on_releases(C[1], [(X, 1)])  # B gave it to C; C is quicker than B's word
    assert X in table.objects
    table.on_borrows([(X, C)])
    table.on_releases(B[1], [(X, 1)])
    assert table.did()[-1] == ("freed", X)


def test_borrows_of_what_is_gone_or_not_ours_are_ignored() -> None:
    table = Table(A)
    table.on_borrows([(X, B)])
    table.on_releases(B[1], [(X, 1)])
    table.receive([(Y, B, True)])
    table.borrow(Y, B)
    table.on_borrows([(Y, C)])
    table.on_releases(C[1], [(Y, 1)])
    assert table.did() == [("watch", B)]


def test_arguments_cost_no_message() -> None:
    worker = Table(B)
    worker.borrow(X, A)
    worker.drop(X)
    assert worker.end_scope([X]) is None
    assert worker.did() == [("watch", A), ("freed", X)]


def test_a_task_that_keeps_an_argument_says_so_in_its_reply() -> None:
    worker, caller = Table(B), Table(A)
    caller.own(X).status = STORED
    caller.hold(X)
    worker.borrow(X, A)
    retained = worker.end_scope([X, X])
    assert retained == [(X, B)]
    caller.on_retained(retained)
    caller.unhold(X)
    caller.drop(X)
    assert X in caller.objects
    worker.drop(X)
    assert worker.did()[-2:] == [("release", A, X, 1), ("freed", X)]
    caller.on_releases(B[1], [(X, 1)])
    assert not caller.objects


def test_what_a_task_promises_goes_up_with_the_reply() -> None:
    worker = Table(B)
    worker.borrow(X, A)
    assert worker.give(X, C) is True  # somebody fetched an object of ours with X inside
    worker.drop(X)
    assert X in worker.objects  # until the reply
    assert worker.end_scope([X]) == [(X, C)]
    assert not worker.objects


def test_a_promise_is_passed_up_by_who_has_the_object_only_as_an_argument_itself() -> None:
    middle = Table(B)
    middle.borrow(X, A)
    middle.hold(X)  # an argument of a nested task
    middle.on_retained([(X, D)])
    assert middle.did() == [("watch", A)]
    middle.unhold(X)
    middle.drop(X)
    assert middle.end_scope([X]) == [(X, D)]


def test_a_promise_to_the_caller_itself_is_made_good_by_it() -> None:
    """The worker, which had X from us, gave us X inside an object of its own: the owner has to hear of it."""
    caller = Table(B)
    caller.receive([(X, A, True)])
    caller.borrow(X, A)
    caller.hold(X)  # as the argument
    caller.did()
    caller.receive([(X, A, True)])  # promised by the worker
    caller.on_retained([(X, B)])
    assert caller.did() == [("borrow", A, X, B)]
    caller.unhold(X)
    caller.drop(X)
    assert caller.did()[0] == ("release", A, X, 2)


def test_a_promise_does_not_entitle_who_has_to_make_it_good() -> None:
    """The same, but the caller has X only as an argument itself, and its own task ends first."""
    caller = Table(B)
    caller.borrow(X, A)
    caller.hold(X)  # as the argument of a nested task, which outlives ours
    caller.receive([(X, A, True)])  # promised by the nested task
    caller.drop(X)
    assert caller.end_scope([X]) == [(X, B)]  # our caller must count us: nobody else does yet
    caller.on_retained([(X, B)])  # the nested task's reply
    assert caller.did() == [("watch", A), ("borrow", A, X, B)]
    caller.unhold(X)
    assert caller.did()[0] == ("release", A, X, 2)


def test_the_caller_of_the_caller_passes_a_promise_to_itself_up() -> None:
    caller = Table(B)
    caller.borrow(X, A)
    caller.hold(X)
    caller.receive([(X, A, True)])
    caller.on_retained([(X, B)])
    caller.unhold(X)
    assert sorted(caller.end_scope([X]) or ()) == [(X, B), (X, B)]
    caller.drop(X)
    assert caller.did()[-2:] == [("release", A, X, 2), ("freed", X)]


def test_a_value_that_goes_to_its_own_sender_keeps_what_is_inside() -> None:
    """A worker may run a task of its own: the result travels to itself."""
    table = Table(A)
    table.own(X).status = STORED
    assert table.give(X, A) is True
    table.drop(X)
    assert table.did() == []
    table.receive([(X, A, True)])
    table.hold(X)
    assert table.objects[X].status == STORED
    table.unhold(X)
    assert table.did() == [("freed", X)]


def test_a_borrowed_reference_on_its_way_to_oneself() -> None:
    table = Table(B)
    table.receive([(X, A, True)])
    table.borrow(X, A)
    table.did()
    assert table.give(X, B) is True
    table.drop(X)
    assert table.did() == [("borrow", A, X, B), ("release", A, X, 1), ("freed", X)]


def test_what_a_constructor_keeps_is_told_to_the_owner() -> None:
    actor = Table(B)
    actor.borrow(X, A)
    actor.borrow(Y, A)
    actor.drop(Y)
    actor.adopt_scope([X, Y])
    assert ("borrow", A, X, B) in actor.did()
    assert list(actor.objects) == [X]


def test_an_adopted_reference_needs_no_grant() -> None:
    """It came by plain pickle, so its owner keeps it for life; it can still be passed on."""
    table = Table(B)
    table.adopt(X, A)
    assert table.give(X, C) is True
    assert table.did() == [("watch", A), ("borrow", A, X, C)]
    table.drop(X)
    assert table.did() == [("freed", X)]
    table.own(Y)
    table.adopt(Y, B)
    assert table.objects[Y].local == 2


def test_two_calls_of_one_actor_share_an_argument() -> None:
    actor = Table(B)
    actor.borrow(X, A)  # first call
    actor.borrow(X, A)  # second call
    actor.drop(X)
    assert actor.end_scope([X]) == [(X, B)]  # still in use by the second
    actor.drop(X)
    assert actor.did()[1:] == [("release", A, X, 1), ("freed", X)]
    assert actor.end_scope([X]) is None


# -- deaths ------------------------------------------------------------------------------------------


def test_the_borrows_of_the_dead_end() -> None:
    table = Table(A)
    table.own(X).status = STORED
    table.give(X, B)
    table.drop(X)
    table.did()
    assert table.on_death(B[1]) == []
    assert table.did() == [("freed", X)]


def test_a_late_word_of_the_dead_harms_nobody() -> None:
    table = Table(A)
    table.own(X).status = STORED
    table.give(X, B)
    table.give(X, C)
    table.drop(X)
    table.on_death(B[1])
    table.on_releases(B[1], [(X, 1)])
    table.on_borrows([(X, B)])  # C's, about B
    table.did()
    table.on_releases(C[1], [(X, 1)])
    assert table.did() == [("freed", X)]


def test_lending_to_the_dead_asks_again() -> None:
    table = Table(A)
    table.own(X).status = STORED
    table.give(X, B)
    table.on_death(B[1])
    table.did()
    table.give(X, B)
    assert table.did() == [("watch", B)]  # which is answered at once


def test_who_borrows_from_the_dead_is_named() -> None:
    table = Table(B)
    table.receive([(X, A, True), (Y, A, True), (Z, C, True)])
    for object_id, owner in ((X, A), (Y, A), (Z, C)):
        table.borrow(object_id, owner)
    table.drop(Y)
    assert table.on_death(A[1]) == [X]


def test_what_comes_home_after_its_end_is_an_error() -> None:
    table = Table(A)
    table.borrow(X, A)
    assert table.objects[X].status == ERROR
    assert table.objects[X].value == ("freed", X)


# -- every order ---------------------------------------------------------------------------------------

NAMES = "ABCD"
Handle = tuple[bytes, Address]


class Call:
    """A call in progress at its callee."""

    def __init__(self, caller: int, number: int, scope: list[Handle]) -> None:
        self.caller = caller
        self.number = number
        self.scope = [handle[0] for handle in scope]
        self.handles: list[Handle] = []


class Process:
    def __init__(self, index: int) -> None:
        self.index = index
        self.table = Table(address(NAMES[index]))
        self.handles: list[Handle] = []  # in global variables
        self.calls: list[Call] = []  # that run here
        self.open_calls: dict[int, list[bytes]] = {}  # made here: number → held arguments
        self.values: dict[bytes, list[Handle]] = {}  # of own objects that are complete

    def lists(self) -> list[list[Handle]]:
        """Where the user's code here keeps references."""
        return [self.handles, *(call.handles for call in self.calls)]


class Processes(RuleBasedStateMachine):
    """Four processes; any of them may call any other. See the module's text."""

    def __init__(self) -> None:
        super().__init__()
        self.channels: dict[tuple[int, int], deque[Any]] = {}
        self.processes = {i: Process(i) for i in range(len(NAMES))}
        self.count = 0
        self.tainted: set[bytes] = set()  # a dead process had them in its hands

    @initialize()
    def start(self) -> None:
        for i in (0, 1):
            self.put(i, 0, 0)

    # -- machinery ---------------------------------------------------------------------------------

    def process(self, choice: int) -> Process:
        living = list(self.processes.values())
        return living[choice % len(living)]

    def index_of(self, owner: Address) -> int:
        return NAMES.index(owner[1][:1].decode())

    def send(self, source: Process, target: int, message: Any) -> None:
        self.channels.setdefault((source.index, target), deque()).append(message)

    def perform(self, process: Process) -> None:
        for effect in process.table.effects[:]:
            kind = effect[0]
            if kind == "release":
                self.send(process, self.index_of(effect[1]), ("releases", [effect[2:]]))
            elif kind == "borrow":
                self.send(process, self.index_of(effect[1]), ("borrows", [effect[2:]]))
            elif kind == "watch" and self.index_of(effect[1]) not in self.processes:
                self.channels.setdefault((-1, process.index), deque()).append(("died", effect[1][1]))
            elif kind == "freed":
                process.values.pop(effect[1], None)
        process.table.effects.clear()

    def new_id(self) -> bytes:
        self.count += 1
        return self.count.to_bytes(28, "big")

    def pick(self, process: Process, a: int, b: int) -> list[Handle]:
        """None, one or two of the references in hand."""
        everything = [handle for some in process.lists() for handle in some]
        chosen = [everything[n % len(everything)] for n in (a, b) if n and everything]
        return list(dict.fromkeys(chosen))

    def older(self, handles: list[Handle], limit: bytes) -> list[Handle]:
        """Without rings: an object contains only what is older than itself."""
        return [handle for handle in handles if handle[0] < limit]

    # -- user code ---------------------------------------------------------------------------------

    CHOICE = st.integers(0, 11)

    @rule(p=CHOICE, a=CHOICE, b=CHOICE)
    def put(self, p: int, a: int, b: int) -> None:
        process = self.process(p)
        inner = self.pick(process, a, b)
        object_id = self.new_id()
        record = process.table.own(object_id)
        record.status = STORED
        process.table.set_contains(record, tuple(handle[0] for handle in inner))
        process.values[object_id] = inner
        process.handles.append((object_id, process.table.me))
        self.perform(process)

    @rule(p=CHOICE, which=CHOICE)
    def drop(self, p: int, which: int) -> None:
        process = self.process(p)
        lists = [some for some in process.lists() if some]
        if lists:
            chosen = lists[which % len(lists)]
            process.table.drop(chosen.pop(which % len(chosen))[0])
            self.perform(process)

    @rule(p=CHOICE, q=CHOICE, a=CHOICE, b=CHOICE)
    def call(self, p: int, q: int, a: int, b: int) -> None:
        """Arguments are held until the reply; the result is an object of the caller."""
        process, target = self.process(p), self.process(q)
        arguments = self.pick(process, a, b)
        number = int.from_bytes(self.new_id(), "big")
        process.table.own(number.to_bytes(28, "big")).task = number
        process.handles.append((number.to_bytes(28, "big"), process.table.me))
        for object_id, _ in arguments:
            process.table.hold(object_id)
        process.open_calls[number] = [handle[0] for handle in arguments]
        self.send(process, target.index, ("call", number, arguments))
        self.perform(process)

    def outgoing(self, process: Process, call: Call, handles: list[Handle]) -> list[Any]:
        caller = address(NAMES[call.caller])
        return [(i, o, i not in call.scope and process.table.give(i, caller)) for i, o in handles]

    @rule(p=CHOICE, which=CHOICE, a=CHOICE)
    def give_item(self, p: int, which: int, a: int) -> None:
        """An item of a stream: a value that arrives before the reply."""
        process = self.process(p)
        if process.calls:
            call = process.calls[which % len(process.calls)]
            handles = self.older(self.pick(process, a, 0), call.number.to_bytes(28, "big"))
            self.send(process, call.caller, ("item", call.number, self.outgoing(process, call, handles)))
            self.perform(process)

    @rule(p=CHOICE, which=CHOICE, a=CHOICE, keep=st.booleans())
    def answer(self, p: int, which: int, a: int, keep: bool) -> None:
        process = self.process(p)
        if not process.calls:
            return
        call = process.calls[which % len(process.calls)]
        handles = self.older(self.pick(process, a, 0), call.number.to_bytes(28, "big"))
        refs = self.outgoing(process, call, handles)
        process.calls.remove(call)
        if keep:
            process.handles += call.handles
        else:
            for object_id, _ in call.handles:
                process.table.drop(object_id)
        retained = process.table.end_scope(call.scope)
        self.send(process, call.caller, ("result", call.number, refs, retained))
        self.perform(process)

    @rule(p=CHOICE, which=CHOICE)
    def look(self, p: int, which: int) -> None:
        """get(): the references inside the value, or a question to the owner."""
        process = self.process(p)
        everything = [handle for some in process.lists() for handle in some]
        if not everything:
            return
        object_id, owner = everything[which % len(everything)]
        record = process.table.objects[object_id]
        if record.status == STORED:
            for inner, inner_owner in process.values[object_id]:
                process.table.borrow(inner, inner_owner)
                process.handles.append((inner, inner_owner))
        elif record.status == PENDING and record.owner is not None and record.task is None:
            record.task = True
            if self.index_of(owner) in self.processes:
                self.send(process, self.index_of(owner), ("fetch", object_id))
        self.perform(process)

    # -- the network -------------------------------------------------------------------------------

    @precondition(lambda self: any(self.channels.values()))
    @rule(which=st.integers(0, 30))
    def deliver(self, which: int) -> None:
        busy = [pair for pair, queue in self.channels.items() if queue]
        source, target = busy[which % len(busy)]
        message = self.channels[(source, target)].popleft()
        process = self.processes.get(target)
        if process is not None:
            getattr(self, "on_" + message[0])(process, source, *message[1:])
            self.perform(process)
            process.table.check_invariants()

    def on_call(self, process: Process, source: int, number: int, arguments: list[Handle]) -> None:
        call = Call(source, number, arguments)
        for object_id, owner in arguments:
            process.table.borrow(object_id, owner)
            call.handles.append((object_id, owner))
        process.calls.append(call)

    def on_item(self, process: Process, source: int, number: int, refs: list[Any]) -> None:
        object_id = self.new_id()
        record = process.table.own(object_id)
        self.fill(process, object_id, refs)
        process.handles.append((object_id, process.table.me))
        assert record.status == STORED

    def fill(self, process: Process, object_id: bytes, refs: list[Any]) -> None:
        record = process.table.objects.get(object_id)
        inner = process.table.receive(refs)
        if record is None:
            for other in inner:
                process.table.hold(other)
            for other in inner:
                process.table.unhold(other)
            return
        record.status, record.task = STORED, None
        process.values[object_id] = [(i, o) for i, o, _ in refs]
        process.table.set_contains(record, inner)

    def on_result(self, process: Process, source: int, number: int, refs: list[Any], retained: Any) -> None:
        process.table.on_retained(retained or [])
        self.fill(process, number.to_bytes(28, "big"), refs)
        for object_id in process.open_calls.pop(number):
            process.table.unhold(object_id)

    def on_fetch(self, process: Process, source: int, object_id: bytes) -> None:
        record = process.table.objects.get(object_id)
        if record is None or record.status != STORED:
            return  # its value is not there (yet): the borrower may ask again
        taker = address(NAMES[source])
        inner = process.values[object_id]
        refs = [(i, o, process.table.give(i, taker)) for i, o in inner]
        self.send(process, source, ("values", object_id, refs))

    def on_values(self, process: Process, source: int, object_id: bytes, refs: list[Any]) -> None:
        record = process.table.objects.get(object_id)
        if record is not None and record.status != PENDING:
            object_id = b""
        self.fill(process, object_id, refs)

    def on_releases(self, process: Process, source: int, releases: list[Any]) -> None:
        process.table.on_releases(address(NAMES[source])[1], releases)

    def on_borrows(self, process: Process, source: int, borrows: list[Any]) -> None:
        process.table.on_borrows(borrows)

    def on_died(self, process: Process, source: int, worker_id: bytes) -> None:
        dead = NAMES.index(worker_id[:1].decode())
        process.calls, calls = [c for c in process.calls if c.caller != dead], process.calls
        for call in calls:
            if call.caller == dead:  # it goes on as long as somebody looks, then everything is let go
                process.handles += call.handles
                process.table.end_scope(call.scope)
        process.table.on_death(worker_id)

    # -- death -------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.processes) == len(NAMES))
    @rule(p=CHOICE, rare=st.integers(0, 3), lost=st.integers(0, 3))
    def die(self, p: int, rare: int, lost: int) -> None:
        if rare:
            return
        dead = self.process(p)
        del self.processes[dead.index]
        self.tainted.update(dead.table.objects)
        for (source, target), queue in self.channels.items():
            if target == dead.index or source == dead.index:
                self.tainted.update(ids_in(queue))
            if target == dead.index:
                queue.clear()
            elif source == dead.index:
                for _ in range(min(lost, len(queue))):
                    queue.pop()
        for process in self.processes.values():
            for number in [n for n, _ in process.open_calls.items()]:
                self.channels.setdefault((dead.index, process.index), deque()).append(("lost", number))
            self.channels.setdefault((-1, process.index), deque()).append(("died", dead.table.me[1]))

    def on_lost(self, process: Process, source: int, number: int) -> None:
        """End of the connection: a call to the dead will not be answered. (Others are answered twice: here
        the first answer counts.)"""
        arguments = process.open_calls.get(number)
        if arguments is None or any(
            call.number == number for other in self.processes.values() for call in other.calls
        ):
            return
        if any(m[1:2] == (number,) for queue in self.channels.values() for m in queue):
            return
        del process.open_calls[number]
        for object_id in arguments:
            process.table.unhold(object_id)

    # -- what must hold ----------------------------------------------------------------------------

    @invariant()
    def nothing_in_use_is_freed(self) -> None:
        for process in self.processes.values():
            for object_id, record in process.table.objects.items():
                if object_id in self.tainted:
                    continue
                assert record.status != ERROR, f"{object_id.hex()} came home freed"
                if record.owner is None or not record.in_use():
                    continue
                owner = self.processes.get(self.index_of(record.owner))
                if owner is not None:
                    known = object_id in owner.table.objects
                    assert known, f"{NAMES[process.index]} uses {object_id.hex()}, which its owner has freed"

    def teardown(self) -> None:
        """Everybody answers and lets go: nothing may be left."""
        for _ in range(10_000):
            self.nothing_in_use_is_freed()
            if any(self.channels.values()):
                self.deliver(0)
            elif any(process.calls for process in self.processes.values()):
                index = next(i for i, p in enumerate(self.processes.values()) if p.calls)
                self.answer(index, 0, 0, keep=False)
            elif any(process.handles for process in self.processes.values()):
                index = next(i for i, p in enumerate(self.processes.values()) if p.handles)
                self.drop(index, 0)
            else:
                break
        for process in self.processes.values():
            assert not process.table.objects, f"left at {NAMES[process.index]}: {process.table.objects}"


def ids_in(queue: Any) -> set[bytes]:
    """Object ids anywhere in messages."""
    found: set[bytes] = set()
    stack = list(queue)
    while stack:
        one = stack.pop()
        if isinstance(one, bytes):
            found.add(one)
        elif isinstance(one, (tuple, list)):
            stack.extend(one)
    return found


@pytest.mark.sim
class TestEveryOrder(Processes.TestCase):
    settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=60,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
