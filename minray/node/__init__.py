"""The node: one per machine. Leases, the worker pool, the zygote, logs, the store's authority.

``service.py`` does the effects; ``leases.py``, ``worker_pool.py``, ``demands.py``, ``book.py`` and
``deaths.py`` decide, and are pure. The room imports ``_base``, ``wire`` and ``store`` only: it meets the
GCS and the workers in messages. ``daemon.py`` composes it; ``zygote.py`` and ``reaper.py`` are programs
of their own that share ``cleanup.py`` with it.
"""
