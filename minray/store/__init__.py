"""Shared memory: segments, the arena that a writer allocates in, and the node's table of extents.

The drawing of who talks to whom is in ``extents.py`` (the authority) and ``client.py`` (everybody else).
"""
