"""ExtentTable, message by message: grants, queues, pins that overtake reports, deaths."""

from __future__ import annotations

from typing import Any

import pytest

from minray.store.errors import describe_full
from minray.store.extents import ADOPT_GRACE_S, Effect, ExtentTable
from minray.wire.errors import ProtocolError
from minray.wire.messages import (
    ExtentGrant,
    ExtentRefused,
    ExtentRequest,
    ExtentReturn,
    Free,
    Freed,
    Hello,
    LeftBehind,
    Message,
    Narrow,
    Pin,
    Pinned,
    Sealed,
    SegmentsGone,
    Trim,
    Unpin,
)
from tests.store.support import KIB, MIB, NODE, object_id

A, B, C = (letter * 28 for letter in (b"a", b"b", b"c"))
X = object_id(1, A)
Y = object_id(2, A)


class Table:
    """A table, and the time; every call checks the invariants."""

    def __init__(self, capacity: int = 16 * MIB, **options: Any) -> None:
        self.table = ExtentTable(capacity, node_id=NODE, prefix="t-", **options)
        self.now = 0.0
        self.requests = 0

    def __call__(self, worker: bytes, message: Message) -> list[Effect]:
        effects = self.table.handle(worker, message, self.now)
        self.table.check_invariants()
        return effects

    def wait(self, seconds: float) -> list[Effect]:
        self.now += seconds
        effects = self.table.tick(self.now)
        self.table.check_invariants()
        return effects

    def died(self, worker: bytes) -> list[Effect]:
        effects = self.table.process_died(worker, self.now)
        self.table.check_invariants()
        return effects

    def request(self, worker: bytes, size: int) -> list[Effect]:
        self.requests += 1
        return self(worker, ExtentRequest(self.requests, size))

    def extent(self, worker: bytes, size: int = 1000) -> int:
        """A granted segment's id."""
        effects = self.request(worker, size)
        assert [effect[0] for effect in effects] == ["create", "send"]
        return int(effects[0][1])

    def seal(
        self, writer: bytes, oid: bytes, segment: int, offset: int, length: int, owner: bytes = A
    ) -> list[Effect]:
        return self(writer, Sealed([(oid, owner, segment, offset, length)]))

    def pin(
        self, reader: bytes, oid: bytes, segment: int, offset: int = 0, length: int = 100
    ) -> list[Effect]:
        return self(reader, Pin(7, [(oid, (NODE, segment, offset, length))]))


def sent(effects: list[Effect], kind: type[Message]) -> list[tuple[bytes, Any]]:
    return [(e[1], e[2]) for e in effects if e[0] == "send" and isinstance(e[2], kind)]


def answers(effects: list[Effect]) -> list[Any]:
    ((_, message),) = sent(effects, Pinned)
    return list(message.answers)


# --- extents --------------------------------------------------------------------------------------


def test_a_grant_follows_its_creation() -> None:
    table = Table()
    (create, send) = table.request(A, 100)
    assert create == ("create", 1, "t-1", MIB)  # a sixteenth of the store at most
    assert send == ("send", A, ExtentGrant(1, 1, "t-1", MIB))
    assert table.table.stats().reserved == MIB


def test_extents_double_with_what_their_writer_holds() -> None:
    table = Table(capacity=8 << 30)
    sizes = []
    for _ in range(7):
        effects = table.request(A, 1000)
        sizes.append(effects[0][3] // MIB)
    assert sizes == [4, 4, 8, 16, 32, 64, 64]
    assert table.request(B, 1000)[0][3] == 4 * MIB


def test_a_large_object_gets_a_segment_with_some_room_to_grow() -> None:
    table = Table(capacity=8 << 30)
    size = 800 * MIB
    granted = table.request(A, size)[0][3]
    assert size <= granted <= size * 1.125
    tight = Table(capacity=801 * MIB)
    assert tight.request(A, size)[0][3] == size


def test_a_request_waits_for_returns_and_writers_are_asked_for_them() -> None:
    table = Table(capacity=MIB, extent_size=MIB)
    first = table.extent(A, MIB)
    effects = table.request(B, 1000)
    assert sent(effects, Trim) == [(A, Trim())] and len(effects) == 1
    assert table.table.next_deadline() == pytest.approx(0.25)
    assert sent(table.wait(0.3), Trim) == [(A, Trim())]
    effects = table(A, ExtentReturn([first]))
    assert [e[0] for e in effects] == ["unlink", "create", "send"]
    assert table.table.next_deadline() is None


def test_after_the_grace_it_is_refused_and_told_why() -> None:
    table = Table(capacity=MIB, extent_size=MIB, grace_s=2.0)
    segment = table.extent(A, MIB)
    table.seal(A, X, segment, 0, 500 * KIB)
    table.pin(B, X, segment, 0, 500 * KIB)
    assert not sent(table.request(B, MIB), ExtentRefused)
    assert not sent(table.wait(1.9), ExtentRefused)
    ((worker, refusal),) = sent(table.wait(0.1), ExtentRefused)
    assert worker == B and refusal.request_id == 2
    text = describe_full(MIB, refusal.info)
    assert "1.05 MB of 1.05 MB in 1 segments: 1 shared objects of 512 KB (512 KB being read)" in text
    assert "waited 2 s" in text and X.hex()[:16] in text and "object_store_memory" in text
    assert table.table.next_deadline() is None


@pytest.mark.parametrize("grace", [0.0, 10.0])
def test_more_than_the_capacity_is_refused_at_once(grace: float) -> None:
    table = Table(capacity=MIB, grace_s=grace)
    ((_, refusal),) = sent(table.request(A, MIB + 1), ExtentRefused)
    assert refusal.info["capacity"] == MIB


def test_without_a_grace_nothing_waits() -> None:
    table = Table(capacity=MIB, extent_size=MIB, grace_s=0.0)
    table.extent(A, MIB)
    assert sent(table.request(B, 1), ExtentRefused)
    assert table.table.next_deadline() is None


def test_small_requests_overtake_a_large_one_only_for_half_of_its_grace() -> None:
    table = Table(capacity=4 * MIB, extent_size=256 * KIB, grace_s=10.0)
    table.extent(A, 2 * MIB)
    assert not sent(table.request(B, 3 * MIB), ExtentGrant)
    assert sent(table.request(C, 1000), ExtentGrant)
    table.wait(5.0)
    assert not sent(table.request(C, 1000), ExtentGrant)
    effects = table.wait(5.0)  # the large one is refused, the small one goes on
    assert sent(effects, ExtentRefused)[0][0] == B
    assert sent(effects, ExtentGrant)[0][0] == C


def test_a_segment_that_cannot_be_made_becomes_a_refusal() -> None:
    table = Table()
    segment = table.extent(A)
    ((_, refusal),) = sent(table.table.create_failed(segment, "No space left", table.now), ExtentRefused)
    assert refusal.request_id == 1 and refusal.info["os_error"] == "No space left"
    assert table.table.stats().reserved == 0
    table.table.check_invariants()


def test_requests_of_the_dead_are_forgotten() -> None:
    table = Table(capacity=MIB, extent_size=MIB)
    segment = table.extent(A, MIB)
    table.request(B, 1)
    table.died(B)
    assert [e[0] for e in table(A, ExtentReturn([segment]))] == ["unlink"]


# --- objects --------------------------------------------------------------------------------------


def test_free_gives_the_range_back_to_its_writer() -> None:
    table = Table()
    segment = table.extent(B)
    table.seal(B, X, segment, 64, 100)
    assert table(A, Free([(X, segment, 64, 100)])) == [("send", B, Freed([(segment, 64, 100)], False))]
    assert table(A, Free([(X, segment, 64, 100)])) == []  # once more: nothing happens
    assert table.table.stats().objects == 0


def test_free_waits_for_the_last_pin() -> None:
    table = Table()
    segment = table.extent(A)
    table.seal(A, X, segment, 0, 100)
    for reader in (B, B, C):
        assert answers(table.pin(reader, X, segment)) == [("pinned", "t-1", MIB, (NODE, segment, 0, 100))]
    assert table(A, Free([(X, segment, 0, 100)])) == []
    assert answers(table.pin(C, X, segment)) == [("gone", "its owner freed it")]
    assert table(B, Unpin([X, X])) == []
    assert table(C, Unpin([X])) == [("send", A, Freed([(segment, 0, 100)], False))]


def test_the_death_of_readers_and_owners() -> None:
    table = Table()
    segment = table.extent(B)
    table.seal(B, X, segment, 0, 100, owner=A)
    table.pin(C, X, segment)
    assert table.died(A) == []  # its owner: freed, but somebody reads
    assert table.died(C) == [("send", B, Freed([(segment, 0, 100)], False))]
    assert table.seal(B, Y, segment, 128, 100, owner=A) == [("send", B, Freed([(segment, 128, 100)], False))]


def test_an_orphaned_segment_goes_with_its_last_object() -> None:
    table = Table()
    segment = table.extent(B)
    table.seal(B, X, segment, 0, 100, owner=A)
    table.pin(C, X, segment)
    assert table.died(B) == [("send", A, LeftBehind(NODE, [(X, segment, 0, 100)]))]
    assert table(A, Free([(X, segment, 0, 100)])) == []
    table.now = ADOPT_GRACE_S  # until then it could hold something that was not reported
    effects = table(C, Unpin([X]))
    assert effects == [("unlink", segment, "t-1"), ("send", C, SegmentsGone([segment]))]
    assert table.table.stats().reserved == 0


def test_an_empty_orphan_goes_after_a_grace_or_when_memory_is_short() -> None:
    table = Table(capacity=MIB, extent_size=MIB)
    table.extent(B, MIB)
    assert table.died(B) == []
    assert table.table.next_deadline() == ADOPT_GRACE_S
    assert [e[0] for e in table.wait(ADOPT_GRACE_S)] == ["unlink"]
    table.extent(C, MIB)
    table.died(C)
    assert [e[0] for e in table.request(A, 1)] == ["unlink", "create", "send"]


def test_readers_are_told_to_unmap() -> None:
    table = Table()
    segment = table.extent(A)
    table.seal(A, X, segment, 0, 100)
    table.pin(B, X, segment)
    table.pin(C, X, segment)
    table(B, Unpin([X]))
    table.died(C)
    table(A, Free([(X, segment, 0, 100)]))
    assert table(A, ExtentReturn([segment])) == [
        ("unlink", segment, "t-1"),
        ("send", B, SegmentsGone([segment])),
    ]


def test_shutdown_unlinks_everything() -> None:
    table = Table()
    table.extent(A)
    table.extent(B)
    assert table.table.shutdown() == [("unlink", 1, "t-1"), ("unlink", 2, "t-2")]


# --- messages that overtake each other ------------------------------------------------------------


def test_a_pin_waits_for_the_report_of_a_living_writer() -> None:
    table = Table()
    segment = table.extent(B)
    table.seal(B, Y, segment, 128, 100)
    effects = table(C, Pin(7, [(Y, (NODE, segment, 128, 100)), (X, (NODE, segment, 0, 100))]))
    assert effects == []
    effects = table.seal(B, X, segment, 0, 100)
    assert [answer[0] for answer in answers(effects)] == ["pinned", "pinned"]
    table(C, Unpin([X, Y]))


def test_but_not_for_ever() -> None:
    table = Table(grace_s=3.0)
    segment = table.extent(B)
    assert table.pin(C, X, segment) == []
    assert table.table.next_deadline() == 3.0
    ((kind, reason),) = answers(table.wait(3.0))
    assert kind == "gone" and "never reported" in reason
    assert table.table.next_deadline() is None


def test_a_free_that_overtakes_the_report() -> None:
    table = Table()
    segment = table.extent(B)
    assert table(A, Free([(X, segment, 0, 100)])) == []
    assert table.seal(B, X, segment, 0, 100) == [("send", B, Freed([(segment, 0, 100)], False))]


def test_a_pin_and_a_free_that_overtake_the_report() -> None:
    table = Table()
    segment = table.extent(B)
    table.pin(C, X, segment)
    table(A, Free([(X, segment, 0, 100)]))
    assert answers(table.seal(B, X, segment, 0, 100))[0][0] == "pinned"
    assert table(C, Unpin([X])) == [("send", B, Freed([(segment, 0, 100)], False))]


def test_an_early_free_is_forgotten_with_its_writer() -> None:
    table = Table()
    segment = table.extent(B)
    table(A, Free([(X, segment, 0, 100)]))
    table.died(B)
    assert not table.table._early_frees


def test_a_free_that_overtakes_the_report_of_what_was_made_again() -> None:
    """A generator that runs once more writes the same item once more: its first life says nothing about the second."""
    table = Table()
    segment = table.extent(B)
    table.seal(B, X, segment, 0, 100)
    table(A, Free([(X, segment, 0, 100)]))
    assert table(A, Free([(X, segment, 128, 100)])) == []
    assert table.seal(B, X, segment, 128, 100) == [("send", B, Freed([(segment, 128, 100)], False))]
    assert not table.table._early_frees


def test_a_free_that_comes_twice_is_not_kept_for_a_later_life_in_the_same_place() -> None:
    table = Table()
    segment = table.extent(B)
    table.seal(B, X, segment, 0, 100)
    for _ in range(2):
        table(A, Free([(X, segment, 0, 100)]))
    assert not table.table._early_frees
    table.seal(B, X, segment, 0, 100)
    assert answers(table.pin(C, X, segment))[0][0] == "pinned"


def test_an_early_free_waits_for_the_making_that_it_names() -> None:
    table = Table()
    segment = table.extent(B)
    table(A, Free([(X, segment, 0, 100)]))
    table.seal(B, X, segment, 128, 100)
    assert table.table.knows(X)
    effects = table.seal(B, X, segment, 0, 100)
    ((_, freed),) = sent(effects, Freed)
    assert sorted(freed.ranges) == [(segment, 0, 100), (segment, 128, 100)]
    assert not table.table._early_frees


def test_what_comes_while_its_earlier_life_is_still_read_goes_at_once() -> None:
    table = Table()
    segment = table.extent(B)
    table.seal(B, X, segment, 0, 100)
    table.pin(C, X, segment)
    table(A, Free([(X, segment, 0, 100)]))
    assert table.seal(B, X, segment, 128, 100) == [("send", B, Freed([(segment, 128, 100)], False))]
    assert table(A, Free([(X, segment, 128, 100)])) == []
    assert not table.table._early_frees
    assert table(C, Unpin([X])) == [("send", B, Freed([(segment, 0, 100)], False))]


def test_a_writer_takes_back_what_it_has_told_nobody_of() -> None:
    table = Table()
    segment = table.extent(B)
    table.seal(B, X, segment, 0, 100)
    assert table(B, Free([(X, segment, 0, 100)])) == [("send", B, Freed([(segment, 0, 100)], False))]
    assert answers(table.pin(C, X, segment))[0][0] == "gone"


def test_the_free_of_a_copy_that_came_while_the_object_was_freed_means_no_later_one() -> None:
    table = Table()
    segment = table.extent(B)
    table.seal(B, X, segment, 0, 100)
    table.pin(C, X, segment)
    table(A, Free([(X, segment, 0, 100)]))
    table.seal(B, X, segment, 128, 100)  # another attempt
    table(C, Unpin([X]))
    table(A, Free([(X, segment, 128, 100)]))  # its answer has come too late
    table.seal(B, X, segment, 128, 100)  # made once more, in the place that was given back
    assert answers(table.pin(C, X, segment, 128))[0][0] == "pinned"


def test_a_writer_takes_back_its_own_copy_only() -> None:
    """The task has run before, and the owner has that result of it: see worker.lineage."""
    table = Table()
    first, second = table.extent(B), table.extent(C)
    table.seal(B, X, first, 0, 100)
    table.seal(C, X, second, 0, 100)
    assert table(C, Free([(X, second, 0, 100)])) == []
    assert answers(table.pin(A, X, first))[0][0] == "pinned"
    table(A, Unpin([X]))  # a reader has named the one that counts: the other one goes
    assert table.table.stats().object_bytes == 100
    assert sent(table(A, Free([(X, first, 0, 100)])), Freed) == [(B, Freed([(first, 0, 100)], False))]


# --- what a dead writer leaves ----------------------------------------------------------------------


def test_owners_hear_what_a_dead_process_had_written_for_them() -> None:
    table = Table()
    segment = table.extent(B)
    table.seal(B, X, segment, 0, 100)
    table.seal(B, Y, segment, 128, 100)
    table.seal(B, object_id(1, C), segment, 256, 50, owner=C)
    effects = table.died(B)
    assert sent(effects, LeftBehind) == [
        (A, LeftBehind(NODE, [(X, segment, 0, 100), (Y, segment, 128, 100)])),
        (C, LeftBehind(NODE, [(object_id(1, C), segment, 256, 50)])),
    ]
    table(A, Free([(X, segment, 0, 100), (Y, segment, 128, 100)]))
    table.now = ADOPT_GRACE_S
    assert [e[0] for e in table(C, Free([(object_id(1, C), segment, 256, 50)]))] == ["unlink"]


def test_nobody_hears_of_what_is_freed_or_was_its_own() -> None:
    table = Table()
    segment = table.extent(B)
    table.seal(B, X, segment, 0, 100)
    table.seal(B, object_id(1, B), segment, 128, 100, owner=B)
    table.seal(B, Y, segment, 256, 100)
    table.pin(C, Y, segment, 256)
    table(A, Free([(X, segment, 0, 100), (Y, segment, 256, 100)]))
    assert sent(table.died(B), LeftBehind) == []


def test_a_copy_of_each_dead_writer_is_told_of() -> None:
    table = Table()
    first, second = table.extent(B), table.extent(C)
    table.seal(B, X, first, 0, 100)
    table.seal(C, X, second, 0, 100)
    assert sent(table.died(B), LeftBehind) == [(A, LeftBehind(NODE, [(X, first, 0, 100)]))]
    assert sent(table.died(C), LeftBehind) == [(A, LeftBehind(NODE, [(X, second, 0, 100)]))]


# --- adoption -------------------------------------------------------------------------------------


def test_what_a_dead_writer_did_not_report_is_adopted_by_a_pin() -> None:
    table = Table()
    segment = table.extent(B)
    table.died(B)
    assert answers(table.pin(C, X, segment))[0][0] == "pinned"
    assert answers(table.pin(C, Y, segment, 50, 100)) == [("gone", "its writer died before it was complete")]
    assert table(C, Unpin([X])) == []  # its owner still has it
    table.now = ADOPT_GRACE_S
    assert [e[0] for e in table(A, Free([(X, segment, 0, 100)]))] == ["unlink", "send"]


def test_an_orphan_waits_for_its_grace_even_if_what_was_reported_is_freed() -> None:
    table = Table()
    segment = table.extent(B)
    table.seal(B, Y, segment, 128, 100, owner=B)
    table.died(B)  # its own object goes with it
    assert answers(table.pin(C, X, segment))[0][0] == "pinned"


def test_a_pin_that_waited_is_answered_when_the_writer_dies() -> None:
    table = Table()
    segment = table.extent(B)
    table.pin(C, X, segment)
    assert answers(table.died(B))[0][0] == "pinned"


def test_an_adopted_object_goes_with_its_owner() -> None:
    table = Table()
    segment = table.extent(B)
    table.died(B)
    table.pin(C, X, segment)
    table(C, Unpin([X]))
    table.now = ADOPT_GRACE_S
    assert [e[0] for e in table.died(A)] == ["unlink", "send"]
    late = Table()
    segment = late.extent(B)
    late.died(A)
    late.died(B)
    assert answers(late.pin(C, X, segment)) == [("gone", "its owner died")]


# --- copies ---------------------------------------------------------------------------------------


def test_a_second_copy_lets_the_first_one_go_once_it_is_read() -> None:
    table = Table()
    first, second = table.extent(B), table.extent(C)
    table.seal(B, X, first, 0, 100)
    table.seal(C, X, second, 64, 100)
    assert answers(table.pin(A, X, second, 64))[0][0] == "pinned"
    assert table(A, Unpin([X])) == [("send", B, Freed([(first, 0, 100)], False))]
    assert answers(table.pin(A, X, first, 0))[0] == ("moved", "t-2", MIB, (NODE, second, 64, 100))
    table(A, Unpin([X]))
    assert table(A, Free([(X, second, 64, 100)])) == [("send", C, Freed([(second, 64, 100)], False))]


def test_free_takes_all_copies() -> None:
    table = Table()
    first, second = table.extent(B), table.extent(C)
    table.seal(B, X, first, 0, 100)
    table.seal(C, X, second, 64, 100)
    effects = table(A, Free([(X, second, 64, 100)]))
    assert sent(effects, Freed) == [(B, Freed([(first, 0, 100)], False)), (C, Freed([(second, 64, 100)], False))]


def test_a_free_of_a_copy_that_is_still_to_be_reported() -> None:
    table = Table()
    first, second = table.extent(B), table.extent(C)
    table.seal(B, X, first, 0, 100)
    assert sent(table(A, Free([(X, second, 0, 100)])), Freed) == [(B, Freed([(first, 0, 100)], False))]
    assert sent(table.seal(C, X, second, 0, 100), Freed) == [(C, Freed([(second, 0, 100)], False))]


# --- narrowing ------------------------------------------------------------------------------------


def test_a_narrowed_pin_keeps_only_its_ranges_once_the_object_is_freed() -> None:
    table = Table()
    segment = table.extent(A)
    table.seal(A, X, segment, 1024, 1000)
    table.pin(B, X, segment, 1024, 1000)
    assert table(B, Narrow([(X, [(128, 192), (960, 1000)])])) == []
    assert table(A, Free([(X, segment, 1024, 1000)])) == [
        ("send", A, Freed([(segment, 1024, 128), (segment, 1024 + 192, 768)], False))
    ]
    assert table(B, Narrow([(X, [(128, 192)])])) == [("send", A, Freed([(segment, 1024 + 960, 40)], False))]
    assert table(B, Unpin([X])) == [("send", A, Freed([(segment, 1024 + 128, 64)], False))]
    assert table.table.stats().objects == 0


def test_every_reader_counts() -> None:
    table = Table()
    segment = table.extent(A)
    table.seal(A, X, segment, 0, 256)
    table.pin(B, X, segment, 0, 256)
    table.pin(C, X, segment, 0, 256)
    table(B, Narrow([(X, [(0, 64)])]))
    assert table(A, Free([(X, segment, 0, 256)])) == []  # C reads all of it
    assert table(C, Narrow([(X, [(128, 192)])])) == [
        ("send", A, Freed([(segment, 64, 64), (segment, 192, 64)], False))
    ]
    assert table.died(B) == [("send", A, Freed([(segment, 0, 64)], False))]
    assert table.died(C) == [("send", A, Freed([(segment, 128, 64)], False))]


def test_a_new_pin_widens_again() -> None:
    table = Table()
    segment = table.extent(A)
    table.seal(A, X, segment, 0, 256)
    table.pin(B, X, segment, 0, 256)
    table(B, Narrow([(X, [(0, 64)])]))
    table.pin(B, X, segment, 0, 256)
    assert table(A, Free([(X, segment, 0, 256)])) == []
    assert table(B, Unpin([X])) == []
    assert table(B, Unpin([X])) == [("send", A, Freed([(segment, 0, 256)], False))]


# --- bad messages ---------------------------------------------------------------------------------


def test_what_breaks_the_rules_is_a_protocol_error() -> None:
    table = Table()
    segment = table.extent(A)
    table.seal(A, X, segment, 0, 100)
    bad: list[tuple[bytes, Message, str]] = [
        (A, ExtentRequest(9, 0), "at least one byte"),
        (B, ExtentReturn([segment]), "not an extent of"),
        (A, ExtentReturn([segment]), "came back with 1 objects"),
        (B, Sealed([(Y, A, segment, 128, 100)]), "not an extent of"),
        (A, Sealed([(Y, A, segment, 64, 100)]), "overlaps"),
        (A, Sealed([(Y, A, segment, MIB - 10, 100)]), "outside"),
        (A, Sealed([(Y, A, 99, 0, 100)]), "not an extent of"),
        (B, Unpin([X]), "no pin"),
        (B, Narrow([(X, [])]), "no pin"),
        (B, Hello("", b"", b"", b"", 0, 0.0, ""), "not a message for the object store"),
    ]
    for worker, message, text in bad:
        with pytest.raises(ProtocolError, match=text):
            table(worker, message)
        table.table.check_invariants()


def test_pins_of_what_never_was_here() -> None:
    table = Table()
    assert answers(table(B, Pin(1, [(X, (b"m" * 28, 1, 0, 10)), (Y, (NODE, 77, 0, 10))]))) == [
        ("gone", "it is not on this node"),
        ("gone", "it is not on this node"),
    ]


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        ExtentTable(0, node_id=NODE, prefix="t-")
    with pytest.raises(ValueError, match="1 to 30"):
        ExtentTable(1, node_id=NODE, prefix="t" * 25)
