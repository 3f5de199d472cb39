"""One process as owner and submitter: ids, returns, dependencies, results, retries.

What passes between processes is in ``test_core_objects.py``, streams in ``test_core_streams.py``.
"""

from __future__ import annotations

import pytest

from minray.wire.messages import (
    CALLS,
    FETCH,
    TASKS,
    ActorUpdate,
    Cancel,
    Died,
    GiveBack,
    KillWorker,
    LeaseGrant,
    LeaseInfeasible,
    Ready,
    Steal,
)
from minray.worker.core import FAILURES_KEPT, Core
from minray.worker.references import ERROR, INLINE, PENDING, STORED
from minray.worker.tasks import CHAIN_TOLD, DYNAMIC, MULTI, RETRY, STREAMING

from .support import (
    ACTOR,
    CAUSE,
    JOB,
    LOCATION,
    ME,
    RAISED,
    THEIRS,
    CoreWorld,
    address,
    make_function,
    make_key,
    spec_names,
    stored,
)

B, C = address("B"), address("C")

# -- ids -------------------------------------------------------------------------------------------


def test_ids_name_the_process_the_task_and_the_job() -> None:
    core = CoreWorld().core
    assert [core.next_seq() for _ in range(3)] == [1, 2, 3]
    task_id, object_id = core.task_id(5), core.object_id(5, 2)
    assert len(task_id) == 24
    assert object_id == task_id + b"\x02\0\0\0"
    assert task_id == ME[1][:12] + b"\0\0\0\0\0\0\0\x05" + JOB
    assert core.seq_of(object_id) == 5
    assert core.seq_of(task_id) == 5
    assert core.seq_of(core.object_id(2**63, 1)) == 2**63
    assert core.seq_of(THEIRS) is None
    other = Core(B, JOB, B[1][:12], max_pipeline=1, lease_idle_s=1.0)
    assert other.object_id(5, 2) != object_id
    assert other.seq_of(object_id) is None


# -- returns ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "indexes"), [(1, [1]), (3, [1, 2, 3]), (0, []), (DYNAMIC, [1]), (STREAMING, [])])
def test_what_a_submission_returns(n: int, indexes: list[int]) -> None:
    world = CoreWorld()
    core = world.core
    task, ids = world.submit(n=n)
    assert ids == [core.object_id(task.seq, index) for index in indexes]
    for object_id in ids:
        record = core.objects[object_id]
        assert (record.status, record.local, record.task, record.owner) == (PENDING, 1, task, None)
    assert (task.seq in core.streams) == (n == STREAMING)
    assert core.owner.tasks == {task.seq: task}
    ((name, (_, lease_no, specs, _)),) = world.take_hot(TASKS)
    assert (name, lease_no, specs) == ("w1", 1, [(task.seq, 0, 1, b"", None)])


def test_what_a_call_of_an_actor_returns() -> None:
    world = CoreWorld()
    world.actor_is("ALIVE")
    task, ids = world.call(n=2)
    assert ids == [world.core.object_id(task.seq, 1), world.core.object_id(task.seq, 2)]
    assert world.did() == [("a0", (CALLS, 0, [(task.seq, 0, "add", b"", None)], None))]


def test_a_client_record_is_made_once() -> None:
    world = CoreWorld()
    actor = world.core.calls.client(ACTOR, "Counter", max_pending=3, eager=True)
    assert world.actor() is actor
    assert (actor.class_name, actor.max_pending, actor.eager) == ("Counter", 3, True)


# -- dependencies ----------------------------------------------------------------------------------


def test_a_task_whose_arguments_are_there_leaves_at_once() -> None:
    world = CoreWorld()
    object_id = world.put(INLINE, b"v")
    task, _ = world.submit(top=[(0, object_id), ("key", object_id)])
    top = [(0, INLINE, b"v", object_id, ME), ("key", INLINE, b"v", object_id, ME)]
    assert world.take_hot(TASKS)[0][1][2] == [(task.seq, 0, 1, b"", {"top": top})]
    assert world.core.objects[object_id].held == 2


def test_a_task_waits_for_all_its_arguments() -> None:
    world = CoreWorld()
    a, (x,) = world.submit()
    b, (y,) = world.submit()
    task, _ = world.submit(top=[(0, x), (1, y), (2, x)])
    world.did()
    assert task.unresolved == 3
    world.answer(a, INLINE, b"x")
    assert world.batches() == []
    world.answer(b, INLINE, b"y")
    ((_, raw),) = world.take_hot(TASKS)
    assert [entry[:3] for entry in raw[2][0][4]["top"]] == [(0, INLINE, b"x"), (1, INLINE, b"y"), (2, INLINE, b"x")]


def test_the_location_of_an_argument_is_known_to_the_node_before_it_travels() -> None:
    world = CoreWorld()
    object_id = world.put(STORED, stored())
    world.submit(top=[(0, object_id)])
    report, (name, raw) = world.did()
    assert report == ("report", object_id, LOCATION)
    assert (name, raw[2][0][4]) == ("w1", {"top": [(0, STORED, stored(), object_id, ME)]})
    world.submit(top=[(0, object_id)])
    assert [effect[0] for effect in world.did()] == ["w1", "node"], "reported once"


def test_a_borrowed_argument_is_fetched_and_travels_with_its_owner() -> None:
    world = CoreWorld()
    world.borrow(THEIRS, B)
    world.did()
    world.submit(top=[(0, THEIRS)])
    assert world.did() == [("B", (FETCH, [THEIRS]))]
    world.do(world.core.on_values, [(THEIRS, STORED, stored())])
    ((_, raw),) = world.take_hot(TASKS)
    assert raw[2][0][4] == {"top": [(0, STORED, stored(), THEIRS, B)]}
    assert world.did() == [], "where a borrowed object lies is its owner's to report"


def test_extras_of_the_task_stay_beside_its_arguments() -> None:
    world = CoreWorld()
    world.actor_is("ALIVE")
    extra = {"group": "io"}
    object_id = world.put()
    world.call(top=[(0, object_id)], extra=extra)
    ((_, raw),) = world.take_hot(CALLS)
    assert raw[2][0][4] == {"group": "io", "top": [(0, INLINE, b"v", object_id, ME)]}
    assert extra == {"group": "io"}, "it is shared by all calls of that method"


def test_a_failed_argument_fails_the_task_with_the_reason() -> None:
    world = CoreWorld()
    failed, (x,) = world.submit()
    task, (y,) = world.submit(top=[(0, x)])
    then, (z,) = world.submit(top=[(0, y)])
    world.did()
    world.answer(failed, ERROR, RAISED)
    assert world.holds(y) == (ERROR, ("dependency", "f1", RAISED))
    assert world.holds(z) == (ERROR, ("dependency", "f1", ("dependency", "f1", RAISED)))
    assert world.core.owner.tasks == {}
    assert world.batches() == []
    assert [name for name, _ in world.core.failures] == ["f1", "f1", "f1"]
    assert (task.top, then.top) == (None, None)
    for object_id in (x, y, z):
        world.drop(object_id)
    assert world.core.objects == {}


@pytest.mark.parametrize("how", ["raises", "cancelled", "owner died"])
@pytest.mark.parametrize("call", [False, True])
def test_the_failure_of_one_fails_a_chain_longer_than_the_stack(call: bool, how: str) -> None:
    world = CoreWorld(worker=how == "raises")
    world.actor_is("ALIVE")
    x = world.borrow(THEIRS, address("B"))
    first, (x,) = world.submit(top=[(0, x)] if how == "owner died" else None)
    submit = world.call if call else world.submit
    check, world.check = world.check, lambda: None  # type: ignore[method-assign]  # not for each of so many
    for _ in range(3000):
        (x,) = submit(top=[(0, x)])[1]
    world.check = check  # type: ignore[method-assign]
    if how == "raises":
        world.answer(first, ERROR, RAISED)
    elif how == "cancelled":
        world.do(world.core.cancel_task, first, force=False, recursive=False)
    else:
        world.do(world.core.on_died, Died(address("B")[1], -1, -1, -1, CAUSE), world.now)
    status, error = world.holds(x)
    names = []
    while error[0] == "dependency":
        names.append(error[1])
        error = error[2]
    assert status == ERROR
    assert names == ["add" if call else "f1"] * CHAIN_TOLD, "the last ones"
    assert error[0] == {"raises": "task", "cancelled": "cancelled", "owner died": "owner_died"}[how]
    assert not world.core.owner.tasks
    assert not world.core.calls.tasks


def test_an_argument_that_had_failed_before() -> None:
    world = CoreWorld()
    world.actor_is("ALIVE")
    x = world.put(ERROR, RAISED)
    top = [(0, x), (1, world.put(STORED, stored()))]
    for _, (y,) in (world.submit(top=top), world.call(top=top)):
        assert world.holds(y)[1][0] == "dependency"
    assert world.did() == []
    assert world.core.owner.tasks == world.core.calls.tasks == {}
    assert world.core.objects[x].held == 0


def test_a_call_waits_for_its_arguments_and_fails_with_them() -> None:
    world = CoreWorld()
    world.actor_is("ALIVE")
    a, (x,) = world.submit()
    b, (y,) = world.submit()
    good, _ = world.call(top=[(0, x)])
    _, (result,) = world.call(top=[(0, y)])
    world.did()
    world.answer(b, ERROR, RAISED)
    assert world.holds(result) == (ERROR, ("dependency", "add", RAISED))
    assert world.take_hot(CALLS) == []
    world.answer(a, INLINE, b"x")
    ((_, raw),) = world.take_hot(CALLS)
    assert raw[2][0][:2] == (good.seq, 0)
    assert raw[2][0][4]["top"][0][:3] == (0, INLINE, b"x")


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("call", [False, True])
def test_a_failed_argument_waits_for_the_others(call: bool, known: bool) -> None:
    world = CoreWorld()
    world.actor_is("ALIVE")
    (a, (x,)), (b, (y,)) = world.submit(), world.submit()
    world.call(top=[(0, y)])  # in front of the other one
    if known:
        world.answer(a, ERROR, RAISED)
    _, (z,) = (world.call if call else world.submit)(top=[(0, x), (1, y)])
    if not known:
        world.answer(a, ERROR, RAISED)
    assert world.holds(z)[0] == PENDING
    world.answer(b, INLINE, b"y")
    assert world.holds(z)[0] == ERROR


@pytest.mark.parametrize("call", [False, True])
def test_an_argument_whose_owner_is_dead(call: bool) -> None:
    world = CoreWorld()
    world.actor_is("ALIVE")
    world.do(world.core.on_died, Died(B[1], -1, -1, -1, CAUSE), world.now)
    first, (pending,) = world.submit()
    world.did()
    submit = world.call if call else world.submit
    alone = world.borrow(THEIRS, B)
    _, (x,) = submit(top=[(0, alone)])
    assert world.holds(x)[1][2] == ("owner_died", alone, B)
    beside = world.borrow(b"more of theirs".ljust(28, b"."), B)
    _, (y,) = submit(top=[(0, beside), (1, pending)])
    assert world.holds(y)[0] == PENDING
    world.answer(first, INLINE, b"v")
    assert world.holds(y)[1][2] == ("owner_died", beside, B)
    assert [tag for tag in (TASKS, CALLS, FETCH) if world.take_hot(tag)] == []


def test_an_argument_that_comes_after_the_cancel_is_ignored() -> None:
    world = CoreWorld()
    a, (x,) = world.submit()
    task, (y,) = world.submit(top=[(0, x)])
    call, (z,) = world.call(top=[(0, x)])
    world.do(world.core.cancel_task, task, force=False, recursive=False)
    world.do(world.core.cancel_task, call, force=False, recursive=False)
    world.did()
    world.answer(a, INLINE, b"x")
    assert world.holds(y) == (ERROR, ("cancelled", "f1"))
    assert world.holds(z) == (ERROR, ("cancelled", "add"))
    assert world.batches() == []


def test_arguments_are_held_until_the_answer() -> None:
    world = CoreWorld()
    top, nested = world.put(STORED, stored()), world.put(STORED, stored())
    task, (result,) = world.submit(top=[(0, top)], nested=(nested,))
    world.drop(top)
    world.drop(nested)
    world.did()
    assert {top, nested} <= set(world.core.objects)
    world.answer(task, INLINE, b"v")
    assert sorted(entry for entry in world.did() if entry[0] == "freed") == sorted([("freed", top), ("freed", nested)])
    assert set(world.core.objects) == {result}


def test_a_top_level_argument_alone_is_let_go_of_too() -> None:
    world = CoreWorld()
    object_id = world.put()
    task, _ = world.submit(top=[(0, object_id)])
    world.drop(object_id)
    assert object_id in world.core.objects
    world.answer(task, INLINE, b"v")
    assert object_id not in world.core.objects


def test_what_a_task_keeps_of_its_arguments_stays() -> None:
    world = CoreWorld()
    nested = world.put(STORED, stored())
    task, _ = world.submit(nested=(nested,))
    world.drop(nested)
    world.did()
    world.answer(task, INLINE, b"v", retained=[(nested, address("w1"))])
    assert ("watch", address("w1")) in world.did()
    assert nested in world.core.objects
    world.do(world.core.refs.on_releases, address("w1")[1], [(nested, 1)])
    assert ("freed", nested) in world.did()


# -- results ---------------------------------------------------------------------------------------


def test_a_small_result() -> None:
    world = CoreWorld()
    task, (x,) = world.submit()
    asker = world.ask(x)
    world.answer(task, INLINE, b"v")
    assert world.holds(x) == (INLINE, b"v")
    assert world.core.objects[x].task is None
    assert asker.heard == [x]
    assert world.core.owner.tasks == {}


def test_a_result_that_nobody_wants_any_more() -> None:
    world = CoreWorld()
    for status, value in ((INLINE, b"v"), (ERROR, RAISED), (STORED, stored())):
        task, (x,) = world.submit()
        world.drop(x)
        assert ("freed", x) in world.did(), "the store may have a first part of it"
        world.answer(task, status, value)
        assert world.core.objects == {}
        assert (("freed", x) in world.did()) == (status == STORED), "the late copy goes, too"


def test_a_stored_result_keeps_what_is_inside_it() -> None:
    world = CoreWorld()
    task, (x,) = world.submit()
    world.answer(task, STORED, stored((THEIRS, B, True)))
    assert world.holds(x) == (STORED, stored((THEIRS, B, True)))
    assert world.core.objects[x].contains == (THEIRS,)
    assert world.core.objects[x].task is None
    assert world.core.objects[THEIRS].held == 1
    world.did()
    world.drop(x)
    assert world.did() == [("freed", x), ("release", B, THEIRS, 1), ("freed", THEIRS)]


def test_a_small_result_with_references_inside() -> None:
    world = CoreWorld()
    task, (x,) = world.submit()
    asker = world.ask(x)
    world.answer(task, INLINE, (b"data", [], [(THEIRS, B, True)]))
    assert world.core.objects[x].contains == (THEIRS,)
    assert asker.heard == [x]


def test_several_results_one_of_them_unwanted() -> None:
    world = CoreWorld()
    task, (x, y, z) = world.submit(n=3)
    world.drop(y)
    world.did()
    world.answer(task, MULTI, [(INLINE, b"x"), (STORED, stored((THEIRS, B, True))), (ERROR, RAISED)])
    assert world.holds(x) == (INLINE, b"x")
    assert world.holds(z) == (ERROR, RAISED)
    freed = [entry for entry in world.did() if entry[0] in ("freed", "release")]
    assert freed == [("release", B, THEIRS, 1), ("freed", THEIRS), ("freed", y)]


def test_an_error_is_the_result_of_all_returns() -> None:
    world = CoreWorld()
    task, ids = world.submit(n=3)
    world.answer(task, ERROR, RAISED)
    assert [world.holds(x) for x in ids] == [(ERROR, RAISED)] * 3
    task, (x,) = world.submit(n=DYNAMIC)
    world.answer(task, ERROR, RAISED)
    assert world.holds(x) == (ERROR, RAISED)
    task, _ = world.submit(n=0)
    world.answer(task, ERROR, RAISED)
    assert len(world.core.failures) == 3


def test_a_task_without_returns_just_ends() -> None:
    world = CoreWorld()
    task, _ = world.submit(n=0)
    world.answer(task, MULTI, [])
    assert world.core.objects == {}
    assert world.core.owner.tasks == {}
    task, _ = world.submit(n=0)
    world.answer(task, INLINE, b"")
    assert world.core.objects == {}


def test_a_generator_that_returns_one_object_of_objects() -> None:
    world = CoreWorld()
    task, (x,) = world.submit(n=DYNAMIC)
    world.answer(task, INLINE, b"v")
    assert world.holds(x) == (INLINE, b"v")


def test_several_answers_in_one_message() -> None:
    world = CoreWorld()
    other = world.actor()
    world.actor_is("ALIVE")
    (a, (x,)), (b, (y,)), (c, (z,)) = world.submit(), world.submit(), world.call()
    assert c.actor is other
    world.did()
    results = [(task.seq, 0, INLINE, b"v%d" % task.seq, 1000, None) for task in (a, c, b)]
    world.do(world.core.on_results, address("w1"), results, world.now)
    assert [world.holds(i)[1] for i in (x, y, z)] == [b"v1", b"v2", b"v3"]


def test_answers_make_room_for_what_waits() -> None:
    world = CoreWorld(pipeline=1)
    a, _ = world.submit()
    world.submit()
    world.did()
    world.answer(a, INLINE, b"v")
    assert world.batches() == [(1, [2])]


def test_answers_of_several_functions_make_room_for_what_waits() -> None:
    world = CoreWorld(pipeline=1)
    key = make_key(2)
    world.core.owner.keys[2] = key
    world.do(world.core.on_grant, LeaseGrant(2, 2, address("w1"), {}), world.now)
    running = []
    for function in (world.f, make_function(2, key)):
        world.f = function
        running.append(world.submit()[0])
        world.submit()
    world.did()
    results = [(task.seq, 0, INLINE, b"v", 1000, None) for task in running]
    world.do(world.core.on_results, address("w1"), results, world.now)
    assert world.batches() == [(1, [2]), (2, [4])]


def test_the_failures_are_remembered_for_a_while() -> None:
    world = CoreWorld()
    for number in range(FAILURES_KEPT + 1):
        task, _ = world.submit()
        world.answer(task, ERROR, ("task", b"%d" % number))
    assert len(world.core.failures) == FAILURES_KEPT
    assert world.core.failures[-1] == ("f1", ("task", b"%d" % FAILURES_KEPT))


# -- exceptions to retry ---------------------------------------------------------------------------


def test_an_exception_to_retry_is_retried_while_retries_are_left() -> None:
    world = CoreWorld()
    task, (x,) = world.submit(retries=1)
    world.did()
    world.answer(task, RETRY, RAISED)
    assert world.batches() == [(1, [(1, 1)])]
    assert (task.retries, world.holds(x)[0]) == (0, PENDING)
    world.answer(task, RETRY, RAISED)
    assert world.holds(x) == (ERROR, RAISED)
    assert world.batches() == []


def test_a_task_that_is_retried_keeps_its_arguments() -> None:
    world = CoreWorld()
    nested = world.put()
    task, _ = world.submit(retries=-1, nested=(nested,))
    world.answer(task, RETRY, RAISED)
    assert task.retries == -1
    assert world.core.objects[nested].held == 1


def test_a_cancelled_task_is_not_retried() -> None:
    world = CoreWorld()
    task, (x,) = world.submit()
    world.do(world.core.cancel_task, task, force=False, recursive=False)
    world.answer(task, RETRY, RAISED)
    assert world.holds(x) == (ERROR, RAISED)


def test_a_call_that_raised_is_retried_at_the_actor() -> None:
    world = CoreWorld()
    world.actor_is("ALIVE")
    task, (x,) = world.call(retries=1)
    world.did()
    world.answer(task, RETRY, RAISED)
    ((name, raw),) = world.take_hot(CALLS)
    assert (name, spec_names(raw[2]), task.retries) == ("a0", [(1, 1)], 0)
    world.answer(task, RETRY, RAISED)
    assert world.holds(x) == (ERROR, RAISED)


# -- the rest of the messages ----------------------------------------------------------------------


def test_only_a_fatal_infeasibility_fails_the_tasks() -> None:
    world = CoreWorld(worker=False)
    _, (x,) = world.submit()
    world.do(world.core.on_infeasible, LeaseInfeasible(1, False, "not now"))
    assert world.holds(x)[0] == PENDING
    world.do(world.core.on_infeasible, LeaseInfeasible(1, True, "never"))
    assert world.holds(x) == (ERROR, ("unschedulable", "f1", "never"))


def test_ready_opens_a_blocked_worker() -> None:
    world = CoreWorld()
    world.do(world.core.on_give_back, GiveBack(1, [], False, True), world.now)
    world.submit()
    assert world.batches() == []
    world.do(world.core.on_ready, Ready(1), world.now)
    assert world.batches() == [(1, [1])]


def test_timers_find_their_machine() -> None:
    world = CoreWorld()
    for _ in range(3):
        world.submit()
    world.do(world.core.on_grant, LeaseGrant(1, 2, address("w2"), {}), world.now)
    assert sorted(timer[1] for timer in world.timers) == ["idle", "steal"]
    world.did()
    world.pass_time(0.1)
    assert world.take(Steal) == [Steal(1, 1)]
    world.pass_time(60)
    assert 2 not in world.core.owner.leases


@pytest.mark.parametrize("force", [False, True])
def test_cancel_finds_its_machine(force: bool) -> None:
    world = CoreWorld()
    world.actor_is("ALIVE")
    task, _ = world.submit()
    call, _ = world.call()
    world.did()
    world.do(world.core.cancel_task, task, force=force, recursive=True)
    world.do(world.core.cancel_task, call, force=False, recursive=True)
    first = ("node", KillWorker(1)) if force else ("w1", Cancel(task.seq, 0, True))
    assert world.did() == [first, ("a0", Cancel(call.seq, 0, True))]


@pytest.mark.parametrize("end", ["ALIVE", "DEAD"])
def test_the_creator_holds_an_actor_until_its_constructor_has_run(end: str) -> None:
    world = CoreWorld()
    world.actor()
    handle_id = world.put()
    world.do(world.core.hold_creation, ACTOR, handle_id)
    world.drop(handle_id)
    world.actor_is("RESTARTING", 1)
    assert handle_id in world.core.objects
    world.actor_is(end, 1)
    assert handle_id not in world.core.objects
    world.actor_is("DEAD", 1)


def test_news_of_an_actor_that_nobody_here_knows() -> None:
    world = CoreWorld()
    world.do(world.core.on_actor_update, ActorUpdate(ACTOR, "ALIVE", 0, address("a0"), {}))
    assert world.core.calls.actors == {}


def test_an_actor_that_is_there_already_is_not_held() -> None:
    world = CoreWorld()
    world.actor_is("ALIVE")
    handle_id = world.put()
    world.do(world.core.hold_creation, ACTOR, handle_id)
    assert world.core.objects[handle_id].held == 0


def test_the_invariants_see_a_freed_argument() -> None:
    world = CoreWorld()
    nested = world.put()
    world.submit(nested=(nested,))
    del world.core.objects[nested]
    with pytest.raises(AssertionError, match="is freed"):
        world.core.check_invariants()
