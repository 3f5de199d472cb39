"""Tools for tests: the simulator of a whole session, the pytest plugin. May import anything; nothing
imports it."""
