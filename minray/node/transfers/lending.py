"""Which copies this node sends to others, and who is to ask whom. Pure.

::

    PullObject ─▶ QUEUED ─(fewer than FANOUT served)─▶ PINNING ─▶ SERVED ─PullDone─▶ HAS ──Free──▶
                    └─(somebody HAS it and is free)─▶ SENT_ON ────────PullDone─▶ HAS ──Free──▶

An object's *home*, the node that its location names, is asked by everybody who wants it. A large one is sent to
FANOUT nodes at a time. Who comes later waits, in order of arrival, until one of these slots is free or until
somebody who has all of it can serve him: then he is sent there ("ask", see ``wording``). So a broadcast
goes in a tree that grows threefold with each generation, and no node sends more than FANOUT copies at once. Small
objects are sent at once: there a redirection costs more than the bytes.

A node that is not the object's home just serves whom its home has sent. The home keeps the list of those who have,
or are getting, a copy; when the object is freed all of them hear it from here (``freed``), and nobody else needs to
know them.

Version: 8 bytes that name the bytes. An object that a retried task wrote again may have other bytes under the same
id; a puller goes on from another copy only if its version is the same. It is made by the home out of where the
object lies, and handed on with each copy.

Called by ``service``. Requests are known by (link, request number); a link is one connection of a puller. Effects:
``("pin", link, request, object_id, location)`` → ``pinned``; ``("serve", link, request, others)``: send the grant;
``("unpin", link, request)``; ``("send", link, Message)``; ``("lend", object_id)``: tell the store that we want to
hear of its end.

Invariants (``check_invariants``): at most FANOUT of one large object are served at a time, by its home and, as far
as the home knows, by everybody else; nobody is sent to one who has no complete copy, or to himself; a request that
waits has a reason to.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from minray.node.transfers.wording import PULLERS_OWN, ask
from minray.wire.messages import Free, Location, Message, PullObject, PullRefused

Effect = tuple[Any, ...]
FANOUT = 2  # copies of one object that one node sends at a time
TREE_MIN = 4 << 20  # bytes; smaller objects are not worth a redirection
NAMED = 4  # other copies that a grant or a refusal names

QUEUED, PINNING, SERVED, SENT_ON, HAS = "queued", "pinning", "served", "sent on", "has"
Key = tuple[int, int]  # link, request


@dataclass(slots=True, eq=False)
class Loan:
    """One request."""

    key: Key
    object_id: bytes
    location: Location
    state: str = QUEUED
    serves: int = 0  # HAS: how many were sent there and are not done
    source: Loan | None = None  # SENT_ON: to whom
    poor: bool = False  # HAS: somebody was sent there in vain


@dataclass(slots=True)
class Lent:
    """What the home knows of one object."""

    loans: dict[Key, Loan] = field(default_factory=dict)
    queue: deque[Loan] = field(default_factory=deque)
    served: int = 0  # PINNING or SERVED
    has: dict[Key, Loan] = field(default_factory=dict)


class Lending:
    """See the module. ``node_id``: ours."""

    def __init__(self, node_id: bytes) -> None:
        self._node_id = node_id
        self._loans: dict[Key, Loan] = {}
        self._lent: dict[bytes, Lent] = {}  # objects that are at home here
        self._links: dict[int, bytes] = {}  # link → the node behind it
        self._effects: list[Effect] = []

    def link_made(self, link: int, node_id: bytes) -> None:
        """A puller has connected."""
        self._links[link] = node_id

    def link_lost(self, link: int) -> list[Effect]:
        """It is gone, and with it all that it asked for, and, as far as we know, its copies."""
        del self._links[link]
        for loan in [loan for loan in self._loans.values() if loan.key[0] == link]:
            self._end(loan)
        return self._done()

    def holders(self, object_id: bytes) -> list[bytes]:
        """Nodes that have all of it, as far as we know, besides this one."""
        lent = self._lent.get(object_id)
        return [] if lent is None else list(dict.fromkeys(self._links[link] for link, _ in lent.has))

    # --- what pullers say -------------------------------------------------------------------------

    def asked(self, link: int, message: PullObject) -> list[Effect]:
        """Somebody wants an object."""
        key = (link, message.request_id)
        if key in self._loans:
            self._send(key, PullRefused(message.request_id, "this request has been made before"))
            return self._done()
        loan = self._loans[key] = Loan(key, message.object_id, message.location)
        if message.location[0] != self._node_id:
            self._pin(loan)
        else:
            lent = self._lent.setdefault(message.object_id, Lent())
            lent.loans[key] = loan
            lent.queue.append(loan)
            self._effects.append(("lend", message.object_id))
            self._dispatch(lent)
        return self._done()

    def done(self, link: int, request: int) -> list[Effect]:
        """The puller has all of it."""
        loan = self._loans.get((link, request))
        if loan is None or loan.state not in (SERVED, SENT_ON):
            return self._done()
        lent = self._lent_of(loan)
        if lent is None:
            self._end(loan)
        else:
            self._stop(loan, lent)
            loan.state = HAS
            lent.has[loan.key] = loan
            self._dispatch(lent)
        return self._done()

    def gave_up(self, link: int, request: int, reason: str) -> list[Effect]:
        """The puller has no copy, or no longer."""
        loan = self._loans.get((link, request))
        if loan is not None:
            if loan.source is not None and reason not in PULLERS_OWN:
                loan.source.poor = True
            self._end(loan)
        return self._done()

    # --- what the store says ----------------------------------------------------------------------

    def pinned(self, link: int, request: int, reason: str) -> list[Effect]:
        """It is pinned, or ``reason`` says why not."""
        loan = self._loans.get((link, request))
        if loan is None:  # the puller left meanwhile
            if not reason:
                self._effects.append(("unpin", link, request))
        elif reason:
            self._send(loan.key, PullRefused(request, reason))
            self._end(loan, pinned=False)
        else:
            loan.state = SERVED
            lent = self._lent_of(loan)
            others: list[bytes] = []
            if lent is not None:
                self._effects.append(("lend", loan.object_id))  # it may have come after the question
                others = [self._links[one.key[0]] for one in self._rich(lent, loan)]
            self._effects.append(("serve", link, request, others[:NAMED]))
        return self._done()

    def cannot_send(self, link: int, request: int, reason: str) -> list[Effect]:
        """A "serve" failed."""
        loan = self._loans.get((link, request))
        if loan is not None:
            self._send(loan.key, PullRefused(request, reason))
            self._end(loan)
        return self._done()

    def freed(self, object_id: bytes) -> list[Effect]:
        """Its owner has freed it: all who have it, or are getting it, are to know."""
        lent = self._lent.pop(object_id, None)
        if lent is not None:
            for link in dict.fromkeys(key[0] for key in lent.loans):
                self._effects.append(("send", link, Free([(object_id, 0, 0, 0)])))
            for loan in list(lent.loans.values()):
                if loan.state in (QUEUED, SENT_ON, HAS):  # the others end with their puller's word
                    del self._loans[loan.key]
        return self._done()

    # --- inside -----------------------------------------------------------------------------------

    def _lent_of(self, loan: Loan) -> Lent | None:
        """What this node, as the object's home, keeps of it; None if it is not, or if the object was freed."""
        lent = self._lent.get(loan.object_id)
        return lent if lent is not None and loan.key in lent.loans else None

    def _send(self, key: Key, message: Message) -> None:
        self._effects.append(("send", key[0], message))

    def _pin(self, loan: Loan) -> None:
        loan.state = PINNING
        self._effects.append(("pin", *loan.key, loan.object_id, loan.location))

    def _rich(self, lent: Lent, taker: Loan) -> list[Loan]:
        """Who can serve ``taker``, the least busy first."""
        node_id = self._links[taker.key[0]]
        found = [
            loan
            for loan in lent.has.values()
            if loan.serves < FANOUT and not loan.poor and self._links[loan.key[0]] != node_id
        ]
        return sorted(found, key=lambda loan: loan.serves)

    def _dispatch(self, lent: Lent) -> None:
        while lent.queue:
            loan = lent.queue[0]
            rich = [] if loan.location[3] < TREE_MIN else self._rich(lent, loan)
            if lent.served < FANOUT or loan.location[3] < TREE_MIN:
                lent.served += 1
                self._pin(loan)
            elif rich:
                loan.state, loan.source = SENT_ON, rich[0]
                rich[0].serves += 1
                nodes = [self._links[one.key[0]] for one in rich[:NAMED]]
                self._send(loan.key, PullRefused(loan.key[1], ask(nodes)))
            else:
                return
            lent.queue.popleft()

    def _stop(self, loan: Loan, lent: Lent | None, pinned: bool = True) -> None:
        """It takes nobody's slot any more."""
        if loan.state in (PINNING, SERVED):
            if lent is not None:
                lent.served -= 1
            if loan.state == SERVED and pinned:
                self._effects.append(("unpin", *loan.key))
        elif loan.source is not None:
            loan.source.serves -= 1
            loan.source = None

    def _end(self, loan: Loan, pinned: bool = True) -> None:
        del self._loans[loan.key]
        lent = self._lent_of(loan)
        self._stop(loan, lent, pinned)
        if lent is None:
            return
        del lent.loans[loan.key]
        lent.has.pop(loan.key, None)
        if loan.state == QUEUED:
            lent.queue.remove(loan)
        if lent.loans:
            self._dispatch(lent)
        else:
            del self._lent[loan.object_id]

    def _done(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects

    def check_invariants(self) -> None:
        """AssertionError if the books disagree."""
        for object_id, lent in self._lent.items():
            assert lent.loans
            states = [loan.state for loan in lent.loans.values()]
            assert lent.served == states.count(PINNING) + states.count(SERVED)
            assert [loan for loan in lent.loans.values() if loan.state == QUEUED] == list(lent.queue)
            assert [loan for loan in lent.loans.values() if loan.state == HAS] == sorted(
                lent.has.values(), key=list(lent.loans.values()).index
            )
            for key, loan in lent.loans.items():
                assert self._loans[key] is loan and loan.object_id == object_id and loan.key == key
                assert key[0] in self._links
                assert (loan.source is not None) == (loan.state == SENT_ON)
                if loan.source is not None and loan.source.state == HAS:
                    assert loan.source.key[0] != key[0]
            if any(loan.location[3] >= TREE_MIN for loan in lent.loans.values()):
                assert lent.served <= FANOUT
            for loan in lent.has.values():
                sent = sum(other.source is loan for other in lent.loans.values())
                assert loan.serves == sent <= FANOUT
            if lent.queue:
                assert lent.served >= FANOUT and not self._rich(lent, lent.queue[0])
        assert not self._effects
