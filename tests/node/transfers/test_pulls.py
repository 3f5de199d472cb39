"""Pulls, event by event: one pull per object, lanes, other copies, versions, deadlines."""

from __future__ import annotations

from typing import Any

from minray.node.transfers.pulls import LANE_PULLS, MIB, REST_S, SEARCHED, SMALL, STALL_S, TRIES, Effect, Pulls
from minray.node.transfers.wording import DROPPED, FREED, NOT_WANTED, ask
from minray.wire.messages import Location, PullDone, PullObject, PullRefused

ME, HOME, OTHER, THIRD = (bytes([number]) * 28 for number in range(4))
V1, V2 = b"version1", b"version2"
SIZE = 8 * MIB


def oid(number: int) -> bytes:
    return number.to_bytes(28, "big")


X = oid(1)


def at(size: int = SIZE, home: bytes = HOME) -> Location:
    return (home, 5, 0, size)


class Bench:
    """The machine, the time, and the answers that a store always gives."""

    def __init__(self, **options: Any) -> None:
        self.pulls = Pulls(ME, **options)
        self.now = 10.0

    def __call__(self, effects: list[Effect]) -> list[Effect]:
        self.pulls.check_invariants()
        return effects

    def want(self, object_id: bytes = X, location: Location | None = None) -> list[Effect]:
        return self(self.pulls.want(object_id, location or at(), self.now))

    def room(self, object_id: bytes, number: int, error: str = "") -> list[Effect]:
        return self(self.pulls.reserved(object_id, number, error, self.now))

    def asked(self, object_id: bytes = X, location: Location | None = None) -> int:
        """Wanted, reserved, and asked for at home: the request's number."""
        ((_, _, number, _),) = self.want(object_id, location)
        ((_, node_id, message),) = self.room(object_id, number)
        assert isinstance(message, PullObject) and node_id == (location or at())[0]
        return message.request_id

    def grant(self, request: int, node: bytes = HOME, size: int = SIZE, version: bytes = V1, others: Any = ()) -> Any:
        return self(self.pulls.granted(node, request, size, b"ticket", version, list(others), self.now))

    def refuse(self, request: int, reason: str, node: bytes = HOME) -> list[Effect]:
        return self(self.pulls.refused(node, request, reason, self.now))

    def ended(self, received: int, reason: str = "", object_id: bytes = X, **options: Any) -> list[Effect]:
        return self(self.pulls.ended(object_id, received, reason, self.now, **options))

    def lost(self, node: bytes, **options: Any) -> list[Effect]:
        return self(self.pulls.link_lost(node, "cut", self.now, **options))

    def wait(self, seconds: float) -> list[Effect]:
        self.now += seconds
        return self(self.pulls.tick(self.now))


def test_an_object_is_reserved_asked_for_received_and_sealed() -> None:
    bench = Bench()
    assert bench.want() == [("reserve", X, 1, SIZE)]
    assert bench.want() == []  # one pull, however many want it
    assert bench.room(X, 1) == [("send", HOME, PullObject(2, X, at()))]
    assert bench.grant(2) == [("receive", X, 1, 2, HOME, b"ticket", 0)]
    assert bench.ended(SIZE) == [("send", HOME, PullDone(2)), ("seal", X, 1, V1)]
    assert len(bench.pulls) == 0 and bench.pulls.next_deadline() is None


def test_without_room_it_fails_and_says_so() -> None:
    bench = Bench()
    bench.want()
    ((kind, object_id, reason, why),) = bench.room(X, 1, "the store is full")
    assert (kind, object_id, why) == ("failed", X, "full") and "the store is full" in reason


def test_a_full_disk_in_the_middle_ends_it() -> None:
    bench = Bench()
    bench.grant(bench.asked())
    refused, failed, released = bench.ended(MIB, "No space left on device", full=True)
    assert refused == ("send", HOME, PullRefused(2, "No space left on device"))
    assert failed[3] == "full" and released == ("release", 1)


def test_what_its_home_does_not_have_fails_at_once() -> None:
    for reason, kind in ((FREED, "freed"), ("it is not on this node", "lost")):
        bench = Bench()
        assert bench.refuse(bench.asked(), reason) == [("failed", X, reason, kind), ("release", 1)]


def test_its_home_may_name_somebody_else() -> None:
    bench = Bench()
    request = bench.asked()
    assert bench.refuse(request, ask([OTHER, THIRD])) == [("send", OTHER, PullObject(3, X, at()))]
    bench.grant(3, OTHER)
    assert bench.ended(SIZE) == [
        ("send", OTHER, PullDone(3)),
        ("send", HOME, PullDone(2)),  # it keeps the list of who has it
        ("seal", X, 1, V1),
    ]


def test_if_that_one_fails_its_home_thinks_again_and_what_is_here_stays() -> None:
    bench = Bench()
    bench.refuse(bench.asked(), ask([OTHER]))
    bench.grant(3, OTHER)
    assert bench.ended(3 * MIB, "hung up") == [
        ("send", OTHER, PullRefused(3, "hung up")),
        ("send", HOME, PullRefused(2, "hung up")),
        ("send", HOME, PullObject(4, X, at())),
    ]
    assert bench.grant(4) == [("receive", X, 1, 4, HOME, b"ticket", 3 * MIB)]


def test_other_bytes_under_the_same_id_are_not_mixed() -> None:
    bench = Bench()
    bench.refuse(bench.asked(), ask([OTHER]))
    bench.grant(3, OTHER, version=V1)
    bench.ended(3 * MIB, "hung up")
    assert bench.grant(4, version=V2) == [("receive", X, 1, 4, HOME, b"ticket", 0)]


def test_when_its_home_dies_another_copy_goes_on() -> None:
    bench = Bench()
    bench.grant(bench.asked(), others=[ME, OTHER])
    bench.pulls.progress(X, 2 * MIB, bench.now)
    assert bench.lost(HOME, gone=True) == [("stop", X)]
    assert bench.ended(3 * MIB, "hung up") == [("send", OTHER, PullObject(3, X, at()))]
    assert bench.grant(3, OTHER) == [("receive", X, 1, 3, OTHER, b"ticket", 3 * MIB)]
    assert bench.ended(SIZE) == [("send", OTHER, PullDone(3)), ("seal", X, 1, V1)]


def test_when_its_home_dies_and_nobody_else_is_known_it_is_lost() -> None:
    bench = Bench()
    bench.asked()
    failed, released = bench.lost(HOME, gone=True)
    assert failed[:2] == ("failed", X) and failed[3] == "lost" and released == ("release", 1)


def test_when_its_home_dies_all_others_are_asked_one_by_one() -> None:
    bench = Bench(living=lambda: [ME, OTHER, THIRD, HOME])
    bench.asked()
    assert bench.lost(HOME, gone=True) == [("send", OTHER, PullObject(3, X, at()))]
    assert bench.refuse(3, "not here", OTHER) == [("send", THIRD, PullObject(4, X, at()))]
    assert bench.grant(4, THIRD) == [("receive", X, 1, 4, THIRD, b"ticket", 0)]
    assert bench.ended(SIZE) == [("send", THIRD, PullDone(4)), ("seal", X, 1, V1)]


def test_a_search_goes_on_when_the_one_that_was_found_dies_and_it_ends() -> None:
    fourth = bytes([4]) * 28
    bench = Bench(living=lambda: [OTHER, THIRD, fourth])
    bench.asked()
    bench.lost(HOME, gone=True)
    bench.grant(3, OTHER)
    bench.pulls.progress(X, 3 * MIB, bench.now)
    assert bench.lost(OTHER, gone=True) == [("stop", X)]
    assert bench.ended(3 * MIB, "hung up") == [("send", THIRD, PullObject(4, X, at()))]
    assert bench.lost(THIRD, gone=True) == [("send", fourth, PullObject(5, X, at()))]
    failed, released = bench.refuse(5, "not here", fourth)
    assert failed[3] == "lost" and released == ("release", 1)
    assert "cut" in failed[2], "what happened to its home, not what a stranger said"


def test_a_search_has_a_bound() -> None:
    strangers = [number.to_bytes(28, "big") for number in range(100, 100 + 2 * SEARCHED)]
    bench = Bench(living=lambda: iter(strangers))
    bench.asked()
    ((_, asked, message),) = bench.lost(HOME, gone=True)
    seen = [asked]
    while True:
        effects = bench.refuse(message.request_id, "not here", asked)
        if effects[0][0] == "failed":
            break
        ((_, asked, message),) = effects
        seen.append(asked)
    assert seen == strangers[:SEARCHED]


def test_a_broken_connection_is_tried_again_a_little_later_but_not_for_ever() -> None:
    bench = Bench()
    bench.asked()
    for tries in range(1, TRIES + 1):
        assert bench.lost(HOME) == []
        assert bench.pulls.next_deadline() == bench.now + REST_S * tries
        assert bench.wait(REST_S * tries / 2) == []
        ((_, node_id, message),) = bench.wait(REST_S * tries)
        assert node_id == HOME and isinstance(message, PullObject)
    failed, _ = bench.lost(HOME)
    assert failed[3] == "lost" and "cut" in failed[2]


def test_progress_earns_new_tries() -> None:
    bench = Bench()
    request = bench.asked()
    for number in range(1, 4 * TRIES):
        bench.grant(request)
        bench.ended(number * 1000, "hung up")
        ((_, _, message),) = bench.wait(1.0)
        request = message.request_id


def test_a_source_from_which_nothing_comes_is_lost() -> None:
    bench = Bench()
    bench.grant(bench.asked())
    assert bench.pulls.next_deadline() == bench.now + STALL_S
    bench.now += STALL_S - 1
    bench.pulls.progress(X, 1, bench.now)
    assert bench.wait(1) == []
    assert bench.wait(STALL_S - 1) == [("stop", X)]
    assert bench.wait(100) == []  # once
    (refused,) = bench.ended(1, "hung up")
    assert refused[2].reason.startswith("nothing has come")


def test_what_nobody_wants_ends_wherever_it_is() -> None:
    queued = Bench()
    for number in range(LANE_PULLS + 1):
        queued.want(oid(number + 1))
    assert queued(queued.pulls.unwanted(oid(LANE_PULLS + 1), 0.0)) == []

    waiting = Bench()
    waiting.want()
    assert waiting(waiting.pulls.unwanted(X, 0.0)) == []
    assert waiting.room(X, 1) == [("release", 1)]

    asked = Bench()
    request = asked.asked()
    assert asked(asked.pulls.unwanted(X, 0.0)) == [
        ("send", HOME, PullRefused(request, NOT_WANTED)),
        ("release", 1),
    ]
    assert asked.grant(request) == [("send", HOME, PullRefused(request, NOT_WANTED))]

    receiving = Bench()
    receiving.grant(receiving.asked())
    assert receiving(receiving.pulls.unwanted(X, 0.0)) == [("stop", X)]  # the room is written to
    assert receiving.ended(MIB, "stopped") == [("send", HOME, PullRefused(2, NOT_WANTED)), ("release", 1)]


def test_who_wants_it_again_while_it_stops_gets_it() -> None:
    bench = Bench()
    bench.grant(bench.asked())
    bench(bench.pulls.unwanted(X, 0.0))
    assert bench.want() == []
    bench.ended(MIB, "stopped")
    ((_, _, message),) = bench.wait(1.0)
    assert bench.grant(message.request_id) == [("receive", X, 1, message.request_id, HOME, b"ticket", MIB)]


def test_bytes_in_flight_are_bounded_and_the_order_is_that_of_arrival() -> None:
    bench = Bench(lane_bytes=100 * MIB)
    sizes = [60, 60, 30, 300, 20]  # MiB
    started = [bench.want(oid(n), at(size * MIB)) for n, size in enumerate(sizes)]
    assert [bool(effects) for effects in started] == [True, False, False, False, False]
    done = []
    for n in range(len(sizes)):
        request = n  # finish them one after the other
        pull = bench.pulls._pulls[oid(n)]
        ((_, _, message),) = bench.room(oid(n), pull.number)
        request = message.request_id
        bench.grant(request, size=pull.size)
        effects = bench.ended(pull.size, object_id=oid(n))
        done.append([effect[1] for effect in effects if effect[0] == "reserve"])
    assert done == [[oid(1), oid(2)], [], [oid(3)], [oid(4)], []]  # 300 MiB: alone


def test_small_ones_do_not_wait_for_large_ones() -> None:
    bench = Bench(lane_bytes=100 * MIB)
    assert bench.want(oid(1), at(SMALL + 1)) != []
    assert bench.want(oid(2), at(200 * MIB)) == []
    assert bench.want(oid(3), at(SMALL)) != []


def test_an_object_of_another_size_is_not_taken() -> None:
    bench = Bench()
    effects = bench.grant(bench.asked(), size=SIZE + 1)
    assert effects[0][0] == "send" and str(SIZE + 1) in effects[0][2].reason


def test_what_goes_for_room_is_told_to_its_home() -> None:
    bench = Bench()
    bench.grant(bench.asked())
    bench.ended(SIZE)
    assert bench(bench.pulls.evicted(X)) == [("send", HOME, PullRefused(2, DROPPED))]
    assert bench(bench.pulls.evicted(X)) == []


def test_a_guest_whose_home_was_out_of_touch_fades_when_that_lives() -> None:
    bench = Bench()
    bench.grant(bench.asked())
    bench.ended(SIZE)
    assert bench.lost(HOME) == []
    request = bench.asked(oid(2))
    effects = bench.grant(request)
    assert ("fade", X) in effects
    assert bench(bench.pulls.evicted(X)) == []  # its home knows nothing of it


def test_a_guest_of_a_dead_home_stays() -> None:
    bench = Bench()
    bench.grant(bench.asked())
    bench.ended(SIZE)
    assert bench.lost(HOME, gone=True) == []
    assert bench(bench.pulls.evicted(X)) == []


def test_freed_objects_are_forgotten() -> None:
    bench = Bench()
    bench.grant(bench.asked())
    bench.ended(SIZE)
    bench.pulls.freed(X)
    assert bench.lost(HOME) == [] and bench.pulls._guests == {} == bench.pulls._lost_touch
