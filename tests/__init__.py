"""minray's tests, one folder per room, plus conformance (public API), seeds (programs) and e2e (processes)."""
