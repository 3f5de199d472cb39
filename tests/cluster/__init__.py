"""Several nodes on this machine, with real processes."""
