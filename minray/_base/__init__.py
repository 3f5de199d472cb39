"""What every other room stands on: ids, settings, resources, options, the clock, the current runtime.

Nothing here opens a socket, starts a thread or a process, or imports another room. ``config`` is the
only module of the whole package that reads the environment. Everything is cheap to import: control processes
load these modules, so neither numpy nor cloudpickle nor psutil is imported at module level.

Import law: ``_base`` ← ``wire`` ← ``store`` ← (``gcs``, ``node``, ``worker``); ``_base`` imports nothing
of minray.
"""
