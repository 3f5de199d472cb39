"""Several nodes' ``Pulls`` and ``Lending`` on an in-memory network with a seed; the store is a model.

Every link is a queue per direction, in order; what happens next, the seed decides: a message arrives, some bytes
come, a reservation is answered, a link breaks, a node dies, an owner frees, memory gets short. The bytes of an object
are modelled by their version: a room notes which version wrote each part of it.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from minray.node.transfers.lending import FANOUT, Lending
from minray.node.transfers.pulls import Effect, Pulls
from minray.node.transfers.wording import FREED
from minray.wire.messages import (
    Free,
    Location,
    Message,
    PullDone,
    PullGranted,
    PullObject,
    PullRefused,
)

MIB = 1 << 20


class Link:
    """``a`` pulls from ``b``."""

    def __init__(self, number: int, a: SimNode, b: SimNode) -> None:
        self.number, self.a, self.b = number, a, b
        self.down: deque[Message] = deque()  # a → b
        self.up: deque[Message] = deque()
        self.open = True


class Object:
    """One object at its home."""

    def __init__(self, object_id: bytes, home: SimNode, size: int) -> None:
        self.object_id, self.home, self.size = object_id, home, size
        self.version = object_id[:8]
        self.location: Location = (home.node_id, 1, 0, size)
        self.freed = False


class Channel:
    """Bytes under way into a room."""

    def __init__(self, object_id: bytes, number: int, source: SimNode, loan: tuple[int, int], at: int) -> None:
        self.object_id, self.number, self.source, self.loan, self.at = object_id, number, source, loan, at
        self.stopped = False


class SimNode:
    """One node: its machines, and a model of its store."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.node_id = bytes([number]) * 28
        self.pulls = Pulls(self.node_id, living=self.others, lane_bytes=64 * MIB)
        self.lending = Lending(self.node_id)
        self.alive = True
        self.links: dict[bytes, Link] = {}  # by the node that we pull from
        self.pullers: dict[int, Link] = {}
        self.primaries: dict[bytes, Object] = {}
        self.guests: dict[bytes, bytes] = {}  # → version
        self.fading: set[bytes] = set()
        self.lent: set[bytes] = set()
        self.waiting: dict[bytes, Location] = {}  # readers wait for these
        self.outcomes: list[tuple[bytes, str, str]] = []
        self.reserving: list[tuple[bytes, int]] = []
        self.rooms: dict[int, dict[str, Any]] = {}
        self.channels: dict[bytes, Channel] = {}
        self.pinning: list[tuple[int, int, bytes, Location]] = []
        self.pins: dict[tuple[int, int], tuple[bytes, bytes]] = {}  # (link, request) → object, version
        self.served: dict[tuple[int, int], tuple[bytes, bytes]] = {}

    def __repr__(self) -> str:
        return f"<node {self.node_id[0]}>"

    def others(self) -> list[bytes]:
        return [node.node_id for node in self.world.alive if node is not self]

    # -- the machines' effects -----------------------------------------------------------------------

    def do(self, effects: list[Effect]) -> None:
        todo = deque(effects)
        while todo:
            kind, *rest = todo.popleft()
            todo.extend(getattr(self, f"do_{kind}")(*rest) or [])
        self.pulls.check_invariants()
        self.lending.check_invariants()

    def do_send(self, to: Any, message: Message) -> list[Effect]:
        if isinstance(to, int):
            if to in self.pullers:
                self.pullers[to].up.append(message)
            return []
        link = self.links.get(to)
        if link is None:
            target = self.world.nodes[to[0]]
            if not target.alive:
                return self.pulls.link_lost(to, "dead", self.world.now, gone=True)
            link = self.links[to] = self.world.connect(self, target)
        link.down.append(message)
        return []

    def do_reserve(self, object_id: bytes, number: int, size: int) -> None:
        self.reserving.append((object_id, number))

    def do_release(self, number: int) -> None:
        assert not any(channel.number == number for channel in self.channels.values()), "written after its release"
        del self.rooms[number]

    def do_receive(
        self, object_id: bytes, number: int, request: int, node_id: bytes, ticket: bytes, offset: int
    ) -> None:
        assert object_id not in self.channels, "two channels for one object"
        assert number in self.rooms
        source = self.world.nodes[node_id[0]]
        link = int.from_bytes(ticket, "big")
        self.channels[object_id] = Channel(object_id, number, source, (link, request), offset)

    def do_stop(self, object_id: bytes) -> None:
        self.channels[object_id].stopped = True

    def do_seal(self, object_id: bytes, number: int, version: bytes) -> None:
        room = self.rooms.pop(number)
        size = self.world.objects[object_id].size
        assert room["parts"] == {version: size}, f"bytes of {room['parts']} in a copy of {version!r}"
        assert object_id not in self.guests, "pulled twice"
        self.guests[object_id] = version
        self.end_wait(object_id, "here", "")

    def do_failed(self, object_id: bytes, reason: str, kind: str) -> None:
        self.end_wait(object_id, kind, reason)

    def do_fade(self, object_id: bytes) -> list[Effect]:
        self.world.seen["faded"] += 1
        del self.guests[object_id]
        return self.pulls.evicted(object_id)

    def do_lend(self, object_id: bytes) -> None:
        if object_id in self.primaries:
            self.lent.add(object_id)

    def do_pin(self, link: int, request: int, object_id: bytes, location: Location) -> None:
        self.pinning.append((link, request, object_id, location))

    def do_serve(self, link: int, request: int, others: list[bytes]) -> None:
        object_id, version = self.pins[link, request]
        others = others if self.world.names_others else []
        self.served[link, request] = (object_id, version)
        serving = sum(one == object_id for one, _ in self.served.values())
        if self.world.objects[object_id].size >= 4 * MIB and object_id in self.primaries:
            assert serving <= FANOUT, "too many at once"
        self.world.most = max(self.world.most, serving)
        ticket = link.to_bytes(8, "big") + version + b"".join(others)
        self.do_send(link, PullGranted(request, self.world.objects[object_id].size, ticket))

    def do_unpin(self, link: int, request: int) -> None:
        del self.pins[link, request]
        self.served.pop((link, request), None)

    # -- what happens to it ----------------------------------------------------------------------------

    def want(self, what: Object) -> None:
        if what.object_id in self.primaries or what.object_id in self.guests or what.object_id in self.waiting:
            return
        self.waiting[what.object_id] = what.location
        self.do(self.pulls.want(what.object_id, what.location, self.world.now))

    def unwant(self, object_id: bytes) -> None:
        del self.waiting[object_id]
        self.do(self.pulls.unwanted(object_id, self.world.now))

    def end_wait(self, object_id: bytes, kind: str, reason: str) -> None:
        if self.waiting.pop(object_id, None) is not None:
            self.outcomes.append((object_id, kind, reason))

    def evict(self, object_id: bytes) -> None:
        del self.guests[object_id]
        self.do(self.pulls.evicted(object_id))

    def answer_reservation(self, index: int, ok: bool) -> None:
        object_id, number = self.reserving.pop(index)
        if ok:
            self.rooms[number] = {"parts": {}}
        self.do(self.pulls.reserved(object_id, number, "" if ok else "full", self.world.now))

    def answer_pin(self, index: int) -> None:
        link, request, object_id, location = self.pinning.pop(index)
        version = None
        if location[0] == self.node_id:
            what = self.primaries.get(object_id)
            version = what.version if what is not None else None
        else:
            version = self.guests.get(object_id)
        if version is not None:
            self.pins[link, request] = (object_id, version)
        reason = "" if version is not None else FREED if location[0] == self.node_id else "it is not here"
        self.do(self.lending.pinned(link, request, reason))

    def free(self, object_id: bytes) -> None:
        """Its owner says so."""
        del self.primaries[object_id]
        if object_id in self.lent:
            self.lent.discard(object_id)
            self.do(self.lending.freed(object_id))

    def step_channel(self, channel: Channel, count: int) -> None:
        what = self.world.objects[channel.object_id]
        version = channel.source.served.get(channel.loan) if channel.source.alive else None
        ended = ""
        if channel.stopped:
            ended = "stopped"
        elif version is None or version[0] != channel.object_id:
            ended = "the source hung up"
        else:
            count = min(count, what.size - channel.at)
            parts = self.rooms[channel.number]["parts"]
            if channel.at == 0:
                parts.clear()
            parts[version[1]] = parts.get(version[1], 0) + count
            channel.at += count
        if ended or channel.at == what.size:
            del self.channels[channel.object_id]
            self.do(self.pulls.ended(channel.object_id, channel.at, ended, self.world.now))
        elif self.world.rng.random() < 0.5:
            self.pulls.progress(channel.object_id, channel.at, self.world.now)


class World:
    """All nodes, and the seed."""

    def __init__(self, seed: int, nodes: int = 5, *, names_others: bool = True) -> None:
        self.rng = random.Random(seed)
        self.now = 100.0
        self.names_others = names_others
        self.nodes = {number: SimNode(self, number) for number in range(1, nodes + 1)}
        self.objects: dict[bytes, Object] = {}
        self.links: list[Link] = []
        self.most = 0
        self.seen: dict[str, int] = dict.fromkeys(("faded", "resumed", "cut", "died", "saved"), 0)

    @property
    def alive(self) -> list[SimNode]:
        return [node for node in self.nodes.values() if node.alive]

    def make(self, home: SimNode, size: int) -> Object:
        number = len(self.objects) + 1
        what = Object(number.to_bytes(8, "big") + b"o" * 20, home, size)
        self.objects[what.object_id] = home.primaries[what.object_id] = what
        return what

    def connect(self, a: SimNode, b: SimNode) -> Link:
        link = Link(len(self.links) + 1, a, b)
        self.links.append(link)
        b.pullers[link.number] = link
        b.lending.link_made(link.number, a.node_id)
        return link

    def cut(self, link: Link) -> None:
        """The connection breaks; what was under way is lost. Each side hears of it."""
        link.open = False
        self.seen["cut"] += 1
        if link.b.alive:
            del link.b.pullers[link.number]
            link.b.do(link.b.lending.link_lost(link.number))
        if link.a.alive:
            del link.a.links[link.b.node_id]
            gone = not link.b.alive
            link.a.do(link.a.pulls.link_lost(link.b.node_id, "the link is cut", self.now, gone=gone))

    def kill(self, node: SimNode) -> None:
        node.alive = False
        self.seen["died"] += 1
        for link in [one for one in self.links if one.open and node in (one.a, one.b)]:
            self.cut(link)
        for other in self.alive:
            other.do(other.pulls.link_lost(node.node_id, "dead", self.now, gone=True))

    def free(self, what: Object) -> None:
        what.freed = True
        if what.home.alive:
            what.home.free(what.object_id)

    # -- one step --------------------------------------------------------------------------------------

    def actions(self) -> list[Any]:
        """Everything that can happen now, by itself."""
        found: list[Any] = []
        for link in self.links:
            if link.open and link.down:
                found.append(("down", link))
            if link.open and link.up:
                found.append(("up", link))
        for node in self.alive:
            found += [("reserve", node)] * bool(node.reserving)
            found += [("pin", node)] * bool(node.pinning)
            found += [("channel", node, channel) for channel in node.channels.values()]
        return found

    def step(self) -> bool:
        """Something happens; False if nothing can, but for time."""
        found = self.actions()
        if not found:
            return False
        kind, *rest = self.rng.choice(found)
        getattr(self, f"on_{kind}")(*rest)
        return True

    def on_down(self, link: Link) -> None:
        message, lending = link.down.popleft(), link.b.lending
        if isinstance(message, PullObject):
            effects = lending.asked(link.number, message)
        elif isinstance(message, PullDone):
            effects = lending.done(link.number, message.request_id)
        else:
            assert isinstance(message, PullRefused)
            effects = lending.gave_up(link.number, message.request_id, message.reason)
        link.b.do(effects)

    def on_up(self, link: Link) -> None:
        message, node, source = link.up.popleft(), link.a, link.b.node_id
        if isinstance(message, PullGranted):
            ticket, named = message.ticket, message.ticket[16:]
            others = [named[at : at + 28] for at in range(0, len(named), 28)]
            before = node.pulls._requests.get(message.request_id)
            if before is not None and before.received > 0 and before.version == ticket[8:16]:
                self.seen["resumed"] += 1
            effects = node.pulls.granted(
                source, message.request_id, message.size, ticket[:8], ticket[8:16], others, self.now
            )
            node.do(effects)
        elif isinstance(message, PullRefused):
            node.do(node.pulls.refused(source, message.request_id, message.reason, self.now))
        else:
            assert isinstance(message, Free)
            self.on_free(node, message.objects[0][0])

    def on_free(self, node: SimNode, object_id: bytes) -> None:
        node.pulls.freed(object_id)
        node.guests.pop(object_id, None)
        if object_id in node.waiting:
            node.end_wait(object_id, "freed", "told")
            node.do(node.pulls.unwanted(object_id, self.now))

    def on_reserve(self, node: SimNode) -> None:
        node.answer_reservation(self.rng.randrange(len(node.reserving)), self.rng.random() > 0.02)

    def on_pin(self, node: SimNode) -> None:
        node.answer_pin(self.rng.randrange(len(node.pinning)))

    def on_channel(self, node: SimNode, channel: Channel) -> None:
        node.step_channel(channel, self.rng.randrange(1, 9) * MIB)

    def pass_time(self) -> bool:
        """To the next deadline; False if there is none."""
        moments = [due for node in self.alive if (due := node.pulls.next_deadline()) is not None]
        if not moments:
            return False
        self.now = max(self.now, min(moments))
        for node in self.alive:
            node.do(node.pulls.tick(self.now))
        return True

    def settle(self) -> None:
        """Until nothing happens any more."""
        for _ in range(200_000):
            if not self.step() and not self.pass_time():
                return
        raise AssertionError("it never ends")
