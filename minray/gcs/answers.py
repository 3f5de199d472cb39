"""What was answered to requests that must not be done twice, until whoever asked has heard it. Pure.

A caller that loses its head asks again what has no answer. Most requests name what they make, so doing them twice is
doing them once. Those that do not (``kv_put`` says whether the key was there; ``kill_actor`` may kill the next
incarnation) come as ``once(caller, floor, method, args)`` under the caller's number, and their answer is saved in the
same commit as what they have changed. ``floor`` says which numbers of this caller have been answered: those below are
forgotten; so are all of a caller that is dead, and of those that have said nothing for longest, beyond ``CALLERS``.

Called by ``service``. Invariants: a number is answered once; a caller has no more answers here than it had requests
open at once, and one more; there are never more than ``CALLERS`` callers.
"""

from __future__ import annotations

from typing import Any

from minray.gcs.effects import Effects, Row, save
from minray.wire.messages import Reply

TABLE = "answers"
CALLERS = 10_000


def _key(caller: bytes, number: int) -> bytes:
    return caller + number.to_bytes(8, "big")


class AnswerTable:
    """The latest answers to each caller."""

    def __init__(self, most: int = CALLERS) -> None:
        self._most = most
        self._of: dict[bytes, dict[int, tuple[bool, Any]]] = {}

    def restore(self, rows: list[tuple[bytes, Row]]) -> None:
        """Take over what an earlier life of the head had saved."""
        for _, (caller, number, ok, value) in rows:
            self._of.setdefault(caller, {})[number] = (ok, value)

    def recall(self, caller: bytes, number: int) -> Reply | None:
        """The answer, if this has been done."""
        known = self._of.get(caller, {}).get(number)
        return None if known is None else Reply(number, *known)

    def note(self, caller: bytes, floor: int, reply: Reply) -> Effects:
        """It is done now; everything below ``floor`` has been heard."""
        answers = self._of[caller] = self._of.pop(caller, {})  # the last in the order now
        heard = [number for number in answers if number < floor]
        for number in heard:
            del answers[number]
        answers[reply.request_id] = (reply.ok, reply.value)
        row = (caller, reply.request_id, reply.ok, reply.value)
        drops = [save(TABLE, _key(caller, number), None) for number in heard]
        effects = [*drops, save(TABLE, _key(caller, reply.request_id), row)]
        if len(self._of) > self._most:
            effects += self.caller_died(next(iter(self._of)))
        return effects

    def caller_died(self, caller: bytes) -> Effects:
        """Nobody asks for these any more."""
        return [save(TABLE, _key(caller, number), None) for number in self._of.pop(caller, {})]

    def check_invariants(self) -> None:
        """Raise AssertionError where the table contradicts itself."""
        assert all(self._of.values()), "a caller without answers was kept"
        assert len(self._of) <= self._most
