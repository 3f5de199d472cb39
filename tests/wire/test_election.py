"""Election: its rules one by one, then every interleaving of the threads around it."""

from __future__ import annotations

import pytest

from minray.wire.election import Background, Election, Entry, Tick
from tests.wire.election_model import Model, ModelWithNotifier, State, explore, initial

A, B, C = "first", "second", "third"


def test_the_first_to_wait_leads_and_the_others_follow() -> None:
    election: Election[str] = Election(background=False)
    assert election.enter(A) is Entry.LEAD
    assert election.enter(B) is Entry.FOLLOW
    assert election.enter(C) is Entry.FOLLOW
    assert election.leader == A
    assert election.followers == [B, C]
    election.check_invariants()


def test_a_leader_that_leaves_promotes_the_oldest_follower() -> None:
    election: Election[str] = Election(background=False)
    for name in (A, B, C):
        election.enter(name)
    assert election.leave(A) == B
    assert election.leader == B
    assert election.leave(B) == C
    assert election.leave(C) is None
    assert election.leader is None


def test_a_follower_may_leave_first() -> None:
    election: Election[str] = Election(background=False)
    election.enter(A)
    election.enter(B)
    assert election.leave(B) is None
    assert election.leave(A) is None


def test_one_that_was_promoted_while_it_gave_up_passes_it_on() -> None:
    election: Election[str] = Election(background=False)
    for name in (A, B, C):
        election.enter(name)
    assert election.leave(A) == B
    assert election.leave(B) == C


def test_leaving_twice_or_without_entering_changes_nothing() -> None:
    election: Election[str] = Election(background=False)
    election.enter(A)
    assert election.leave("stranger") is None
    assert election.leader == A


def test_the_background_thread_leads_after_a_quiet_tick() -> None:
    election: Election[str] = Election(background=True)
    assert election.tick() is Tick.SLEEP
    assert election.tick() is Tick.LEAD
    assert election.rested() == (True, None)
    assert election.background is Background.POLLING


def test_polling_between_two_ticks_keeps_the_background_thread_away() -> None:
    election: Election[str] = Election(background=True)
    for _ in range(3):
        assert election.tick() is Tick.SLEEP
        election.enter(A)
        election.leave(A)


def test_it_parks_while_one_leader_sleeps_and_is_unparked_when_that_leaves() -> None:
    election: Election[str] = Election(background=True)
    election.enter(A)
    assert election.tick() is Tick.SLEEP
    assert election.tick() is Tick.PARK
    assert election.leave(A) is None
    assert election.unpark()
    assert not election.unpark()
    assert election.tick() is Tick.SLEEP


def test_it_stays_parked_while_leadership_passes_between_waiters() -> None:
    election: Election[str] = Election(background=True)
    election.enter(A)
    election.enter(B)
    election.tick()
    assert election.tick() is Tick.PARK
    assert election.leave(A) == B
    assert not election.unpark()
    assert election.background is Background.PARKED


def lead_in_background() -> Election[str]:
    election: Election[str] = Election(background=True)
    election.tick()
    assert election.tick() is Tick.LEAD
    return election


def test_a_waiter_ousts_a_polling_background_thread() -> None:
    election = lead_in_background()
    election.rested()
    assert election.enter(A) is Entry.OUST
    assert election.leader == A
    assert election.background is Background.OUSTED
    assert election.woke() is False
    assert election.background is Background.TICKING


def test_a_waiter_follows_a_background_thread_that_runs_handlers() -> None:
    election = lead_in_background()
    assert election.enter(A) is Entry.FOLLOW
    assert election.rested() == (False, A)
    assert election.leader == A
    assert election.background is Background.TICKING


def test_an_ousted_background_thread_has_nothing_to_do_when_the_thief_has_left() -> None:
    election = lead_in_background()
    election.rested()
    election.enter(A)
    election.leave(A)
    assert not election.unpark()  # it has not noticed yet, and will tick when it does
    assert election.woke() is False
    assert election.tick() is Tick.SLEEP
    assert election.tick() is Tick.LEAD


def test_try_enter_never_follows() -> None:
    election = lead_in_background()
    assert election.try_enter(A) is Entry.FOLLOW
    assert election.followers == []
    election.rested()
    assert election.try_enter(A) is Entry.OUST
    assert election.try_enter(B) is Entry.FOLLOW
    assert election.followers == []


def test_demand_lets_the_background_thread_lead_at_once() -> None:
    election: Election[str] = Election(background=True)
    election.enter(A)
    election.demand = True
    election.leave(A)
    assert election.unpark()
    assert election.tick() is Tick.LEAD


def test_retiring_hands_on() -> None:
    election = lead_in_background()
    election.enter(A)
    assert election.retire() == A
    assert election.background is Background.ABSENT
    assert election.leader == A


INTERLEAVINGS = [
    pytest.param(Model(2, 1), initial(2, background=False), id="two threads, no background"),
    pytest.param(Model(3, 1), initial(3, background=False), id="three threads, no background"),
    pytest.param(
        ModelWithNotifier(2, 1), initial(2, background=False, foreign=(0, 1)), id="ended by other threads"
    ),
    pytest.param(Model(2, 1, timeouts=True), initial(2, background=False), id="timeouts, no background"),
    pytest.param(Model(1, 2), initial(1, waits_each=2, background=True), id="two waits and the background"),
    pytest.param(Model(2, 1), initial(2, background=True), id="two threads and the background"),
    pytest.param(Model(2, 1), initial(2, background=True, demand=True), id="the same with demand"),
    pytest.param(
        ModelWithNotifier(2, 1), initial(2, background=True, foreign=(0,)), id="one ended by another thread"
    ),
    pytest.param(Model(2, 1, timeouts=True), initial(2, background=True), id="timeouts and the background"),
]


@pytest.mark.parametrize(("model", "start"), INTERLEAVINGS)
def test_every_interleaving_ends_and_keeps_the_invariants(model: Model, start: State) -> None:
    assert explore(model, start) > 50


def test_the_model_notices_a_lost_wake_up() -> None:
    class Forgetful(ModelWithNotifier):
        def notify_look(self, s: State, w: int) -> State:
            return s  # marks the wait as done and wakes nobody

    with pytest.raises(AssertionError, match="cannot end"):
        explore(Forgetful(2, 1), initial(2, background=False, foreign=(0,)))


def test_the_model_notices_a_bell_silenced_too_early() -> None:
    class Hasty(Model):
        def handle(self, s: State, i: int) -> State:
            s = super().handle(s, i)
            bell = s.local[i][0]  # type: ignore[index]
            return self.go(s, i, s.pcs[i], bell=False) if bell else s

    # The new leader swallows the ring that was meant for the ousted background thread, which then sleeps on
    # in poll: nothing is lost while messages come, but nobody ticks any more.
    start = initial(1, waits_each=2, background=True)
    seen: set[State] = set()
    todo = [start]
    model = Hasty(1, 2)
    stranded = False
    while todo:
        state = todo.pop()
        if model.finished(state) and state.pcs[-1] == "bg poll" and state.election[0] == "ousted":
            stranded = stranded or not (state.bell or state.inbox)
        for after in model.successors(state):
            if after not in seen:
                seen.add(after)
                todo.append(after)
    assert stranded


def test_an_ousted_background_thread_always_wakes() -> None:
    model = Model(1, 2)
    start = initial(1, waits_each=2, background=True)
    seen = {start}
    todo = [start]
    while todo:
        state = todo.pop()
        if state.election[0] == "ousted" and state.pcs[-1] == "bg poll":
            assert state.bell or state.inbox or state.pcs[0] == "ring"
        for after in model.successors(state):
            if after not in seen:
                seen.add(after)
                todo.append(after)
