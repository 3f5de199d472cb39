"""What the reasons of PullRefused say, to machines and to people. Pure.

From a source: "ask" and the ids of nodes that have the object; anything else says why it cannot be had. From a
puller: why it has no copy.
"""

from __future__ import annotations

from minray.wire.errors import ProtocolError

_ASK = "ask "
FREED = "its owner freed it"  # as the store says it
NOT_WANTED = "it is not wanted any more"
DROPPED = "the copy had to go"
PULLERS_OWN = (NOT_WANTED, DROPPED)  # nobody's failure


def ask(nodes: list[bytes]) -> str:
    """The reason of a refusal that sends the puller to others."""
    return _ASK + " ".join(node_id.hex() for node_id in nodes)


def nodes_to_ask(reason: str) -> list[bytes]:
    """The nodes that a refusal names; ProtocolError for what are no ids."""
    if not reason.startswith(_ASK):
        return []
    try:
        return [bytes.fromhex(one) for one in reason[len(_ASK) :].split()]
    except ValueError:
        raise ProtocolError(f"not the ids of nodes: {reason[:200]!r}") from None


def kind_of(reason: str) -> str:
    """What the end of a pull means for its object: see ``store.holds.Gone``."""
    return "freed" if reason == FREED else "lost"
