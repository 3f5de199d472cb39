"""Moving objects to disk, message by message: what goes, in which order, what stays, and what waits for what."""

from __future__ import annotations

from typing import Any

import pytest

from minray.store import spilling
from minray.store.admission import ANSWER_S, DISK_AGAIN_S
from minray.store.extents import Effect
from minray.store.holds import Gone, Hold
from minray.store.segments import Segments
from minray.wire.messages import (
    ExtentCancel,
    ExtentGrant,
    ExtentRefused,
    ExtentReturn,
    Free,
    Freed,
    Pin,
    Pinned,
    Trim,
    Trimmed,
    Unpin,
)
from tests.store.support import KIB, MIB, NODE, World, object_id, pattern
from tests.store.test_extents import A, B, C, Table, answers, sent
from tests.store.test_guests import Guests, kinds

X, Y, Z = (object_id(number, A) for number in (1, 2, 3))


class Spilling(Table):
    """A table with a disk. Four segments of a MiB, each with one object, fill it: ``fill``."""

    def __init__(self, capacity: int = 4 * MIB, **options: Any) -> None:
        super().__init__(capacity, spills=True, extent_size=MIB, **options)
        self.segments: dict[bytes, int] = {}
        self.table._kept_from = lambda request: 0  # type: ignore[method-assign]  # that is a test of its own
        self.table.ahead = 0  # this, too

    def fill(self, *objects: bytes, writer: bytes = A) -> None:
        for oid in objects:
            self.segments[oid] = self.extent(writer, MIB)
            self.seal(writer, oid, self.segments[oid], 0, MIB)

    def short(self, asker: bytes = B, size: int = MIB) -> list[Effect]:
        """Somebody wants more; the writers have nothing to return."""
        return self.answered(self.request(asker, size))

    def answered(self, effects: list[Effect]) -> list[Effect]:
        """All that happens until every Trim is answered."""
        found = list(effects)
        while trims := sent(effects, Trim):
            effects = [effect for writer, _ in trims for effect in self(writer, Trimmed())]
            found += effects
        return found

    def spilled(self, number: int) -> list[Effect]:
        effects = self.table.spilled(number, self.now)
        self.table.check_invariants()
        return effects

    def read_pin(self, reader: bytes, *objects: bytes, request: int = 7) -> list[Effect]:
        return self(reader, Pin(request, [(oid, (NODE, self.segments[oid], 0, MIB)) for oid in objects]))

    def restored(self, oid: bytes) -> list[Effect]:
        """The restorer has room, and has read it."""
        segment = self.extent(self.table.restorer_id, MIB)
        return self.seal(self.table.restorer_id, oid, segment, 0, MIB, owner=b"")


def victims(effects: list[Effect]) -> list[bytes]:
    return [one[0] for _, what in kinds(effects, "spill") for one in what]


IDS = [object_id(number, A) for number in range(1, 5)]


def test_the_table_of_moves_is_complete() -> None:
    states = {state for state, _ in spilling.MOVES} | set(spilling.MOVES.values())
    assert all((state, "again") in spilling.MOVES for state in states)
    for state in states:
        assert spilling.moved(state, "again") == spilling.MEMORY
    with pytest.raises(AssertionError, match="cannot drop"):
        spilling.moved(spilling.MEMORY, "drop")


def test_nothing_is_written_while_there_is_room_or_before_the_writers_have_answered() -> None:
    table = Spilling()
    table.fill(*IDS)
    effects = table.request(B, MIB)
    assert sent(effects, Trim) == [(A, Trim())] and victims(effects) == []
    assert victims(table(A, Trimmed())) == [IDS[0]]


def test_a_writer_that_does_not_answer_holds_up_nobody_for_long() -> None:
    table = Spilling()
    table.fill(*IDS)
    table.request(B, MIB)
    assert table.table.next_deadline() == pytest.approx(ANSWER_S)
    assert victims(table.wait(ANSWER_S)) == [IDS[0]]


def test_what_a_writer_returns_may_be_enough() -> None:
    table = Spilling()
    table.fill(*IDS[:3])
    empty = table.extent(A, MIB)
    table.request(B, MIB)
    assert len(sent(table(A, ExtentReturn([empty])), ExtentGrant)) == 1
    assert victims(table(A, Trimmed())) == []


def test_the_least_recently_read_goes_first() -> None:
    table = Spilling()
    table.fill(*IDS)
    table.read_pin(C, IDS[0])
    table(C, Unpin([IDS[0]]))
    assert victims(table.short()) == [IDS[1]]


def test_it_is_given_back_when_it_is_written_and_the_waiting_get_the_room() -> None:
    table = Spilling()
    table.fill(*IDS)
    ((number, what),) = kinds(table.short(), "spill")
    segment = table.segments[IDS[0]]
    assert what == [(IDS[0], f"t-{segment:x}", MIB, 0, MIB)]
    effects = table.spilled(number)
    assert sent(effects, Freed) == [(A, Freed([(segment, 0, MIB)], True))]
    effects = table(A, ExtentReturn([segment]))
    assert [to for to, _ in sent(effects, ExtentGrant)] == [B]
    stats = table.table.stats()
    assert (stats.on_disk, stats.spilled_bytes, stats.object_bytes) == (MIB, MIB, 3 * MIB)
    assert table.table.did_spill(IDS[0]) and not table.table.did_spill(IDS[1])
    assert table.table.spilled_to(IDS[0]) == (number, 0, MIB)


def test_what_is_pinned_stays_and_when_all_is_pinned_the_request_is_refused() -> None:
    table = Spilling(grace_s=2.0)
    table.fill(*IDS)
    table.read_pin(C, *IDS)
    assert victims(table.short()) == []
    ((to, refusal),) = sent(table.wait(2.0), ExtentRefused)
    assert to == B and refusal.info["pinned_bytes"] == 4 * MIB and not refusal.info["disk_error"]


def test_a_pin_that_comes_while_it_is_written_keeps_it_and_the_copy_on_disk_is_kept_too() -> None:
    table = Spilling()
    table.fill(*IDS)
    ((number, _),) = kinds(table.short(), "spill")
    assert answers(table.read_pin(C, IDS[0]))[0][0] == "pinned"
    effects = table.answered(table.spilled(number))
    assert sent(effects, Freed) == []
    assert victims(effects) == [IDS[1]]  # another one has to go
    # Once nobody reads it, it can go at once: no second write.
    table(C, Unpin([IDS[0]]))
    effects = table.short(C)
    assert sent(effects, Freed) == [(A, Freed([(table.segments[IDS[0]], 0, MIB)], True))]
    assert IDS[0] not in victims(effects)


def on_disk(table: Spilling) -> int:
    """IDS[0] goes to disk, and B has its room."""
    ((number, _),) = kinds(table.short(), "spill")
    effects = table.spilled(number)
    table(A, ExtentReturn([table.segments[IDS[0]]]))
    table.answered(effects)
    return int(number)


def test_a_reader_waits_for_the_disk_and_everybody_gets_one_copy() -> None:
    table = Spilling(capacity=6 * MIB)
    table.fill(*IDS)
    table.fill(object_id(5, A), object_id(6, A))
    number = on_disk(table)
    effects = table.read_pin(C, IDS[0])
    assert kinds(effects, "restore") == [(IDS[0], (number, 0), MIB)]
    assert kinds(table.read_pin(B, IDS[0], request=8), "restore") == []
    table(A, Free([(object_id(6, A), table.segments[object_id(6, A)], 0, MIB)]))
    table(A, ExtentReturn([table.segments[object_id(6, A)]]))
    effects = table.restored(IDS[0])
    assert [to for to, _ in sent(effects, Pinned)] == [C, B]
    for _, message in sent(effects, Pinned):
        assert message.answers[0][0] == "moved"
    assert table.table.stats().restored_bytes == MIB


def test_freed_on_disk_is_freed_for_good() -> None:
    table = Spilling()
    table.fill(*IDS)
    number = on_disk(table)
    effects = table(A, Free([(IDS[0], table.segments[IDS[0]], 0, MIB)]))
    assert kinds(effects, "unspill") == [(number,)]
    assert table.table._early_frees == {}  # its place was known
    assert answers(table.read_pin(C, IDS[0])) == [("gone", "its owner freed it")]


def test_freed_while_it_is_written() -> None:
    table = Spilling()
    table.fill(*IDS)
    ((number, _),) = kinds(table.short(), "spill")
    effects = table(A, Free([(IDS[0], table.segments[IDS[0]], 0, MIB)]))
    assert sent(effects, Freed) == [(A, Freed([(table.segments[IDS[0]], 0, MIB)], True))]
    assert kinds(table.spilled(number), "unspill") == [(number,)]


def test_freed_while_it_is_read() -> None:
    table = Spilling()
    table.fill(*IDS)
    number = on_disk(table)
    table.read_pin(C, IDS[0])
    effects = table(A, Free([(IDS[0], table.segments[IDS[0]], 0, MIB)]))
    assert kinds(effects, "unspill") == [(number,)]
    assert not table.table.is_read_from(IDS[0], (number, 0))
    assert table.table.restore_failed(IDS[0], "gone", "lost", 0.0) == []


def test_the_death_of_its_owner_frees_it_on_disk() -> None:
    table = Spilling()
    table.fill(*IDS)
    number = on_disk(table)
    assert (number,) in kinds(table.died(A), "unspill")


def test_made_once_more_what_was_on_disk_counts_no_longer() -> None:
    table = Spilling(capacity=5 * MIB)
    table.fill(*IDS, object_id(5, A))
    number = on_disk(table)
    table(A, Free([(IDS[3], table.segments[IDS[3]], 0, MIB)]))
    table(A, ExtentReturn([table.segments[IDS[3]]]))
    segment = table.extent(C, MIB)
    assert kinds(table.seal(C, IDS[0], segment, 0, MIB), "unspill") == [(number,)]
    assert table.table.spilled_to(IDS[0]) is None


def test_small_objects_share_a_file_which_goes_with_the_last_of_them() -> None:
    table = Spilling(capacity=4 * MIB)
    segment = table.extent(A, MIB)
    small = [object_id(number, A) for number in range(10, 18)]
    for n, oid in enumerate(small):
        table.seal(A, oid, segment, n * 128 * KIB, 128 * KIB)
    table.fill(*IDS[:3])
    ((number, what),) = kinds(table.short(), "spill")
    assert [one[0] for one in what] == small  # the whole segment, in one file
    table.spilled(number)
    for n, oid in enumerate(small):
        effects = table(A, Free([(oid, segment, n * 128 * KIB, 128 * KIB)]))
        assert kinds(effects, "unspill") == ([(number,)] if oid == small[-1] else [])


def test_a_segment_that_can_be_emptied_goes_before_parts_of_others() -> None:
    table = Spilling(capacity=4 * MIB)
    segment = table.extent(A, MIB)
    table.seal(A, X, segment, 0, 512 * KIB)
    table.seal(A, Y, segment, 512 * KIB, 512 * KIB)
    table.pin(C, Y, segment, 512 * KIB, 512 * KIB)
    table.fill(*(object_id(n, A) for n in (20, 21, 22)))
    assert victims(table.short()) == [object_id(20, A)]  # though X is older


def test_guests_go_before_anything_is_written() -> None:
    table = Guests(capacity=4 * MIB, spills=True, extent_size=MIB)
    guest = object_id(9, b"p" * 28)
    table.want(C, (guest, (b"e" * 28, 7, 0, MIB)))
    table.copy(guest, MIB)
    table(C, Unpin([guest]))
    for n in range(3):
        segment = table.extent(A, MIB)
        table.seal(A, object_id(n, A), segment, 0, MIB)
    table.request(B, MIB)
    table(A, Trimmed())
    effects = table(NODE, Trimmed())
    assert kinds(effects, "evicted") == [(guest,)] and kinds(effects, "spill") == []


def test_while_the_disk_works_requests_are_served_in_order() -> None:
    table = Spilling()
    table.fill(*IDS)
    table.short(B, 2 * MIB)
    table.request(C, 64 * KIB)
    table.spilled(1)
    effects = table(A, ExtentReturn([table.segments[IDS[0]]]))
    assert sent(effects, ExtentGrant) == []  # C's would fit; B was first


def test_each_progress_starts_the_grace_anew() -> None:
    table = Spilling(grace_s=2.0)
    table.fill(*IDS)
    ((number, _),) = kinds(table.short(size=2 * MIB), "spill")
    assert not sent(table.wait(5.0), ExtentRefused)  # it is being written
    table.spilled(number)
    assert table.table._requests[0].deadline == table.now + 2.0


def test_a_full_disk_is_told_and_tried_again() -> None:
    table = Spilling(grace_s=3.0)
    table.fill(*IDS)
    ((number, _),) = kinds(table.short(), "spill")
    assert kinds(table.table.spill_failed(number, "no space left", table.now), "spill") == []
    table.table.check_invariants()
    effects = table.answered(table.wait(DISK_AGAIN_S))
    ((again, what),) = kinds(effects, "spill")
    assert again != number and what[0][0] == IDS[0]
    table.table.spill_failed(again, "no space left", table.now)
    ((_, refusal),) = sent([e for _ in range(10) for e in retried(table, 0.5)], ExtentRefused)
    assert refusal.info["disk_error"] == "no space left"
    assert answers(table.read_pin(C, IDS[0]))[0][0] == "pinned"  # nothing is lost


def test_while_the_disk_reads_nobody_is_refused_however_long_it_takes() -> None:
    table = Spilling(grace_s=2.0)
    table.fill(*IDS)
    on_disk(table)  # B has that room now
    room = table.extent(table.table.restorer_id, MIB) if table.table.stats().reserved < 4 * MIB else 0
    table.read_pin(C, *IDS[1:])  # nothing else can go
    table.table.read_began()
    table.short()
    assert room == 0 and not any(sent(table.wait(1.0), ExtentRefused) for _ in range(20))
    table.table.read_ended(table.now)
    assert not sent(table.wait(1.9), ExtentRefused)  # a whole grace from there
    assert sent(table.wait(0.1), ExtentRefused)


def test_a_disk_that_was_full_is_not_blamed_for_what_is_being_read() -> None:
    table = Spilling(grace_s=2.0)
    table.fill(*IDS)
    ((number, _),) = kinds(table.short(), "spill")
    table.table.spill_failed(number, "no space left", table.now)
    ((_, refusal),) = sent([e for _ in range(9) for e in retried(table, 0.5)], ExtentRefused)
    assert refusal.info["disk_error"] == "no space left"
    table.read_pin(C, *IDS)
    table.request(B, MIB)
    ((_, refusal),) = sent([e for _ in range(9) for e in retried(table, 0.5)], ExtentRefused)
    assert refusal.info["disk_error"] == "" and refusal.info["pinned_bytes"] == 4 * MIB
    assert sent(table.request(B, 5 * MIB), ExtentRefused)[0][1].info["disk_error"] == ""  # larger than the store


def retried(table: Spilling, seconds: float) -> list[Effect]:
    """Time passes; the disk is as full as before."""
    effects = table.answered(table.wait(seconds))
    for number, _ in kinds(effects, "spill"):
        table.table.spill_failed(number, "no space left", table.now)
    return effects


def test_a_file_that_cannot_be_read_is_a_loss_and_a_full_memory_is_none() -> None:
    table = Spilling()
    table.fill(*IDS)
    number = on_disk(table)
    table.read_pin(C, IDS[0])
    effects = table.table.restore_failed(IDS[0], "there is no room", "full", 0.0)
    assert answers(effects) == [("gone", "there is no room", "full")]
    assert kinds(table.read_pin(C, IDS[0]), "restore") == [(IDS[0], (number, 0), MIB)]
    effects = table.table.restore_failed(IDS[0], "bad block", "lost", 0.0)
    assert answers(effects) == [("gone", "bad block", "lost")]
    assert kinds(effects, "unspill") == [(number,)]
    assert answers(table.read_pin(C, IDS[0])) == [("gone", "bad block", "lost")]
    table(A, Free([(IDS[0], table.segments[IDS[0]], 0, MIB)]))
    assert table.table._early_frees == {}


def test_two_that_wait_for_each_others_memory() -> None:
    """C has X and wants Z, B has Y and wants Z: the later one lets go."""
    table = Spilling(grace_s=5.0)
    table.fill(*IDS)
    ((number, _),) = kinds(table.short(), "spill")
    effects = table.spilled(number)
    table(A, ExtentReturn([table.segments[IDS[0]]]))  # B has a segment, full of what only B knows
    table.answered(effects)
    table.read_pin(C, IDS[1], IDS[0], request=1)
    table.read_pin(b"d" * 28, IDS[2], IDS[3], IDS[0], request=2)
    effects = table.short(table.table.restorer_id)
    assert victims(effects) == [IDS[2]]  # what the second one had pinned, and cannot use yet
    assert [w.parked for w in table.table._pin_requests] == [False, True]
    assert table.table._catalog.objects[IDS[1]].pins == {C: 1}


def test_once_something_is_on_disk_the_restorer_has_room_even_if_the_disk_is_full() -> None:
    table = Spilling()
    del table.table._kept_from  # the real one again
    table.fill(*IDS)
    ((number, _),) = kinds(table.short(), "spill")
    effects = table.spilled(number)
    effects += table(A, ExtentReturn([table.segments[IDS[0]]]))
    assert not sent(effects, ExtentGrant)  # B waits for more than one object's room
    ((number, _),) = kinds(table.answered(effects), "spill")
    table.table.spill_failed(number, "no space left", table.now)
    table.read_pin(C, IDS[0])
    assert len(sent(table.request(table.table.restorer_id, MIB), ExtentGrant)) == 1


def test_what_a_writer_gets_back_is_its_own_only_if_nobody_comes_first() -> None:
    """It would use it at once, before who has waited longer, and the room of the restorer."""
    table = Spilling()
    del table.table._kept_from
    table.fill(*IDS)
    effects = table.short(A)
    ((number, _),) = kinds(effects, "spill")
    effects = table.spilled(number)
    ((_, freed),) = sent(effects, Freed)
    assert freed.wanted  # A is first, but the restorer has no room yet
    effects += table(A, ExtentReturn([segment for segment, _, _ in freed.ranges]))
    ((number, _),) = kinds(table.answered(effects), "spill")
    ((_, freed),) = sent(table.spilled(number), Freed)
    assert not freed.wanted  # now it has


def test_once_something_had_to_go_more_is_written_before_anybody_asks() -> None:
    table = Spilling()
    table.table.ahead = MIB
    table.fill(*IDS)
    assert not table.table._spills.files  # full, but nobody had to wait yet
    ((number, _),) = kinds(table.short(), "spill")
    effects = table.spilled(number)
    assert sent(effects, Freed) and not kinds(effects, "spill")  # B still waits
    effects = table.answered(effects + table(A, ExtentReturn([table.segments[IDS[0]]])))
    assert sent(effects, ExtentGrant)
    ((number, what),) = kinds(effects, "spill")
    assert [one[0] for one in what] == [IDS[1]]
    effects = table.spilled(number)
    assert effects == []  # it stays in memory, and is enough
    effects = table.request(C, MIB)
    assert sent(effects, Freed) == [(A, Freed([(table.segments[IDS[1]], 0, MIB)], True))]  # at once


def test_what_is_read_is_not_there_to_go_at_once() -> None:
    table = Spilling()
    table.fill(*IDS)
    on_disk(table)
    table.table.ahead = MIB
    ((number, what),) = kinds(table.read_pin(C, IDS[2]), "spill")
    assert [one[0] for one in what] == [IDS[1]]
    table.spilled(number)
    ((number, what),) = kinds(table.read_pin(C, IDS[1]), "spill")  # from memory
    assert [one[0] for one in what] == [IDS[3]]


def test_of_two_copies_that_nobody_reads_the_newest_goes_to_disk() -> None:
    """A retried task made it once more."""
    table = Spilling()
    table.fill(*IDS[:3])
    segment = table.extent(C, MIB)
    table.seal(C, IDS[0], segment, 0, MIB)
    table.request(B, 2 * MIB)
    table(A, Trimmed())
    effects = table(C, Trimmed())
    assert sent(effects, Freed) == [(A, Freed([(table.segments[IDS[0]], 0, MIB)], True))] and not victims(effects)
    effects = table.answered(effects + table(A, ExtentReturn([table.segments[IDS[0]]])))
    ((_, what),) = kinds(effects, "spill")
    assert what == [(IDS[0], f"t-{segment:x}", MIB, 0, MIB)]
    table(A, Free([(IDS[0], table.segments[IDS[0]], 0, MIB)]))  # by either place: it is known
    assert table.table._early_frees == {}


def test_made_once_more_after_it_was_read_back() -> None:
    table = Spilling(capacity=6 * MIB)
    table.fill(*IDS)
    table.fill(object_id(5, A), object_id(6, A))
    on_disk(table)
    table.read_pin(C, IDS[0])
    table(A, Free([(object_id(6, A), table.segments[object_id(6, A)], 0, MIB)]))
    table(A, ExtentReturn([table.segments[object_id(6, A)]]))
    table.restored(IDS[0])
    table(C, Unpin([IDS[0]]))
    table(A, Free([(object_id(5, A), table.segments[object_id(5, A)], 0, MIB)]))
    table(A, ExtentReturn([table.segments[object_id(5, A)]]))
    segment = table.extent(C, MIB)
    table.seal(C, IDS[0], segment, 0, MIB)
    effects = table.short(B, 5 * MIB)
    table.table.tick(table.now)
    for number, _ in kinds(effects, "spill"):
        table.spilled(number)
    table(A, Free([(IDS[0], segment, 0, MIB)]))
    assert table.table._early_frees == {}


def test_who_waits_for_the_disk_hears_that_it_was_freed() -> None:
    """Its owner is dead, or nobody needs it but who asked."""
    table = Spilling()
    table.fill(*IDS)
    on_disk(table)
    table.read_pin(C, IDS[0])
    assert not table.wait(100.0)  # the disk is slow: no deadline of its own any more
    assert answers(table.died(A)) == [("gone", "its owner freed it")]


def test_but_when_all_is_pinned_it_is_given_to_who_asks() -> None:
    table = Spilling()
    del table.table._kept_from
    table.fill(*IDS)
    ((number, _),) = kinds(table.short(), "spill")
    table.read_pin(C, *IDS[1:])
    effects = table.spilled(number)
    effects += table(A, ExtentReturn([table.segments[IDS[0]]]))
    assert [to for to, _ in sent(table.answered(effects), ExtentGrant)] == [B]


def test_a_request_that_is_not_needed_any_more() -> None:
    table = Spilling()
    table.fill(*IDS)
    table.read_pin(C, *IDS)
    table.request(B, MIB)
    number = table.requests
    table(B, ExtentCancel(number))
    assert table.table.stats().waiting == 0
    table(B, ExtentCancel(number))  # it may have been granted meanwhile


# --- clients ----------------------------------------------------------------------------------------


def put(world: World, client: Any, number: int, size: int) -> tuple[bytes, Any]:
    oid = object_id(number, client._worker_id)
    return oid, client.write(size, [(0, pattern(number, size))], oid)


def check(client: Any, number: int, oid: bytes, location: Any, size: int) -> None:
    (held,) = client.acquire([(oid, location)])
    assert isinstance(held, Hold), held
    assert held.view == pattern(number, size)
    held.release()
    client.drain()


def test_private_objects_go_to_disk_and_come_back(shm: Segments) -> None:
    world = World(shm, capacity=4 * MIB, spills=True)
    client = world.client("a")
    made = [put(world, client, n, 512 * KIB) for n in range(24)]  # three times the capacity
    for n, (oid, location) in enumerate(made):
        check(client, n, oid, location, 512 * KIB)
    assert world.table.stats().spilled_bytes >= 8 * MIB
    client.free(made)
    world.settle()
    assert world.disk is not None and world.disk.files == {}
    world.check()
    world.close()


def test_the_place_of_a_moved_object_is_not_taken_for_it(shm: Segments) -> None:
    """Its owner asks for it by a location where something else lies now: reads, reports and frees the right one."""
    world = World(shm, capacity=MIB, extent_size=MIB, spills=True)
    client = world.client("a")
    first, old = put(world, client, 1, 700 * KIB)
    second, new = put(world, client, 2, 700 * KIB)
    assert old == new
    client.report([(first, old)])
    check(client, 1, first, old, 700 * KIB)
    check(client, 2, second, new, 700 * KIB)
    client.free([(first, old)])
    check(client, 2, second, new, 700 * KIB)
    world.check()
    world.close()


def test_an_array_that_is_held_is_never_moved(shm: Segments) -> None:
    world = World(shm, capacity=4 * MIB, spills=True)
    client, other = world.client("a"), world.client("b")
    oid, location = put(world, client, 1, MIB)
    (held,) = client.acquire([(oid, location)])
    before = bytes(held.view)
    for n in range(2, 20):
        put(world, other, n, MIB)
    assert held.view == before
    assert not world.table.did_spill(oid)
    held.release()
    world.close()


def test_too_much_at_once_is_an_error_and_the_rest_goes_on(shm: Segments) -> None:
    world = World(shm, capacity=4 * MIB, spills=True, grace_s=1.0)
    client = world.client("a")
    made = [put(world, client, n, MIB) for n in range(8)]
    held = client.acquire(made)  # together they do not fit
    assert any(isinstance(one, Gone) and one.kind == "full" for one in held)
    for one in held:
        if isinstance(one, Hold):
            one.release()
    client.drain()
    for n, (oid, location) in enumerate(made):
        check(client, n, oid, location, MIB)
    world.close()
