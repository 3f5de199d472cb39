"""How processes talk: messages, frames, authentication, transports and the reactor.

This room never sees user objects: what it carries are tuples of built-in values (``messages``), encoded by
``codec``, cut into frames by ``framing``, over connections that ``auth`` has opened and that ``reactor``
reads. Files, from the bottom up:

* ``errors``      what can go wrong on a connection
* ``messages``    every message that crosses a process boundary
* ``framing``     byte stream → frames (pure)
* ``guard``       what may be unpickled, of what another machine has sent (pure)
* ``codec``       frame → tuple of built-in values, nothing else (pure)
* ``secret``      the cluster's token: where it comes from, when it is good enough
* ``auth``        the handshake that comes before everything else (pure)
* ``tls``         TLS around TCP sockets, if wanted
* ``transports``  endpoints: unix, tcp, mem → non-blocking sockets
* ``election``    which thread polls (pure)
* ``poller``      epoll, or what the platform has instead
* ``core``        what the leader runs: descriptors, posts, timers
* ``writer``      the writing side of a connection
* ``connection``  one peer: its life, and its reading side
* ``listener``    listening sockets, and the strangers at their doors
* ``spin``        whether a leader spins before it sleeps (pure)
* ``reactor``     who polls, timers, waits, the background thread
* ``asyncio_selector``  the reactor as the selector of an asyncio loop
"""
