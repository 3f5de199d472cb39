"""What stands between the core and the sockets, without sockets: the inbox of dropped references."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from minray._base.config import Config
from minray.wire.messages import Hello
from minray.worker.core import Core
from minray.worker.link import FEW, Link
from minray.worker.references import INLINE

ME = (b"n" * 28, b"A" * 28, "unix:/A")


class NoReactor:
    """Takes notes of what is to be called."""

    def __init__(self) -> None:
        self.soon: list[Any] = []
        self.waits = 0

    def call_soon(self, fn: Any) -> None:
        self.soon.append(fn)

    def wait(self, waiter: Any, timeout: float) -> bool:
        self.waits += 1
        return False


def make_link() -> tuple[Link, NoReactor]:
    reactor = NoReactor()
    hello = Hello("driver", ME[1], ME[0], b"\1\0\0\0", 1, 0.0, ME[2])
    link = Link(reactor, Config(), hello)  # type: ignore[arg-type]
    link.core = Core(ME, b"\1\0\0\0", ME[1][:12], max_pipeline=64, lease_idle_s=1.0)
    return link, reactor


def test_the_first_dropped_reference_asks_for_a_turn_and_the_others_ride_along() -> None:
    link, reactor = make_link()
    ids = [link.core.object_id(seq, 1) for seq in (1, 2)]
    for object_id in ids:
        link.core.refs.own(object_id).status = INLINE
        link.release(object_id)
    assert len(reactor.soon) == 1
    assert len(link.core.objects) == 2
    reactor.soon.pop()()
    assert not link.core.objects
    link.release(ids[0])
    assert len(reactor.soon) == 1


def test_very_many_objects_that_go_at_once_give_their_table_back() -> None:
    link, _ = make_link()
    ids = [link.core.object_id(seq, 1) for seq in range(3 * FEW)]
    for object_id in ids:
        link.core.refs.own(object_id).status = INLINE
    before = sys.getsizeof(link.core.objects)
    link.inbox.extend(ids)
    with link.lock:
        link.leave()
    assert not link.core.objects
    assert sys.getsizeof(link.core.objects) * 100 < before


class Listens:
    """A node that takes what is sent after so many looks."""

    def __init__(self, after: int) -> None:
        self.looks = after

    @property
    def flushed(self) -> bool:
        self.looks -= 1
        return self.looks < 0


@pytest.mark.parametrize(("store", "node", "waits"), [(0, 0, 0), (2, 0, 2), (0, 3, 3), (1, 1, 2)])
def test_nobody_hears_of_what_a_busy_node_has_not_heard_of(store: int, node: int, waits: int) -> None:
    link, reactor = make_link()
    link.store, link.node = Listens(store), Listens(node)  # type: ignore[assignment]
    link.reach_node()
    assert reactor.waits == waits


def test_a_closed_link_waits_for_no_node() -> None:
    link, reactor = make_link()
    link.store, link.node, link.closed = Listens(9), Listens(9), True  # type: ignore[assignment]
    link.reach_node()
    assert reactor.waits == 0
