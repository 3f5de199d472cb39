"""Objects of this node that are pinned while others pull them: the effects of ``lending``.

A pin is one of the node's own client, like a reader's. What is small goes whole, in one message; for the rest a
ticket is given out, with which a data socket finds the memory (``channel``).

What is on disk is not brought back for this: the hold is then one of the open file, which stays until it is closed,
and the senders read from there. (What is small is brought back: the reactor's thread does not wait for a disk.)

Used by ``service``, on the reactor's thread; ``find`` by the senders' threads. Invariant: a hold is released once:
by ``unpin``, or, with a ticket, when the last sender has left.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from minray.node.transfers.channel import NONCE_SIZE, Loaned
from minray.node.transfers.files import FileHold
from minray.store.client import StoreClient
from minray.store.holds import Gone, Hold
from minray.store.mapping import ALIGN
from minray.store.waiting import Held
from minray.wire.messages import Location, Message, PullGranted, Reply

WHOLE = 256 * 1024  # objects up to that size go in one message: no thread, no socket
VERSION_SIZE = 8
ID_SIZE = 28
Key = tuple[int, int]  # link, request


class Loans:
    """``send(link, message)``; ``pinned(link, request, reason)`` is called for every ``pin``."""

    def __init__(
        self,
        client: StoreClient,
        node_id: bytes,
        send: Callable[[int, Message], None],
        pinned: Callable[[int, int, str], None],
        on_disk: Callable[[bytes], FileHold | None] = lambda object_id: None,
    ) -> None:
        self._client = client
        self._node_id = node_id
        self._send = send
        self._pinned = pinned
        self._on_disk = on_disk
        self._holds: dict[Key, tuple[Hold | FileHold, bytes]] = {}  # … and the version
        self._nonces: dict[Key, bytes] = {}
        self._loaned: dict[bytes, Loaned] = {}  # by nonce
        self.versions: dict[bytes, bytes] = {}  # of guests: what their home called them
        self.served = 0  # how often something was handed out, ever

    def __len__(self) -> int:
        return len(self._holds)

    def pin(self, link: int, request: int, object_id: bytes, location: Location) -> None:
        """Keep it where it is, for that puller."""
        at_home = location[0] == self._node_id
        file = self._on_disk(object_id) if location[3] > WHOLE else None
        if file is not None:
            self._holds[link, request] = (file, file.version)
            self._pinned(link, request, "")
            return
        if not at_home:  # a guest, or nothing: it must not be pulled to be passed on
            location = (self._node_id, 0, 0, location[3])

        def answered(held: Held, error: Exception | None) -> None:
            if error is not None:
                self._pinned(link, request, str(error))
                return
            hold = held[0]
            if isinstance(hold, Gone):
                self._pinned(link, request, hold.reason)
                return
            version = _version(hold) if at_home else self.versions.get(object_id) or _version(hold)
            self._holds[link, request] = (hold, version)
            self._pinned(link, request, "")

        self._client.acquire_async([(object_id, location)], answered)

    def serve(self, link: int, request: int, others: list[bytes]) -> None:
        """Send it, or a ticket for it. ``others``: more nodes that have it."""
        hold, version = self._holds[link, request]
        assert hold.view is not None
        self.served += 1
        if len(hold.view) <= WHOLE:
            self._send(link, Reply(request, True, (version, bytes(hold.view[:]))))
            return
        nonce = self._nonces[link, request] = os.urandom(NONCE_SIZE)
        self._loaned[nonce] = Loaned(hold)
        self._send(link, PullGranted(request, len(hold.view), nonce + version + b"".join(others)))

    def unpin(self, link: int, request: int) -> None:
        """That puller has it, or does not want it."""
        hold, _ = self._holds.pop((link, request))
        nonce = self._nonces.pop((link, request), None)
        if nonce is None:
            hold.release()
        else:
            self._loaned.pop(nonce).end()
        self._client.drain()

    def find(self, nonce: bytes) -> Loaned | None:
        """What that ticket is for. Any thread."""
        return self._loaned.get(nonce)

    def check_invariants(self) -> None:
        """AssertionError if the books disagree."""
        assert set(self._nonces) <= set(self._holds)
        assert set(self._nonces.values()) == set(self._loaned)


def _version(hold: Hold) -> bytes:
    segment_id, offset = hold.place
    return (segment_id % 2**32).to_bytes(4, "little") + (offset // ALIGN % 2**32).to_bytes(4, "little")


def read_ticket(ticket: bytes) -> tuple[bytes, bytes, list[bytes]]:
    """Nonce, version, and the other nodes that have the object."""
    version_end = NONCE_SIZE + VERSION_SIZE
    others = [ticket[at : at + ID_SIZE] for at in range(version_end, len(ticket), ID_SIZE)]
    return ticket[:NONCE_SIZE], ticket[NONCE_SIZE:version_end], others
