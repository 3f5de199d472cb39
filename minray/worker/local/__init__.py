"""Local mode: the runtime's contract kept inside one process, one thing at a time, for debuggers.

``runtime`` puts it together and is what ``init(local_mode=True)`` starts; ``objects`` keeps values, ``calls``
and ``streams`` run tasks, ``actors``, ``actor_ops`` and ``event_loop`` are the kinds of actors, ``core`` is what
all share.
"""
