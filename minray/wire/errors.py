"""What can go wrong on a connection. The edge (transports, reactor) maps every OS error to these."""

from __future__ import annotations


class WireError(Exception):
    """Base of this room's errors."""


class ProtocolError(WireError):
    """The peer sent something that this protocol does not know, or a frame beyond the bound."""


class HandshakeError(WireError):
    """The two sides cannot come together: wrong token, another version, garbage, or no end of it in time."""


class Misfit(HandshakeError):
    """The other side is minray, but not one for us: wrong token, another version, TLS on one side only, certificates
    of different authorities. Trying again is in vain."""


class WrongToken(Misfit):
    """The other side does not know this cluster's token."""


class TlsLost(OSError):
    """TLS ended a connection, for the reason in the text."""


class ConnectionLost(WireError):
    """The peer is gone, or was never there."""


class ReactorClosed(WireError):
    """A wait that the end of the reactor (shutdown, or a fork) cut short, or a call after it."""
