"""Tools for tests: the simulator of a whole cluster, the pytest plugin. May import anything; nothing
imports it."""
