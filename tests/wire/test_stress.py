"""Real threads, real sockets, no sleeps: every wait ends, whatever the interleaving.

The switch interval is set low, so that threads change hands in the middle of everything. A lost wake-up shows
as a wait that reaches its (long) timeout.
"""

from __future__ import annotations

import itertools
import random
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minray.wire.reactor import Connection, Reactor, Waiter
from tests.wire.support import LONG, Echo, hello, served


@pytest.fixture(autouse=True)
def shaken() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class Caller:
    """What an owner does: numbers its calls, and ends the wait of each by its answer."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.waiting: dict[int, Waiter] = {}
        self.answers: dict[int, tuple[Any, ...]] = {}
        self.numbers = itertools.count()
        self.conn: Connection
        self.closed: object = "open"

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        for message in messages:
            self.answers[message[1]] = message
            waiter = self.waiting.pop(message[1], None)
            if waiter is not None:
                self.reactor.notify(waiter)

    def on_close(self, conn: Connection, error: object) -> None:
        self.closed = error
        for waiter in self.waiting.values():
            self.reactor.notify(waiter)

    def submit(self, size: int = 0) -> int:
        number = next(self.numbers)
        self.conn.send((1, number, b"x" * size))
        return number

    def get(self, number: int, **options: Any) -> None:
        if number not in self.answers:
            waiter = self.waiting[number] = Waiter()
            if number not in self.answers:
                assert self.reactor.wait(waiter, LONG, **options), f"call {number} was never answered"
        assert number in self.answers, f"call {number}: the connection is closed: {self.closed!r}"
        del self.answers[number]
        self.waiting.pop(number, None)


def in_threads(count: int, run: Callable[[int], None]) -> None:
    errors: list[BaseException] = []

    def guarded(who: int) -> None:
        try:
            run(who)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(who,)) for who in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("poller", ["auto", "selectors"])
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 6])
def test_threads_that_call_and_wait(
    make: Callable[..., Reactor], poller: str, background: bool, threads: int
) -> None:
    with served(lambda r: r.listen("tcp:127.0.0.1:0", lambda conn: Echo())) as (_, endpoint):
        reactor = make(background=background, poller=poller)
        caller = Caller(reactor)
        caller.conn = reactor.dial(endpoint, hello(), caller)

        def run(who: int) -> None:
            chance = random.Random(who)
            for _ in range(120):
                kind = chance.randrange(6)
                if kind == 0:
                    for number in [caller.submit() for _ in range(10)]:
                        caller.get(number)
                elif kind == 1:
                    number = caller.submit(chance.randrange(100_000))
                    reactor.poll()
                    caller.get(number)
                elif kind == 2:
                    number = caller.submit()
                    reactor.wait(Waiter(), 0)
                    caller.get(number, on_block=lambda: None)
                elif kind == 3:
                    waiter = Waiter()
                    reactor.call_soon(lambda waiter=waiter: reactor.notify(waiter))  # type: ignore[misc]
                    assert reactor.wait(waiter, LONG)
                else:
                    caller.get(caller.submit())

        in_threads(threads, run)
        assert not caller.waiting
        assert not caller.answers
        reactor._election.check_invariants()
        assert reactor._election.leader is None
        assert reactor._election.followers == []


def test_threads_that_wake_each_other(make: Callable[..., Reactor]) -> None:
    """A ring: each waits for its neighbour's notify, which comes from no handler."""
    reactor = make()
    count, rounds = 4, 150
    waiters = [[Waiter() for _ in range(rounds)] for _ in range(count)]

    def run(who: int) -> None:
        for i in range(rounds):
            if who == 0:
                reactor.notify(waiters[1][i])
                assert reactor.wait(waiters[0][i], LONG)
            else:
                assert reactor.wait(waiters[who][i], LONG)
                reactor.notify(waiters[(who + 1) % count][i])

    in_threads(count, run)


def test_connections_that_come_and_go(make: Callable[..., Reactor]) -> None:
    with served(lambda r: r.listen("tcp:127.0.0.1:0", lambda conn: Echo())) as (server, endpoint):
        reactor = make()

        def run(who: int) -> None:
            for _ in range(25):
                caller = Caller(reactor)
                caller.conn = reactor.dial(endpoint, hello(), caller)
                caller.get(caller.submit())
                caller.conn.close()

        in_threads(4, run)
        done = Waiter()
        reactor.call_later(0, lambda: reactor.call_soon(lambda: reactor.notify(done)))
        assert reactor.wait(done, LONG)
        while reactor._connections or server._connections:
            reactor.wait(Waiter(), 0.001)
        assert len(reactor._core.entries) == 1


def test_senders_against_a_full_buffer(make: Callable[..., Reactor]) -> None:
    """Several threads fill a connection faster than its reader drains it; nothing is lost or reordered."""
    reactor = make()
    here, there = socket.socketpair()
    for end in (here, there):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    threads, count = 3, 60
    seen: dict[int, list[int]] = {who: [] for who in range(threads)}
    done = Waiter()

    class Reader(Echo):
        def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
            for _, who, i, _ in messages:
                seen[who].append(i)
            if sum(map(len, seen.values())) == threads * count:
                reader.notify(done)

    reader = make("reader")
    reader.add_socket(there, Reader())
    conn = reactor.add_socket(here, Echo())

    def run(who: int) -> None:
        chance = random.Random(who)
        for i in range(count):
            conn.send((1, who, i, bytes(chance.randrange(20_000))))

    in_threads(threads, run)
    assert reader.wait(done, LONG)
    assert seen == {who: list(range(count)) for who in range(threads)}
    assert conn.buffered == 0
