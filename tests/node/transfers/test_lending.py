"""Lending, message by message; and a broadcast that goes in a tree."""

from __future__ import annotations

from typing import Any

import pytest

from minray.node.transfers.lending import FANOUT, TREE_MIN, Effect, Lending
from minray.node.transfers.wording import DROPPED, FREED, NOT_WANTED, ask, kind_of, nodes_to_ask
from minray.wire.errors import ProtocolError
from minray.wire.messages import Free, Location, PullObject, PullRefused
from tests.node.transfers.cluster import MIB, World

ME, A, B, C, D, E = (bytes([number]) * 28 for number in range(6))
X = b"x" * 28
SIZE = 8 * MIB
HERE: Location = (ME, 5, 0, SIZE)


class Bench:
    """The machine, with a link to each of some nodes; link n is of node n."""

    def __init__(self) -> None:
        self.lending = Lending(ME)
        for link, node_id in enumerate((A, B, C, D, E), start=1):
            self.lending.link_made(link, node_id)

    def __call__(self, effects: list[Effect]) -> list[Effect]:
        self.lending.check_invariants()
        return effects

    def ask(self, link: int, request: int = 1, location: Location = HERE) -> list[Effect]:
        return self(self.lending.asked(link, PullObject(request, X, location)))

    def pinned(self, link: int, request: int = 1, reason: str = "") -> list[Effect]:
        return self(self.lending.pinned(link, request, reason))

    def done(self, link: int, request: int = 1) -> list[Effect]:
        return self(self.lending.done(link, request))

    def give_up(self, link: int, reason: str, request: int = 1) -> list[Effect]:
        return self(self.lending.gave_up(link, request, reason))

    def has(self, link: int) -> None:
        """That node asks, and gets all of it."""
        self.ask(link)
        self.pinned(link)
        self.done(link)


def pins(effects: list[Effect]) -> list[int]:
    return [effect[1] for effect in effects if effect[0] == "pin"]


def test_an_object_is_pinned_served_and_let_go() -> None:
    bench = Bench()
    assert bench.ask(1) == [("lend", X), ("pin", 1, 1, X, HERE)]
    assert bench.pinned(1) == [("lend", X), ("serve", 1, 1, [])]
    assert bench.done(1) == [("unpin", 1, 1)]
    assert bench.lending.holders(X) == [A]


def test_what_is_not_here_is_refused() -> None:
    bench = Bench()
    bench.ask(1)
    assert bench.pinned(1, reason=FREED) == [("send", 1, PullRefused(1, FREED))]
    assert not bench.lending._lent and not bench.lending._loans


def test_two_at_a_time_then_in_order_then_from_others() -> None:
    bench = Bench()
    assert pins(bench.ask(1)) == [1] and pins(bench.ask(2)) == [2]
    assert pins(bench.ask(3)) == pins(bench.ask(4)) == pins(bench.ask(5)) == []
    bench.pinned(1)
    bench.pinned(2)
    effects = bench.done(1)  # a slot here, and two at A
    assert pins(effects) == [3]
    assert [e for e in effects if e[0] == "send"] == [
        ("send", 4, PullRefused(1, ask([A]))),
        ("send", 5, PullRefused(1, ask([A]))),
    ]
    assert bench.done(4) == []
    assert bench.lending.holders(X) == [A, D]


def test_a_small_object_is_served_at_once() -> None:
    bench = Bench()
    for link in range(1, 6):
        assert pins(bench.ask(link, location=(ME, 5, 0, TREE_MIN - 1))) == [link]


def test_who_is_not_the_home_serves_whoever_is_sent() -> None:
    bench = Bench()
    for link in range(1, 5):
        assert pins(bench.ask(link, location=(E, 5, 0, SIZE))) == [link]
        assert bench.pinned(link) == [("serve", link, 1, [])]
    assert bench.done(1) == [("unpin", 1, 1)]
    assert bench.lending.holders(X) == []  # its home keeps the list


def test_a_grant_names_others_that_have_it() -> None:
    bench = Bench()
    bench.has(1)
    bench.has(2)
    bench.ask(3)
    assert bench.pinned(3)[-1] == ("serve", 3, 1, [A, B])


def test_who_could_not_deliver_is_not_recommended_again() -> None:
    bench = Bench()
    bench.has(1)
    bench.ask(2)
    bench.ask(3)
    assert bench.ask(4)[-1] == ("send", 4, PullRefused(1, ask([A])))
    bench.give_up(4, "it hung up")
    assert [e for e in bench.ask(4, 2) if e[0] == "send"] == []


def test_who_does_not_want_it_any_more_blames_nobody() -> None:
    bench = Bench()
    bench.has(1)
    bench.ask(2)
    bench.ask(3)
    bench.ask(4)
    bench.give_up(4, NOT_WANTED)
    assert bench.ask(4, 2)[-1] == ("send", 4, PullRefused(2, ask([A])))


def test_a_copy_that_went_is_not_recommended() -> None:
    bench = Bench()
    bench.has(1)
    assert bench.give_up(1, DROPPED) == []
    assert bench.lending.holders(X) == [] and not bench.lending._lent


def test_the_end_of_an_object_is_told_to_all_who_have_it_or_get_it() -> None:
    bench = Bench()
    bench.has(1)
    bench.ask(2)
    bench.pinned(2)
    bench.ask(3)
    bench.ask(4)  # sent to A
    told = bench(bench.lending.freed(X))
    assert told == [("send", link, Free([(X, 0, 0, 0)])) for link in (1, 2, 3, 4)]
    assert bench.give_up(2, NOT_WANTED) == [("unpin", 2, 1)]
    assert bench.pinned(3, reason=FREED) == [("send", 3, PullRefused(1, FREED))]
    assert not bench.lending._loans and not bench.lending._lent


def test_a_lost_link_takes_its_requests_along() -> None:
    bench = Bench()
    bench.ask(1)
    bench.pinned(1)
    bench.ask(2)
    bench.ask(3)
    effects = bench(bench.lending.link_lost(1))
    assert ("unpin", 1, 1) in effects and pins(effects) == [3]
    assert bench(bench.lending.link_lost(2)) == []
    assert bench.pinned(2) == [("unpin", 2, 1)]  # it came too late


def test_a_request_number_is_used_once() -> None:
    bench = Bench()
    bench.ask(1)
    ((_, _, refused),) = bench.ask(1)
    assert refused.request_id == 1 and "before" in refused.reason


def test_the_words_of_a_refusal() -> None:
    assert nodes_to_ask(ask([A, B])) == [A, B]
    assert nodes_to_ask("anything else") == []
    with pytest.raises(ProtocolError, match="not the ids"):
        nodes_to_ask("ask your mother")
    assert (kind_of(FREED), kind_of("cut")) == ("freed", "lost")


def run_broadcast(readers: int) -> tuple[World, int]:
    """All at once; returns the world and how many steps of time it took, if a copy takes one."""
    world = World(1, nodes=readers + 1)
    home, *others = world.nodes.values()
    what = world.make(home, 64 * MIB)
    for node in others:
        node.want(what)
    generations = 0
    while any(node.waiting for node in others):
        quiet_steps(world)
        channels: list[Any] = [(node, c) for node in others for c in node.channels.values()]
        assert channels, "nobody sends"
        for node, channel in channels:
            node.step_channel(channel, what.size)
        generations += 1
    return world, generations


def quiet_steps(world: World) -> None:
    """Messages and answers, but no bytes."""
    while found := [action for action in world.actions() if action[0] != "channel"]:
        kind, *rest = found[0]
        getattr(world, f"on_{kind}")(*rest)


@pytest.mark.parametrize("readers, generations", [(2, 1), (8, 2), (26, 3), (80, 4)])
def test_a_broadcast_goes_in_a_tree_that_grows_threefold(readers: int, generations: int) -> None:
    world, took = run_broadcast(readers)
    assert world.most == FANOUT
    assert took == generations
