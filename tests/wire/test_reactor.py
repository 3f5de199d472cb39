"""Waits, leadership between real threads, timers, interrupts, finalizers, forks and the end.

No test sleeps: threads meet at events and barriers, and where something must *not* happen, what would follow
it is awaited instead.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minray.wire import reactor as reactor_module
from minray.wire.codec import encode_framed
from minray.wire.election import Background, Election
from minray.wire.errors import ConnectionLost, ReactorClosed, WireError
from minray.wire.messages import Hello
from minray.wire.reactor import Connection, Reactor, Waiter
from tests.wire.support import LONG, Echo, Recorder, hello, make_reactor, spin_until


@pytest.fixture(params=["auto", "selectors"])
def any_reactor(request: pytest.FixtureRequest, make: Callable[..., Reactor]) -> Reactor:
    return make(poller=request.param)


def pair(reactor: Reactor, handler: Any = None) -> tuple[Connection, Recorder]:
    """A connection to an echo in the same reactor."""
    here, there = socket.socketpair()
    got = Recorder(reactor)
    reactor.add_socket(there, handler or Echo())
    return reactor.add_socket(here, got), got


# --- waits


def test_done_already(reactor: Reactor) -> None:
    waiter = Waiter()
    reactor.notify(waiter)
    assert reactor.wait(waiter, 0)


def test_a_timeout(any_reactor: Reactor) -> None:
    assert any_reactor.wait(Waiter(), 0) is False
    assert any_reactor.wait(Waiter(), 0.005) is False
    assert any_reactor.wait(Waiter(), -1) is False


def test_a_timeout_of_zero_polls_once(make: Callable[..., Reactor]) -> None:
    reactor = make(background=False)
    conn, got = pair(reactor)
    conn.send((1, "x"))
    for _ in range(2):  # there, and back
        reactor.wait(Waiter(), 0)
    assert got.messages == [(1, "x")]


def test_notify_from_another_thread_wakes_a_sleeping_leader(any_reactor: Reactor) -> None:
    for _ in range(20):
        waiter = Waiter()
        thread = threading.Thread(target=any_reactor.notify, args=(waiter,))
        thread.start()
        assert any_reactor.wait(waiter, LONG)
        thread.join()


def test_a_waiter_may_be_used_again(reactor: Reactor) -> None:
    waiter = Waiter()
    for _ in range(3):
        reactor.notify(waiter)
        assert reactor.wait(waiter, LONG)
        waiter.done = False
    assert not reactor.wait(waiter, 0)


def test_followers_are_woken_by_the_leaders_handlers(any_reactor: Reactor) -> None:
    waiters: dict[int, Waiter] = {i: Waiter() for i in range(8)}
    conn, got = pair(any_reactor)
    got.on_message = lambda conn, message: any_reactor.notify(waiters[message[1]])
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda w=w: results.append(any_reactor.wait(w, LONG)))  # type: ignore[misc]
        for w in waiters.values()
    ]
    for thread in threads:
        thread.start()
    spin_until(lambda: len(any_reactor._election.followers) >= 6)
    for i in (3, 0, 7, 1, 2, 6, 5, 4):
        conn.send((1, i))
    for thread in threads:
        thread.join(LONG)
    assert results == [True] * 8


def test_a_leaving_leader_promotes_a_follower_that_then_polls(make: Callable[..., Reactor]) -> None:
    reactor = make(background=False)
    first, second = Waiter(), Waiter()
    conn, got = pair(reactor)
    got.on_message = lambda conn, message: reactor.notify({1: first, 2: second}[message[1]])
    results: list[str] = []

    def wait(waiter: Waiter, name: str) -> None:
        assert reactor.wait(waiter, LONG)
        results.append(name)

    one = threading.Thread(target=wait, args=(first, "first"))
    one.start()
    spin_until(lambda: reactor._election.leader is first)
    two = threading.Thread(target=wait, args=(second, "second"))
    two.start()
    spin_until(lambda: reactor._election.followers == [second])
    conn.send((1, 1))
    one.join(LONG)
    assert results == ["first"]
    conn.send((1, 2))
    two.join(LONG)
    assert results == ["first", "second"]


def test_a_follower_times_out_while_another_leads(make: Callable[..., Reactor]) -> None:
    reactor = make(background=False)
    leader = Waiter()
    thread = threading.Thread(target=reactor.wait, args=(leader, LONG))
    thread.start()
    spin_until(lambda: reactor._election.leader is leader)
    assert reactor.wait(Waiter(), 0) is False
    assert reactor.wait(Waiter(), 0.002) is False
    reactor.notify(leader)
    thread.join(LONG)


def test_the_background_thread_serves_when_nobody_waits(any_reactor: Reactor) -> None:
    conn, got = pair(any_reactor)
    served = threading.Event()
    got.on_message = lambda conn, message: served.set()
    for i in range(3):
        served.clear()
        conn.send((1, i))
        assert served.wait(LONG)


def test_a_waiter_takes_over_from_the_background_thread(any_reactor: Reactor) -> None:
    conn, got = pair(any_reactor)
    for _ in range(5):
        spin_until(lambda: any_reactor._election.background is Background.POLLING)
        threads: list[int] = []
        got.on_message = lambda conn, message, threads=threads: threads.append(threading.get_ident())  # type: ignore[misc]
        # The background thread may get some of them, where this thread is held up between two waits.
        while threading.get_ident() not in threads:
            assert len(threads) < 1000
            wanted = len(got.messages) + 1
            conn.send((1,))
            got.until_messages(wanted)


def test_the_background_thread_hands_over_after_its_handler(reactor: Reactor) -> None:
    conn, got = pair(reactor)
    entered, go = threading.Event(), threading.Event()

    def slow(conn: Connection, message: tuple[Any, ...]) -> None:
        entered.set()
        assert go.wait(LONG)

    got.on_message = slow
    conn.send((1, "busy"))
    assert entered.wait(LONG)
    assert reactor._election.background is Background.RUNNING
    waiter = Waiter()
    leaders = []

    def notify(conn: Connection, message: tuple[Any, ...]) -> None:
        leaders.append(threading.get_ident())
        reactor.notify(waiter)

    def later() -> None:
        spin_until(lambda: reactor._election.followers == [waiter])
        got.on_message = notify
        conn.send((1, "for the waiter"))
        go.set()

    thread = threading.Thread(target=later)
    thread.start()
    assert reactor.wait(waiter, LONG)
    thread.join(LONG)
    assert leaders


def test_the_takeover_hook_runs_on_the_background_thread(make: Callable[..., Reactor]) -> None:
    reactor = make()
    seen: list[int] = []
    ran = threading.Event()

    def hook() -> None:
        seen.append(threading.get_ident())
        ran.set()

    reactor.on_background_takeover = hook
    reactor.wait(Waiter(), 0.001)  # whoever had polled by now, does so no more
    assert ran.wait(LONG)
    assert seen[0] != threading.get_ident()


def test_a_failing_takeover_hook_is_logged(
    make: Callable[..., Reactor], caplog: pytest.LogCaptureFixture
) -> None:
    reactor = make()
    spin_until(lambda: reactor._election.background is Background.POLLING)

    def hook() -> None:
        raise LookupError("hook failed")

    reactor.on_background_takeover = hook
    reactor.wait(Waiter(), 0.001)
    spin_until(lambda: "hook failed" in caplog.text)
    conn, got = pair(reactor)
    conn.send((1, "works"))
    got.until_messages(1)


def test_an_idle_process_has_no_ticks(make: Callable[..., Reactor], monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = 0
    tick = Election.tick

    def counting(election: Election[Waiter]) -> Any:
        nonlocal ticks
        ticks += 1
        return tick(election)

    monkeypatch.setattr(Election, "tick", counting)
    reactor = make()
    spin_until(lambda: reactor._election.background is Background.POLLING)
    before = ticks
    # While a leader sleeps, the ticker parks.
    waiter = Waiter()
    thread = threading.Thread(target=reactor.wait, args=(waiter, LONG))
    thread.start()
    spin_until(lambda: reactor._election.background is Background.PARKED)
    assert ticks - before <= 4
    before = ticks
    conn, got = pair(reactor)
    conn.send((1, "no tick needed"))
    spin_until(lambda: bool(got.messages))
    assert ticks == before
    reactor.notify(waiter)
    thread.join(LONG)
    spin_until(lambda: reactor._election.background is Background.POLLING)


def test_demand_makes_the_background_thread_lead(reactor: Reactor) -> None:
    reactor.set_background_demand(True)
    spin_until(lambda: reactor._election.background is Background.POLLING)
    reactor.wait(Waiter(), 0.001)
    spin_until(lambda: reactor._election.background is Background.POLLING)
    reactor.set_background_demand(False)


# --- on_block


def test_on_block_is_called_once_by_a_leader_that_waits_long(any_reactor: Reactor) -> None:
    waiter = Waiter()
    calls: list[bool] = []

    def blocked() -> None:
        calls.append(any_reactor._mutex.locked())
        any_reactor.call_later(0.003, lambda: any_reactor.notify(waiter))

    assert any_reactor.wait(waiter, LONG, on_block=blocked)
    assert calls == [False]


def test_on_block_is_called_once_by_a_follower(make: Callable[..., Reactor]) -> None:
    reactor = make(background=False)
    leader, follower = Waiter(), Waiter()
    thread = threading.Thread(target=reactor.wait, args=(leader, LONG))
    thread.start()
    spin_until(lambda: reactor._election.leader is leader)
    calls: list[bool] = []

    def blocked() -> None:
        calls.append(reactor._election.leader is leader)
        reactor.notify(follower)

    assert reactor.wait(follower, LONG, on_block=blocked)
    assert calls == [True]
    reactor.notify(leader)
    thread.join(LONG)


def test_on_block_is_not_called_for_a_short_wait(make: Callable[..., Reactor]) -> None:
    reactor = make(background=False)
    calls: list[int] = []
    waiter = Waiter()
    reactor.call_soon(lambda: reactor.notify(waiter))
    assert reactor.wait(waiter, LONG, on_block=lambda: calls.append(1))
    assert calls == []


def test_an_on_block_that_raises_ends_the_wait_cleanly(make: Callable[..., Reactor]) -> None:
    reactor = make(background=False)

    def blocked() -> None:
        raise LookupError("on purpose")

    with pytest.raises(LookupError):
        reactor.wait(Waiter(), LONG, on_block=blocked)
    assert reactor._election.leader is None
    assert not reactor.inside()


# --- posts, timers, readers


def test_call_soon_from_anywhere(any_reactor: Reactor) -> None:
    waiter = Waiter()
    order: list[int] = []
    for i in range(3):
        any_reactor.call_soon(lambda i=i: order.append(i))  # type: ignore[misc]
    thread = threading.Thread(target=lambda: any_reactor.call_soon(lambda: any_reactor.notify(waiter)))
    thread.start()
    assert any_reactor.wait(waiter, LONG)
    thread.join()
    assert order == [0, 1, 2]


def test_posts_are_not_starved_by_short_waits(make: Callable[..., Reactor]) -> None:
    reactor = make(background=False)
    conn, got = pair(reactor)
    ran: list[str] = []
    reactor.call_soon(lambda: ran.append("post"))
    reactor.call_later(0, lambda: ran.append("timer"))
    for i in range(20):
        conn.send((1, i))
        got.until_messages(i + 1)
    assert ran == ["post", "timer"]


def test_timers_run_in_order_and_may_be_cancelled(any_reactor: Reactor) -> None:
    waiter = Waiter()
    order: list[str] = []
    any_reactor.call_later(0.003, lambda: (order.append("third"), any_reactor.notify(waiter)))  # type: ignore[arg-type,func-returns-value]
    any_reactor.call_later(0.002, lambda: order.append("second"))
    cancelled = any_reactor.call_later(0.001, lambda: order.append("never"))
    any_reactor.call_later(0, lambda: order.append("first"))
    cancelled.cancel()
    assert any_reactor.wait(waiter, LONG)
    assert order == ["first", "second", "third"]
    assert not cancelled.pending


def test_cancelled_timers_do_not_pile_up(make: Callable[..., Reactor]) -> None:
    reactor = make(background=False)
    for _ in range(5000):
        reactor.call_later(1000, lambda: None).cancel()
        reactor.poll()
    assert len(reactor._core.timers) < 2000


def test_a_failing_post_or_timer_is_logged(reactor: Reactor, caplog: pytest.LogCaptureFixture) -> None:
    waiter = Waiter()

    def fail() -> None:
        raise LookupError("on purpose")

    reactor.call_soon(fail)
    reactor.call_later(0, fail)
    reactor.call_later(0.001, lambda: reactor.notify(waiter))
    assert reactor.wait(waiter, LONG)
    assert caplog.text.count("on purpose") >= 2


def test_readers(any_reactor: Reactor) -> None:
    reading, writing = os.pipe()
    waiter = Waiter()
    got: list[bytes] = []

    def readable(fd: int) -> None:
        data = os.read(fd, 100)
        got.append(data)
        if not data:
            any_reactor.remove_reader(fd)
            any_reactor.notify(waiter)

    any_reactor.add_reader(reading, readable)
    os.write(writing, b"line")
    spin_until(lambda: bool(got))
    os.close(writing)
    assert any_reactor.wait(waiter, LONG)
    assert got == [b"line", b""]
    any_reactor.remove_reader(reading)  # unknown by now: ignored
    os.close(reading)


def test_a_failing_reader_is_dropped(reactor: Reactor, caplog: pytest.LogCaptureFixture) -> None:
    reading, writing = os.pipe()

    def fail(fd: int) -> None:
        raise LookupError("cannot read")

    reactor.add_reader(reading, fail)
    os.write(writing, b"x")
    spin_until(lambda: "cannot read" in caplog.text)
    spin_until(lambda: reading not in reactor._core.entries)
    os.close(reading)
    os.close(writing)


# --- inside the reactor


def test_waiting_in_a_handler_raises(reactor: Reactor, caplog: pytest.LogCaptureFixture) -> None:
    conn, got = pair(reactor)
    errors: list[str] = []

    def wait_there(conn: Connection, message: tuple[Any, ...]) -> None:
        assert reactor.inside()
        try:
            reactor.wait(Waiter(), LONG)
        except RuntimeError as error:
            errors.append(str(error))

    got.on_message = wait_there
    conn.send((1,))
    got.until_messages(1)
    assert "must not wait here" in errors[0]
    assert not reactor.inside()


def test_polling_in_a_handler_does_nothing(reactor: Reactor) -> None:
    conn, got = pair(reactor)
    polled: list[bool] = []
    got.on_message = lambda conn, message: polled.append(reactor.poll())
    conn.send((1,))
    got.until_messages(1)
    assert polled == [False]


def test_poll_handles_what_is_there(make: Callable[..., Reactor]) -> None:
    reactor = make(background=False)
    assert reactor.poll() is False
    conn, got = pair(reactor)
    conn.send((1, "x"))
    assert reactor.poll() is True
    assert reactor.poll() is True
    assert got.messages == [(1, "x")]


def test_poll_ousts_the_background_thread(reactor: Reactor) -> None:
    spin_until(lambda: reactor._election.background is Background.POLLING)
    reactor.poll()
    assert reactor._election.background is not Background.POLLING


class SendsWhenItDies:
    """Garbage in a cycle, whose end is a message: the collector runs it wherever it likes."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act
        self.me = self

    def __del__(self) -> None:
        self.act()


def test_finalizers_may_use_the_reactor_anywhere(any_reactor: Reactor) -> None:
    conn, got = pair(any_reactor)
    waiter = Waiter()
    rounds, died, refused = 400, 0, 0

    def act() -> None:
        nonlocal died, refused
        died += 1
        conn.send((1, "obituary"))
        any_reactor.call_soon(lambda: None)
        any_reactor.call_later(0, lambda: None)
        any_reactor.notify(waiter)
        any_reactor.poll()
        try:
            any_reactor.wait(Waiter(), 0)
        except RuntimeError:
            refused += 1

    threshold = gc.get_threshold()
    gc.set_threshold(7)
    try:
        for i in range(rounds):
            SendsWhenItDies(act)
            conn.send((1, i))
            if i % 10 == 0:
                any_reactor.wait(Waiter(), 0)
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    got.until_messages(2 * rounds)
    assert died == rounds
    assert [m[1] for m in got.messages if m[1] != "obituary"] == list(range(rounds))


def test_a_handler_may_close_its_own_and_other_connections(any_reactor: Reactor) -> None:
    others = [pair(any_reactor) for _ in range(3)]
    conn, got = pair(any_reactor)

    def close_all(conn: Connection, message: tuple[Any, ...]) -> None:
        for other, _ in others:
            other.close()
        conn.close()

    got.on_message = close_all
    for other, _ in others:
        other.send((1, "in the same round"))
    conn.send((1,))
    assert got.until_closed() is None
    for _, other_got in others:
        assert other_got.until_closed() is None
        assert len(other_got.closed) == 1


def test_a_descriptor_is_not_reused_within_a_round(make: Callable[..., Reactor]) -> None:
    """A handler closes its peer and opens others: events of the same round never reach a newcomer."""
    reactor = make(background=False)
    newcomers: list[Recorder] = []
    firsts = [pair(reactor) for _ in range(4)]

    def replace(conn: Connection, message: tuple[Any, ...]) -> None:
        for first, _ in firsts:
            first.close()
        newcomers.extend(pair(reactor)[1] for _ in range(6))

    for first, got in firsts:
        got.on_message = replace
        first.send((1, "stale"))
    while len(newcomers) < 6:
        reactor.wait(Waiter(), 0.001)
    for _ in range(10):
        reactor.wait(Waiter(), 0)
    assert all(got.messages == [] and got.closed == [] for got in newcomers)


def test_the_peers_last_words_are_read_after_a_failed_write(reactor: Reactor) -> None:
    here, there = socket.socketpair()
    got = Recorder(reactor)
    conn = reactor.add_socket(here, got)
    from minray.wire.codec import encode_framed

    there.sendall(encode_framed((1, "last words")))
    there.close()
    for _ in range(3):
        conn.send((1, "who reads this?"))
    assert isinstance(got.until_closed(), ConnectionLost)
    assert got.messages == [(1, "last words")]
    assert conn.buffered == 0


def test_a_dead_peer_raises_no_sigpipe(make: Callable[..., Reactor]) -> None:
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        reactor = make()
        here, there = socket.socketpair()
        there.close()
        got = Recorder(reactor)
        conn = reactor.add_socket(here, got)
        conn.send((1, "nobody"))
        assert isinstance(got.until_closed(), ConnectionLost)
    finally:
        signal.signal(signal.SIGPIPE, before)


def test_a_bug_of_ours_ends_the_connection_and_no_wait(
    reactor: Reactor, caplog: pytest.LogCaptureFixture
) -> None:
    conn, got = pair(reactor)

    def broken(mask: int) -> None:
        raise ZeroDivisionError("a bug")

    reactor._core.entries[conn.fileno()] = broken
    conn.send((1,))
    error = got.until_closed()
    assert "a bug" in str(error)
    assert "a bug" in caplog.text


def test_a_reader_whose_descriptor_was_closed_first_may_be_removed(any_reactor: Reactor) -> None:
    reading, writing = os.pipe()
    any_reactor.add_reader(reading, lambda fd: None)
    os.close(reading)
    os.close(writing)
    any_reactor.remove_reader(reading)
    assert any_reactor.wait(Waiter(), 0) is False


def test_a_busy_listener_is_dialled_again(reactor: Reactor) -> None:
    path = f"/tmp/minray-busy-{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(0)
    listener.setblocking(False)
    try:
        got = Recorder(reactor)
        conns = [reactor.dial(f"unix:{path}", hello(), got) for _ in range(4)]
        for conn in conns:
            conn.send((1, "x"))
        reactor.listen_socket(listener, lambda conn: Echo())
        got.until_messages(4)
        assert got.closed == []
    finally:
        os.unlink(path)


def test_no_descriptors_left_to_accept_with(
    make: Callable[..., Reactor], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import errno

    from minray.wire import listener as listener_module

    monkeypatch.setattr(listener_module, "ACCEPT_PAUSE_S", 0.001)
    reactor = make()
    failures = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ECONNABORTED, "aborted")]
    endpoint = reactor.listen("tcp:127.0.0.1:0", lambda conn: Echo())
    (one,) = reactor._listeners._all
    real = one._sock

    class Scarce:
        def accept(self) -> Any:
            if failures:
                raise failures.pop(0)
            return real.accept()

        def close(self) -> None:
            real.close()

    one._sock = Scarce()  # type: ignore[assignment]
    got = Recorder(reactor)
    reactor.dial(endpoint, hello(), got).send((1, "patience"))
    got.until_messages(1)
    assert "Too many open files" in caplog.text


# --- one thread


def test_run_forever_and_stop(make: Callable[..., Reactor]) -> None:
    reactor = make(background=False)
    reactor.call_soon(reactor.stop)
    reactor.run_forever()
    reactor.stop()
    reactor.run_forever()
    reactor.call_later(0.001, reactor.stop)
    reactor.run_forever()


# --- interrupts


@pytest.fixture
def sigusr1(make: Callable[..., Reactor]) -> Iterator[Reactor]:
    """A reactor to which SIGUSR1 is what SIGINT will be."""
    reactor = make()
    before = signal.signal(signal.SIGUSR1, lambda *_: reactor.set_interrupt())
    yield reactor
    signal.signal(signal.SIGUSR1, before)


def kill_main() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


def test_a_signal_ends_the_main_threads_wait_as_leader(sigusr1: Reactor) -> None:
    for _ in range(10):
        waiter = Waiter()

        def later(waiter: Waiter = waiter) -> None:
            spin_until(lambda: sigusr1._election.leader is waiter)
            kill_main()

        thread = threading.Thread(target=later)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            sigusr1.wait(waiter, LONG)
        thread.join()
    assert not sigusr1.main_waiting
    assert sigusr1._election.leader is None


def test_a_signal_ends_the_main_threads_wait_as_follower(sigusr1: Reactor) -> None:
    leader, follower = Waiter(), Waiter()
    thread = threading.Thread(target=sigusr1.wait, args=(leader, LONG))
    thread.start()
    spin_until(lambda: sigusr1._election.leader is leader)

    def later() -> None:
        spin_until(lambda: sigusr1._election.followers == [follower])
        assert sigusr1.main_waiting
        kill_main()

    killer = threading.Thread(target=later)
    killer.start()
    with pytest.raises(KeyboardInterrupt):
        sigusr1.wait(follower, LONG)
    sigusr1.notify(leader)
    thread.join()
    killer.join()


def test_a_signal_in_a_handler_waits_until_the_round_is_over(sigusr1: Reactor) -> None:
    conn, got = pair(sigusr1)
    after: list[bool] = []

    def in_handler(conn: Connection, message: tuple[Any, ...]) -> None:
        if threading.get_ident() == threading.main_thread().ident:
            kill_main()
            after.append(True)

    got.on_message = in_handler
    with pytest.raises(KeyboardInterrupt):
        while True:
            conn.send((1,))
            got.until_messages(len(got.messages) + 1)
    assert after[0]
    conn.send((1, "still whole"))


def test_a_signal_outside_any_wait_is_kept_for_the_next(sigusr1: Reactor) -> None:
    kill_main()
    with pytest.raises(KeyboardInterrupt):
        sigusr1.wait(Waiter(), LONG)
    assert sigusr1.wait(Waiter(), 0) is False


def test_an_interrupt_may_be_forgotten(sigusr1: Reactor) -> None:
    kill_main()
    assert sigusr1.clear_interrupt() is True
    assert sigusr1.clear_interrupt() is False
    assert sigusr1.wait(Waiter(), 0) is False


def test_other_threads_waits_go_on_after_an_interrupt(sigusr1: Reactor) -> None:
    other = Waiter()
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(sigusr1.wait(other, LONG)))
    thread.start()
    spin_until(lambda: sigusr1._election.leader is other)
    kill_main()
    with pytest.raises(KeyboardInterrupt):
        sigusr1.wait(Waiter(), LONG)
    sigusr1.notify(other)
    thread.join(LONG)
    assert results == [True]


# --- the end


def test_close_ends_every_wait(make: Callable[..., Reactor]) -> None:
    for background in (False, True):
        reactor = make(background=background)
        errors: list[str] = []

        def wait(reactor: Reactor = reactor, errors: list[str] = errors) -> None:
            try:
                reactor.wait(Waiter(), LONG)
            except ReactorClosed as error:
                errors.append(str(error))

        threads = [threading.Thread(target=wait) for _ in range(4)]
        for thread in threads:
            thread.start()
        spin_until(lambda: len(reactor._election.followers) == 3)  # noqa: B023
        reactor.close()
        for thread in threads:
            thread.join(LONG)
        assert len(errors) == 4
        assert "'test' has been closed" in errors[0]


def test_after_close_everything_says_so(make: Callable[..., Reactor]) -> None:
    reactor = make()
    conn, _ = pair(reactor)
    reactor.close()
    reactor.close()
    conn.send((1, "dropped"))
    conn.close()
    reactor.call_soon(lambda: None)
    reactor.call_later(0, lambda: None)
    reactor.notify(Waiter())
    reactor.set_interrupt()
    assert conn.closed
    assert reactor.poll() is False
    for call in (
        lambda: reactor.wait(Waiter(), LONG),
        lambda: reactor.dial("tcp:127.0.0.1:1", hello(), Echo()),
        lambda: reactor.listen("tcp:127.0.0.1:0", lambda conn: Echo()),
    ):
        with pytest.raises(ReactorClosed):
            call()


def test_close_in_a_handler_of_a_wait(make: Callable[..., Reactor]) -> None:
    reactor = make(background=False)
    conn, got = pair(reactor)
    got.on_message = lambda conn, message: reactor.close()
    conn.send((1,))
    with pytest.raises(ReactorClosed):
        reactor.wait(Waiter(), LONG)
    assert reactor._core.entries == {}


def test_close_in_a_handler_of_the_background_thread(make: Callable[..., Reactor]) -> None:
    reactor = make()
    conn, got = pair(reactor)
    got.on_message = lambda conn, message: reactor.close()
    spin_until(lambda: reactor._election.background is Background.POLLING)
    conn.send((1,))
    spin_until(lambda: reactor._core.entries == {})


def test_what_was_sent_before_close_leaves(make: Callable[..., Reactor]) -> None:
    here, there = make("here"), make("there")
    got = Recorder(there)
    a, b = socket.socketpair()
    there.add_socket(b, got)
    here.add_socket(a, Echo()).send((1, "goodbye"))
    here.close()
    assert isinstance(got.until_closed(), ConnectionLost)
    assert got.messages == [(1, "goodbye")]


def test_a_forked_child_is_dead_and_harmless(make: Callable[..., Reactor]) -> None:
    reactor = make()
    accepted = Recorder(reactor)
    endpoint = reactor.listen("tcp:127.0.0.1:0", accepted.accept)
    got = Recorder(reactor)
    conn = reactor.dial(endpoint, hello(), got)
    conn.send((1, "before"))
    accepted.until_messages(1)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            reactor.after_fork_child()
            conn.send((1, "from the child"))
            assert conn.closed
            try:
                reactor.wait(Waiter(), LONG)
            except ReactorClosed as error:
                os.write(writing, str(error).encode())
                left = [name for name in os.listdir("/proc/self/fd") if socket_at(name)]
                os.write(writing, f" {len(left)} sockets".encode())
                code = 0
        finally:
            os._exit(code)
    os.close(writing)
    assert os.waitpid(pid, 0)[1] == 0
    said = os.read(reading, 1000).decode()
    os.close(reading)
    assert "forked" in said
    assert said.endswith(f" {len([n for n in os.listdir('/proc/self/fd') if foreign(n, reactor)])} sockets")
    conn.send((1, "after"))
    accepted.until_messages(2)
    assert [message[1] for message in accepted.messages] == ["before", "after"]


def socket_at(name: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{name}").startswith(("socket:", "anon_inode:[event"))
    except OSError:
        return False


def foreign(name: str, reactor: Reactor) -> bool:
    """A descriptor of the kinds that the reactor has, but somebody else's."""
    return socket_at(name) and int(name) not in reactor._core.entries and int(name) != reactor.fileno()


def test_names_and_numbers_are_in_the_reprs(reactor: Reactor) -> None:
    conn, _ = pair(reactor)
    assert (
        repr(reactor) == f"<Reactor 'test': 2 connections, background {reactor._election.background.value}>"
    )
    assert "0 bytes waiting" in repr(conn)


def test_an_unknown_poller() -> None:
    with pytest.raises(ValueError, match="'io_uring'"):
        make_reactor(poller="io_uring")


def test_importing_the_reactor_is_light() -> None:
    import subprocess

    heavy = "('numpy', 'asyncio', 'logging')"
    code = f"import sys, minray.wire.reactor; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_hello_is_not_a_handlers_business(reactor: Reactor) -> None:
    got = Recorder(reactor)
    endpoint = reactor.listen("tcp:127.0.0.1:0", got.accept)
    conn = reactor.dial(endpoint, hello(), Recorder(reactor))
    conn.send((1,))
    got.until_messages(1)
    assert isinstance(got.connections[0].hello, Hello)
    assert conn.hello is None
    assert got.messages == [(1,)]
    assert issubclass(ReactorClosed, WireError)
    assert reactor_module.TICK_S > 0


# --- a dead peer


def test_what_a_dead_peer_had_sent_is_read_at_once_and_then_its_end(make: Callable[..., Reactor]) -> None:
    reactor = make(background=False)
    here, there = socket.socketpair()
    got = Recorder(reactor)
    conn = reactor.add_socket(here, got)
    sent = [(1, i, bytes(1000)) for i in range(10)]
    with there:
        for message in sent:
            there.sendall(encode_framed(message))
    conn.read_rest()
    assert got.messages == sent
    assert conn.closed
    reactor.wait(Waiter(), 0)
    assert len(got.closed) == 1
    conn.read_rest()
    assert got.messages == sent and len(got.closed) == 1


def test_what_a_dead_peer_had_sent_is_read_though_its_child_has_the_socket(make: Callable[..., Reactor]) -> None:
    reactor = make(background=False)
    here, there = socket.socketpair()
    got = Recorder(reactor)
    conn = reactor.add_socket(here, got)
    with there:
        there.sendall(encode_framed((1, "last")))
        conn.read_rest()
        assert got.messages == [(1, "last")]
        assert not conn.closed


def test_what_a_dead_peer_had_sent_is_read_though_no_descriptor_is_left(make: Callable[..., Reactor]) -> None:
    """Else an error would go to whoever said that the peer is dead: a node would take its launcher for broken."""
    resource = pytest.importorskip("resource")
    reactor = make(background=False)
    here, there = socket.socketpair()
    got = Recorder(reactor)
    conn = reactor.add_socket(here, got)
    with there:
        there.sendall(encode_framed((1, "last")))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        conn.read_rest()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert got.messages == [(1, "last")] and conn.closed
