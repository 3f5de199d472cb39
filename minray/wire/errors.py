"""What can go wrong on a connection. The edge (transports, reactor) maps every OS error to these."""

from __future__ import annotations


class WireError(Exception):
    """Base of this room's errors."""


class ProtocolError(WireError):
    """The peer sent something that this protocol does not know, or a frame beyond the bound."""


class HandshakeError(WireError):
    """Wrong token, or another protocol or Python version on the other side."""


class ConnectionLost(WireError):
    """The peer is gone, or was never there."""


class ReactorClosed(WireError):
    """A wait that the end of the reactor (shutdown, or a fork) cut short, or a call after it."""
