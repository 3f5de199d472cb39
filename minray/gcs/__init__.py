"""The head's tables: nodes, jobs, actors and their names, key-value pairs.

``actors``, ``jobs``, ``nodes`` and ``kv`` decide (pure machines), ``tables`` remembers (SQLite), ``service``
does what they decided. Nothing here knows of ordinary objects or tasks, and nothing here unpickles user data.
"""
