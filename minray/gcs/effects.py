"""What the pure machines of this room ask for. ``service.py`` does it, in the order in which it was asked.

An effect is a tuple whose first item says what to do:

* ``("save", table, key, row)``: remember this row (a tuple of built-ins), or forget the key if it is None;
* ``("order", node_id, message)``: send this to a node;
* ``("notify", subscriber, message)``: send this to whoever subscribed under that number;
* ``("later", delay_s, actor_id, incarnation)``: call ``ActorTable.pause_over`` then.

Saves become durable before any order or notification of the same reactor turn leaves (see ``tables``).
"""

from __future__ import annotations

from typing import Any

from minray.wire.messages import Message

Effect = tuple[Any, ...]
Effects = list[Effect]
Row = tuple[Any, ...]


def save(table: str, key: bytes, row: Row | None) -> Effect:
    """Remember ``row`` under ``key``; None forgets the key."""
    return ("save", table, key, row)


def order(node_id: bytes, message: Message) -> Effect:
    """Send ``message`` to a node."""
    return ("order", node_id, message)


def notify(subscriber: int, message: Message) -> Effect:
    """Send ``message`` to a subscriber."""
    return ("notify", subscriber, message)


def later(delay_s: float, actor_id: bytes, incarnation: int) -> Effect:
    """Come back to this actor in ``delay_s`` seconds."""
    return ("later", delay_s, actor_id, incarnation)
