"""ReactorEventLoop: a whole asyncio loop inside the reactor, on either poller."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from minray.wire.asyncio_selector import ReactorEventLoop
from minray.wire.reactor import Connection, Reactor, Waiter
from tests.wire.support import LONG, Echo, Recorder


@pytest.fixture(params=["auto", "selectors"])
def inside(request: pytest.FixtureRequest, make: Callable[..., Reactor]) -> Reactor:
    return make(poller=request.param)


@pytest.fixture
def loop(inside: Reactor) -> Iterator[ReactorEventLoop]:
    made = ReactorEventLoop(inside)
    yield made
    made.close()


class Futures:
    """An asyncio executor's reading side, small: answers complete futures of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        self.threads: set[int] = set()

    def on_messages(self, conn: Connection, messages: list[tuple[Any, ...]]) -> None:
        here = threading.get_ident()
        self.threads.add(here)
        for message in messages:
            future = self.waiting.pop(message[1])
            if here == threading.main_thread().ident:
                self.loop.call_soon(future.set_result, message)
            else:
                self.loop.call_soon_threadsafe(future.set_result, message)

    def on_close(self, conn: Connection, error: object) -> None:
        pass


def test_messages_complete_futures(inside: Reactor, loop: ReactorEventLoop) -> None:
    here, there = socket.socketpair()
    inside.add_socket(there, Echo())
    futures = Futures(loop)
    conn = inside.add_socket(here, futures)

    async def call(number: int) -> Any:
        future = futures.waiting[number] = loop.create_future()
        conn.send((1, number))
        return await asyncio.wait_for(future, LONG)

    async def main() -> None:
        for number in range(50):
            assert await call(number) == (1, number)
        assert await asyncio.gather(*map(call, range(50))) == [(1, n) for n in range(50)]

    loop.run_until_complete(main())
    assert threading.main_thread().ident in futures.threads


def test_a_busy_loop_still_hears_messages(inside: Reactor, loop: ReactorEventLoop) -> None:
    here, there = socket.socketpair()
    got = Recorder(inside)
    inside.add_socket(there, Echo())
    conn = inside.add_socket(here, got)
    conn.send((1, "x"))

    async def spin() -> None:
        while not got.messages:
            await asyncio.sleep(0)  # the loop always has something to do

    loop.run_until_complete(asyncio.wait_for(spin(), LONG))


def test_other_threads_wake_the_loop(loop: ReactorEventLoop) -> None:
    async def main() -> None:
        for i in range(50):
            future = loop.create_future()
            thread = threading.Thread(target=loop.call_soon_threadsafe, args=(future.set_result, i))
            thread.start()
            assert await asyncio.wait_for(future, LONG) == i
            thread.join()

    loop.run_until_complete(main())


def test_executors_and_timers(loop: ReactorEventLoop) -> None:
    async def main() -> None:
        assert await loop.run_in_executor(None, lambda: 5) == 5
        order: list[str] = []
        loop.call_later(0.003, order.append, "second")
        loop.call_later(0.001, order.append, "first")
        await asyncio.sleep(0.005)
        assert order == ["first", "second"]
        await loop.shutdown_default_executor()

    loop.run_until_complete(main())


def test_streams(loop: ReactorEventLoop) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line.upper())
            await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 22)
        address = server.sockets[0].getsockname()
        clients = [await asyncio.open_connection(*address, limit=1 << 22) for _ in range(5)]
        for i, (reader, writer) in enumerate(clients):
            data = f"line {i} ".encode() * 20_000 + b"\n"
            writer.write(data)
            assert await reader.readline() == data.upper()
        for _, writer in clients:
            writer.close()
            await writer.wait_closed()
        server.close()
        await server.wait_closed()

    loop.run_until_complete(asyncio.wait_for(main(), LONG))


def test_a_descriptor_that_stays_readable_does_not_make_others_spin(
    inside: Reactor, loop: ReactorEventLoop
) -> None:
    """The loop is busy while its descriptor is readable: another leader hears of it once."""
    here, there = socket.socketpair()
    calls: list[int] = []

    async def main() -> None:
        loop.add_reader(here, lambda: calls.append(1))
        await asyncio.sleep(0)
        there.send(b"x")
        woken: list[int] = []
        selector = loop._selector  # type: ignore[attr-defined]
        thread = threading.Thread(target=lambda: woken.append(inside.wait(Waiter(), 0.05)))
        thread.start()
        thread.join()  # the loop's thread runs nothing meanwhile
        assert len(selector._fired) <= 1
        while not calls:
            await asyncio.sleep(0)
        loop.remove_reader(here)

    loop.run_until_complete(asyncio.wait_for(main(), LONG))
    here.close()
    there.close()


def test_a_writable_socket_is_told_and_forgotten(loop: ReactorEventLoop) -> None:
    here, there = socket.socketpair()

    async def main() -> None:
        told = loop.create_future()
        loop.add_writer(here, told.set_result, None)
        await asyncio.wait_for(told, LONG)
        loop.remove_writer(here)
        assert loop.remove_reader(here) is False

    loop.run_until_complete(main())
    here.close()
    there.close()


def test_other_threads_may_wait_while_the_loop_idles(inside: Reactor, loop: ReactorEventLoop) -> None:
    waiter = Waiter()
    results: list[bool] = []

    async def main() -> None:
        thread = threading.Thread(target=lambda: results.append(inside.wait(waiter, LONG)))
        thread.start()
        await asyncio.sleep(0.002)
        inside.notify(waiter)
        while thread.is_alive():
            await asyncio.sleep(0.001)

    loop.run_until_complete(asyncio.wait_for(main(), LONG))
    assert results == [True]
