"""A model of the threads around ``Election``, for running every interleaving.

Each thread is a small program whose steps are atomic; between two steps any other thread may run. The
programs mirror ``reactor.py`` step by step: what happens under the mutex is one step, and so is each read or
write of something shared (``done``, gates, ``sleeping``, the bell, the posts). A poll ends when the bell
rings or a message has arrived; it may end in two threads at once. A tick may pass at any time.

``explore`` builds the graph of all reachable states and raises if in any of them an invariant is broken, or
if the end (every wait over, every message handled) cannot be reached from it any more: that is what a lost
wake-up looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from minray.wire.election import Background, Election, Entry, Tick

BACKGROUNDS = {state.value: state for state in Background}  # hashing an enum is slow


class State(NamedTuple):
    """Everything, immutable: waits are small numbers, gates and done are sets of them."""

    pcs: tuple[str, ...]  # one per thread; the background thread's is the last
    waits: tuple[int, ...]  # the current wait of each waiting thread
    election: tuple[object, ...]
    done: frozenset[int] = frozenset()
    gates: frozenset[int] = frozenset()  # open ones
    has_gate: frozenset[int] = frozenset()
    background_gate: bool = False
    bell: bool = False
    sleeping: bool = False
    inbox: tuple[int, ...] = ()  # messages in the sockets: each ends the wait of that number
    coming: tuple[int, ...] = ()  # messages that will arrive at some time
    foreign: tuple[int, ...] = ()  # waits that another thread will end by notify
    local: tuple[object, ...] = ()  # what each thread keeps between two steps
    handling: frozenset[int] = frozenset()  # threads that run handlers


def load(state: State) -> Election[int]:
    election: Election[int] = Election(background=True)
    (
        background,
        election.leader,
        election.demand,
        election.polls,
        election._seen_polls,
        election._seen_leading,
        followers,
    ) = state.election  # type: ignore[assignment]
    election.background = BACKGROUNDS[background]  # type: ignore[index]
    election._followers = dict.fromkeys(followers)  # type: ignore[call-overload]
    return election


def save(election: Election[int]) -> tuple[object, ...]:
    election.check_invariants()
    # Only whether nobody has led since the last tick matters, not how often: this keeps the graph finite.
    quiet = election.polls == election._seen_polls
    return (
        election.background.value,
        election.leader,
        election.demand,
        0,
        0 if quiet else -1,
        election._seen_leading,
        tuple(election._followers),
    )


def initial(
    threads: int,
    *,
    waits_each: int = 1,
    background: bool,
    foreign: tuple[int, ...] = (),
    demand: bool = False,
) -> State:
    """Thread i makes the waits i, i + threads, …; all but ``foreign`` end by messages."""
    election: Election[int] = Election(background=background)
    election.demand = demand
    total = threads * waits_each
    return State(
        pcs=("start",) * threads + ("tick" if background else "gone",),
        waits=tuple(range(threads)),
        election=save(election),
        coming=tuple(w for w in range(total) if w not in foreign),
        foreign=foreign,
        local=(None,) * (threads + 1),
    )


class Model:
    """The successors of a state."""

    def __init__(self, threads: int, waits_each: int, *, timeouts: bool = False) -> None:
        self.threads = threads
        self.total = threads * waits_each
        self.timeouts = timeouts

    def successors(self, s: State) -> Iterator[State]:
        yield from self.environment(s)
        for i in range(self.threads + 1):
            step: Callable[[State, int], Iterator[State]] = getattr(self, "at_" + s.pcs[i].replace(" ", "_"))
            yield from step(s, i)

    def finished(self, s: State) -> bool:
        handled = s.pcs[-1] == "gone" or not (s.inbox or s.coming or s.foreign)
        return handled and all(pc == "over" for pc in s.pcs[: self.threads])

    # --- the world

    def environment(self, s: State) -> Iterator[State]:
        for w in s.coming:
            yield s._replace(coming=tuple(x for x in s.coming if x != w), inbox=(*s.inbox, w))
        for w in s.foreign:
            if w in s.waits or w in s.done:
                rest = tuple(x for x in s.foreign if x != w)
                yield from self.notify(s._replace(foreign=rest), w, inside=False)

    def notify(self, s: State, w: int, *, inside: bool) -> Iterator[State]:
        """``Reactor.notify``; as one step, or (``inside=False``) with a gap between the mark and the look."""
        s = s._replace(done=s.done | {w})
        if inside:
            yield self.notify_look(s, w)
        else:
            yield s._replace(foreign=(*s.foreign, -10 - w))

    def notify_look(self, s: State, w: int) -> State:
        if w in s.has_gate:
            s = s._replace(gates=s.gates | {w})
        if s.sleeping and load(s).leader == w:
            s = s._replace(sleeping=False, bell=True)
        return s

    # --- helpers

    def go(self, s: State, i: int, pc: str, **changes: object) -> State:
        pcs = list(s.pcs)
        pcs[i] = pc
        return s._replace(pcs=tuple(pcs), **changes)

    def keep(self, s: State, i: int, value: object) -> State:
        local = list(s.local)
        local[i] = value
        return s._replace(local=tuple(local))

    def leave(self, s: State, i: int, after: str) -> State:
        election = load(s)
        promoted = election.leave(s.waits[i])
        unpark = promoted is None and election.unpark()
        s = s._replace(election=save(election))
        return self.keep(self.go(s, i, "left"), i, (promoted, unpark, after))

    # --- a thread that waits

    def at_start(self, s: State, i: int) -> Iterator[State]:
        w = s.waits[i]
        if w in s.done:
            yield self.go(s, i, "next")
            return
        election = load(s)
        entry = election.enter(w)
        s = s._replace(election=save(election))
        if entry is Entry.FOLLOW:
            yield self.go(s, i, "follow", has_gate=s.has_gate | {w})
        elif entry is Entry.OUST:
            yield self.go(s, i, "ring", sleeping=False)
        else:
            yield self.go(s, i, "lead")

    def at_ring(self, s: State, i: int) -> Iterator[State]:
        yield self.go(s, i, "lead", bell=True)

    def at_follow(self, s: State, i: int) -> Iterator[State]:
        w = s.waits[i]
        if w in s.done:
            yield self.leave(s, i, "next")
        elif load(s).leader == w:
            yield self.go(s, i, "lead")
        else:
            yield self.go(s, i, "asleep")
            if self.timeouts:
                yield self.leave(s, i, "give up")

    def at_asleep(self, s: State, i: int) -> Iterator[State]:
        w = s.waits[i]
        if w in s.gates:
            yield self.go(s, i, "follow", gates=s.gates - {w})
        elif self.timeouts:
            yield self.go(s, i, "timed out")

    def at_timed_out(self, s: State, i: int) -> Iterator[State]:
        yield self.leave(s, i, "give up")

    def at_lead(self, s: State, i: int) -> Iterator[State]:
        if s.waits[i] in s.done:
            yield self.leave(s, i, "next")
        else:
            yield self.go(s, i, "look", sleeping=True)
            if self.timeouts:
                yield self.leave(s, i, "give up")

    def at_look(self, s: State, i: int) -> Iterator[State]:
        if s.waits[i] in s.done:
            yield self.go(s, i, "lead", sleeping=False)
        else:
            yield self.go(s, i, "poll")

    def at_poll(self, s: State, i: int) -> Iterator[State]:
        if s.bell or s.inbox:
            yield self.keep(self.go(s, i, "woke"), i, (s.bell, bool(s.inbox)))

    def at_woke(self, s: State, i: int) -> Iterator[State]:
        yield self.go(s, i, "handle", sleeping=False, handling=s.handling | {i})

    def at_handle(self, s: State, i: int) -> Iterator[State]:
        assert s.handling == {i}, "two threads run handlers"
        yield self.go(self.handle(s, i), i, "lead", handling=frozenset())

    def handle(self, s: State, i: int) -> State:
        bell, inbox = s.local[i]  # type: ignore[misc]
        if bell and load(s).background is not Background.OUSTED:
            s = s._replace(bell=False)
        if inbox:
            for w in s.inbox:
                s = next(self.notify(s, w, inside=True))
            s = s._replace(inbox=())
        return s

    def at_left(self, s: State, i: int) -> Iterator[State]:
        promoted, unpark, after = s.local[i]  # type: ignore[misc]
        s = self.keep(self.go(s, i, after), i, None)
        if promoted is not None:
            s = s._replace(gates=s.gates | {promoted})
        elif unpark:
            s = s._replace(background_gate=True)
        yield s

    def at_give_up(self, s: State, i: int) -> Iterator[State]:
        # The wait timed out; its end may still come, for nobody.
        yield self.go(s, i, "next")

    def at_next(self, s: State, i: int) -> Iterator[State]:
        w = s.waits[i] + self.threads
        if w >= self.total:
            yield self.go(s, i, "over")
        else:
            waits = list(s.waits)
            waits[i] = w
            yield self.go(s, i, "start", waits=tuple(waits))

    def at_over(self, s: State, i: int) -> Iterator[State]:
        yield from ()

    # --- the background thread

    def at_gone(self, s: State, i: int) -> Iterator[State]:
        yield from ()

    def at_tick(self, s: State, i: int) -> Iterator[State]:
        election = load(s)
        tick = election.tick()
        s = s._replace(election=save(election))
        if tick is Tick.LEAD:
            yield self.go(s, i, "rest", handling=s.handling | {i})
        elif tick is Tick.PARK:
            yield self.go(s, i, "parked")
        else:
            yield self.go(s, i, "ticking")

    def at_ticking(self, s: State, i: int) -> Iterator[State]:
        yield self.go(s, i, "tick", background_gate=False)  # woken or not: a tick may pass at any time

    def at_parked(self, s: State, i: int) -> Iterator[State]:
        if s.background_gate:
            yield self.go(s, i, "tick", background_gate=False)

    def at_rest(self, s: State, i: int) -> Iterator[State]:
        assert s.handling == {i}, "two threads run handlers"
        election = load(s)
        leading, promoted = election.rested()
        s = s._replace(election=save(election), handling=frozenset())
        if leading:
            yield self.go(s, i, "bg poll", sleeping=True)
        elif promoted is None:
            yield self.go(s, i, "ticking")
        else:
            yield self.keep(self.go(s, i, "promoting"), i, promoted)

    def at_promoting(self, s: State, i: int) -> Iterator[State]:
        w = s.local[i]
        assert isinstance(w, int)
        yield self.keep(self.go(s, i, "ticking", gates=s.gates | {w}), i, None)

    def at_bg_poll(self, s: State, i: int) -> Iterator[State]:
        if s.bell or s.inbox:
            yield self.keep(self.go(s, i, "bg woke"), i, (s.bell, bool(s.inbox)))

    def at_bg_woke(self, s: State, i: int) -> Iterator[State]:
        election = load(s)
        mine = election.woke()
        s = s._replace(election=save(election))
        if mine:
            yield self.go(s, i, "bg handle", sleeping=False, handling=s.handling | {i})
        else:
            yield self.keep(self.go(s, i, "ticking"), i, None)

    def at_bg_handle(self, s: State, i: int) -> Iterator[State]:
        assert s.handling == {i}, "two threads run handlers"
        yield self.keep(self.go(self.handle(s, i), i, "rest"), i, None)


class ModelWithNotifier(Model):
    """A foreign notify has two steps: the mark (``foreign`` then holds -10 - w), and the look."""

    def environment(self, s: State) -> Iterator[State]:
        for w in s.foreign:
            if w <= -10:
                rest = tuple(x for x in s.foreign if x != w)
                yield self.notify_look(s._replace(foreign=rest), -10 - w)
        yield from super().environment(s)


def explore(model: Model, start: State, limit: int = 400_000) -> int:
    """Raises AssertionError with the path for a broken invariant or a state that cannot end. Returns the
    size."""
    parents: dict[State, State | None] = {start: None}
    backwards: dict[State, list[State]] = {}
    todo = [start]
    ends: list[State] = []
    while todo:
        state = todo.pop()
        if model.finished(state):
            ends.append(state)
        try:
            following = list(model.successors(state))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{story(parents, state)}") from error
        for after in following:
            backwards.setdefault(after, []).append(state)
            if after not in parents:
                parents[after] = state
                todo.append(after)
                assert len(parents) < limit, "the model is too large"
    good = set(ends)
    todo = list(ends)
    while todo:
        for before in backwards.get(todo.pop(), ()):
            if before not in good:
                good.add(before)
                todo.append(before)
    stuck = [state for state in parents if state not in good]
    assert not stuck, f"{len(stuck)} states cannot end any more\n{story(parents, stuck[0])}"
    return len(parents)


def story(parents: dict[State, State | None], state: State | None) -> str:
    path: list[str] = []
    while state is not None:
        path.append(
            f"{state.pcs} {state.election[0]} leader={state.election[1]} done={sorted(state.done)} "
            f"gates={sorted(state.gates)} bell={state.bell} sleeping={state.sleeping} inbox={state.inbox}"
        )
        state = parents[state]
    return "\n".join(reversed(path[:40]))
