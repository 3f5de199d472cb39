"""Objects of other nodes in a node's table: asked for once, kept while there is room, gone when they are freed."""

from __future__ import annotations

from typing import Any

from minray.store.client import Room
from minray.store.extents import Effect
from minray.store.holds import Gone, Hold
from minray.store.segments import Segments
from minray.wire.messages import (
    ExtentGrant,
    ExtentRefused,
    Free,
    Freed,
    Location,
    Pin,
    Pinned,
    Trim,
    Unpin,
)
from tests.store.support import KIB, MIB, NODE, World, object_id, pattern
from tests.store.test_extents import A, B, C, Table, answers, sent

ELSEWHERE = b"e" * 28
X, Y, Z = (object_id(number, b"p" * 28) for number in (1, 2, 3))


def there(size: int = 100) -> Location:
    return (ELSEWHERE, 7, 0, size)


class Guests(Table):
    """A table that knows of other nodes; ``copy`` is what the node's own client does."""

    def __init__(self, capacity: int = 16 * MIB, **options: Any) -> None:
        super().__init__(capacity, others=True, **options)

    def want(self, reader: bytes, *objects: tuple[bytes, Location], request: int = 7) -> list[Effect]:
        return self(reader, Pin(request, list(objects or [(X, there())])))

    def copy(self, oid: bytes = X, size: int = 100) -> list[Effect]:
        """It has come; returns what follows."""
        segment = self.extent(NODE, size)
        return self.seal(NODE, oid, segment, 0, size, owner=b"")

    def ask(self, effects: list[Effect]) -> list[Effect]:
        self.table.check_invariants()
        return effects


def kinds(effects: list[Effect], kind: str) -> list[tuple[Any, ...]]:
    return [effect[1:] for effect in effects if effect[0] == kind]


def test_an_object_of_another_node_is_asked_for_once_and_all_get_it() -> None:
    table = Guests()
    assert table.want(A) == [("pull", X, there())]
    assert table.want(B) == []
    effects = table.copy()
    assert [to for to, _ in sent(effects, Pinned)] == [A, B]
    for _, message in sent(effects, Pinned):
        ((kind, _, _, location),) = message.answers
        assert kind == "moved" and location[0] == NODE
    assert answers(table.want(C))[0][0] == "moved"  # it is here now
    assert table.table.knows(X)


def test_one_request_may_wait_for_several_nodes_and_for_a_writer() -> None:
    table = Guests()
    segment = table.extent(A)
    effects = table.want(B, (X, there()), (Y, (NODE, segment, 0, 100)), (Z, there(200)))
    assert kinds(effects, "pull") == [(X, there()), (Z, there(200))]
    assert sent(table.copy(X), Pinned) == []
    assert sent(table.seal(A, Y, segment, 0, 100), Pinned) == []
    assert [answer[0] for answer in answers(table.copy(Z, 200))] == ["moved", "pinned", "moved"]


def test_a_pull_has_its_own_time() -> None:
    table = Guests(grace_s=10.0)
    segment = table.extent(A)
    table.want(B, (X, there()), (Y, (NODE, segment, 0, 100)))
    assert table.wait(10.0) == []  # Y was never reported; X may still come
    assert table.table.next_deadline() is None
    found = answers(table.copy())
    assert found[0][0] == "moved" and found[1][0] == "gone"


def test_a_failed_pull_is_told_to_all_with_its_kind() -> None:
    table = Guests()
    table.want(A)
    table.want(B)
    effects = table.ask(table.table.pull_failed(X, "nobody has it", "lost", 0.0))
    assert [message.answers for _, message in sent(effects, Pinned)] == [[("gone", "nobody has it", "lost")]] * 2
    assert kinds(table.want(A), "pull")  # a new question is a new try


def test_when_all_who_wait_have_died_the_pull_ends() -> None:
    table = Guests()
    table.want(A)
    table.want(B)
    assert kinds(table.died(A), "unpull") == []
    assert kinds(table.died(B), "unpull") == [(X,)]


def test_an_object_that_was_made_here_meanwhile_needs_no_pull() -> None:
    table = Guests()
    table.want(A)
    segment = table.extent(B)
    effects = table.seal(B, X, segment, 0, 100)
    assert kinds(effects, "unpull") == [(X,)]
    assert answers(effects)[0][0] == "moved"
    own = table.extent(NODE)
    late = table.seal(NODE, X, own, 0, 100, owner=b"")  # it came all the same
    assert sent(late, Freed) == [(NODE, Freed([(own, 0, 100)], False))]


def test_a_guest_that_is_made_here_too_is_no_guest_any_more() -> None:
    table = Guests()
    table.want(A)
    table.copy()
    table(A, Unpin([X]))
    segment = table.extent(B)
    table.seal(B, X, segment, 0, 100)
    assert list(table.table._catalog.evictable()) == []


def test_the_end_of_a_guest_is_told_by_its_home() -> None:
    table = Guests()
    table.want(A)
    table.copy()
    assert table.ask(table.table.forget(X, 0.0)) == []  # A reads it
    ((to, message),) = sent(table(A, Unpin([X])), Freed)
    assert to == NODE and len(message.ranges) == 1
    assert table.table.stats().objects == 0
    assert kinds(table.want(A), "pull")  # only its home knows whether there is such an object


def test_what_is_freed_while_it_is_pulled_is_gone() -> None:
    table = Guests()
    table.want(A)
    effects = table.ask(table.table.forget(X, 0.0))
    assert kinds(effects, "unpull") == [(X,)]
    assert answers(effects) == [("gone", "its owner freed it")]


def test_an_owner_frees_what_lies_elsewhere() -> None:
    table = Guests()
    table.want(A)
    table.copy()
    table(A, Unpin([X]))
    effects = table(A, Free([(X, 7, 0, 100, ELSEWHERE)]))
    assert kinds(effects, "free_at") == [(ELSEWHERE, (X, 7, 0, 100))]
    assert table.table.stats().objects == 0
    segment = table.extent(A)
    table.seal(A, Y, segment, 0, 100)
    assert table(A, Free([(Y, segment, 0, 100, NODE)])) == [
        ("send", A, Freed([(segment, 0, 100)], False))
    ]


def test_the_end_of_what_others_have_copied_is_said() -> None:
    table = Guests()
    segment = table.extent(A)
    table.seal(A, X, segment, 0, 100)
    table.seal(A, Y, segment, 128, 100)
    table.table.lend(X)
    table.table.lend(Z)  # not here
    assert kinds(table(A, Free([(Y, segment, 128, 100)])), "freed") == []
    assert kinds(table(A, Free([(X, segment, 0, 100)])), "freed") == [(X,)]


def test_the_death_of_an_owner_is_the_end_of_its_guests_and_loans() -> None:
    owner = X[:12] + b"-" * 16
    table = Guests()
    table.want(A)
    table.copy()
    table(A, Unpin([X]))
    segment = table.extent(B)
    table.seal(B, Y, segment, 0, 100, owner=owner)
    table.table.lend(Y)
    assert kinds(table.died(owner), "freed") == [(Y,)]
    assert table.table.stats().objects == 0


def test_guests_go_when_memory_is_short_the_longest_unread_first() -> None:
    table = Guests(capacity=4 * MIB)
    for oid in (X, Y, Z):
        table.want(A, (oid, there(MIB)))
        table.copy(oid, MIB)
    table(A, Unpin([X]))
    table(A, Unpin([Z]))  # Y is read
    table.want(B, (X, there(MIB)))
    table(B, Unpin([X]))  # X was read last
    assert table.ask(table.table.evict(0.0)) == []  # nobody waits
    table.request(C, 2 * MIB)
    assert table.table.is_short
    effects = table.ask(table.table.evict(0.0))
    assert kinds(effects, "evicted") == [(Z,)]  # enough, with what is free
    assert sent(effects, Freed) and (NODE, Trim()) in sent(effects, Trim)
    again = table.ask(table.table.evict(0.0))  # its segment has not come back: perhaps it cannot
    assert kinds(again, "evicted") == [(X,)]
    assert table.ask(table.table.evict(0.0)) == []


def test_a_fading_guest_goes_with_its_last_reader() -> None:
    table = Guests()
    table.want(A)
    table.copy()
    assert table.ask(table.table.fade(X, 0.0)) == []
    assert kinds(table(A, Unpin([X])), "evicted") == [(X,)]
    table.want(A)
    table.copy()
    table(A, Unpin([X]))
    assert kinds(table.ask(table.table.fade(X, 0.0)), "evicted") == [(X,)]
    assert table.ask(table.table.fade(X, 0.0)) == []


def test_the_nodes_own_client_pulls_nothing() -> None:
    table = Guests()
    assert answers(table.want(NODE)) == [("gone", "it is not on this node")]


def test_without_other_nodes_there_is_nothing_to_pull() -> None:
    table = Table()
    assert answers(table(A, Pin(7, [(X, there())]))) == [("gone", "it is not on this node")]


# --- the node's own client, and the authority between them ------------------------------------------


class Own(World):
    """A world with other nodes: the test plays the transfers."""

    def __init__(self, segments: Segments, **options: Any) -> None:
        super().__init__(segments, **options)
        self.moves: list[Effect] = []
        self.own = self.client("own")
        self.own._worker_id = NODE
        self.own._send = lambda message: self.authority.on_message(NODE, message, self.clock.monotonic())
        self.authority.attach(NODE, self.own.on_message, self.moves.append)

    def reserve(self, size: int) -> Room | Exception:
        found: list[Any] = []
        self.own.reserve(size, lambda room, error: found.append(room or error))
        while not found:
            if not self.deliver():
                moment = self.authority.next_deadline()
                assert moment is not None
                self.advance_to(moment)
        (answer,) = found
        return answer

    def pulled(self, oid: bytes, content: bytes) -> None:
        room = self.reserve(len(content))
        assert isinstance(room, Room)
        left = memoryview(content)

        def read(target: memoryview) -> int:
            nonlocal left
            count = min(len(target), len(left), 10_000)
            target[:count] = left[:count]
            left = left[count:]
            return count

        at, scratch = 0, memoryview(bytearray(64 * KIB))
        while at < len(content):
            at += room.map.receive(room.offset + at, len(content) - at, read, scratch)
        self.own.fill(room, oid, b"")


def test_what_is_received_is_what_is_read(segments: Segments) -> None:
    world = Own(segments)
    reader = world.client("reader")
    for number, size in ((1, 300 * KIB), (2, 50 * KIB), (3, 3 * MIB), (4, 300 * KIB)):
        oid, content = object_id(number), pattern(number, size)
        got: list[Any] = []
        reader.acquire_async([(oid, there(size))], lambda held, error, got=got: got.extend(held))
        world.settle()
        assert world.moves.pop() == ("pull", oid, there(size))
        world.pulled(oid, content)
        world.settle()
        (held,) = got
        assert isinstance(held, Hold) and held.view == content
        held.release()
        world.settle()
        now = world.clock.monotonic()
        world.authority.do(world.authority.table.forget(oid, now), now)  # the next one finds warm memory
        world.check()
    world.close()


def test_no_room_is_an_error(shm: Segments) -> None:
    world = Own(shm, capacity=MIB)
    client = world.client("a")
    location = client.write(MIB, [(0, bytes(MIB))])
    error = world.reserve(MIB)
    assert isinstance(error, Exception) and "no room" in str(error)
    client.free([(X, location)])
    assert isinstance(world.reserve(100), Room)
    world.close()


def test_a_reservation_can_be_cancelled(shm: Segments) -> None:
    world = Own(shm)
    room = world.reserve(MIB)
    assert isinstance(room, Room)
    world.own.cancel(room)
    world.own.trim_idle(idle_s=0.0)
    world.check()
    assert world.table.stats().segments == 0
    world.close()


def test_guests_make_room_for_writers_at_once(shm: Segments) -> None:
    world = Own(shm, capacity=4 * MIB)
    for number in range(1, 5):
        oid = object_id(number)
        reader = world.client(f"r{number}")
        reader.acquire_async([(oid, there(MIB))], lambda held, error: [one.release() for one in held])
        world.settle()
        world.pulled(oid, pattern(number, MIB))
        world.settle()
    world.moves.clear()
    before = world.clock.monotonic()
    location = world.client("writer").write(3 * MIB, [(0, bytes(3 * MIB))])
    assert location[3] == 3 * MIB
    assert world.clock.monotonic() == before  # nobody had to wait
    assert [effect[:2] for effect in world.moves] == [("evicted", object_id(n)) for n in (1, 2, 3)]
    world.check()
    world.close()


def test_what_is_read_does_not_go(shm: Segments) -> None:
    world = Own(shm, capacity=2 * MIB, grace_s=1.0)
    held: list[Any] = []
    world.client("r").acquire_async([(X, there(MIB))], lambda got, error: held.extend(got))
    world.settle()
    content = pattern(1, MIB)
    world.pulled(X, content)
    world.settle()
    assert isinstance(world.reserve(2 * MIB), Exception)
    assert held[0].view == content
    world.close()


def test_a_gone_says_of_what_kind() -> None:
    assert Gone("x").kind == "freed"
    assert (Gone("x", "lost").kind, repr(Gone("x", "lost"))) == ("lost", "Gone('x', 'lost')")


def test_messages_are_what_they_were() -> None:
    """A grant and a refusal reach the own client like anybody."""
    table = Guests(capacity=MIB)
    effects = table.request(NODE, MIB)
    assert sent(effects, ExtentGrant)
    assert sent(table.request(NODE, 2 * MIB), ExtentRefused)
