"""The cluster's key-value pairs: bytes under bytes, in namespaces. Pure.

Called by ``service`` for the ``kv_*`` requests. A key's row is saved under the namespace's length, the
namespace and the key, so that no two pairs of names can meet in one row.

Invariant: a namespace without keys does not exist.
"""

from __future__ import annotations

from minray.gcs.effects import Effects, Row, save

TABLE = "kv"


def _row_key(namespace: bytes, key: bytes) -> bytes:
    return len(namespace).to_bytes(4, "big") + namespace + key


class KvTable:
    """All pairs, by namespace."""

    def __init__(self) -> None:
        self._spaces: dict[bytes, dict[bytes, bytes]] = {}

    def restore(self, rows: list[tuple[bytes, Row]]) -> None:
        """Take over what an earlier life of the head had saved."""
        for _, (namespace, key, value) in rows:
            self._spaces.setdefault(namespace, {})[key] = value

    def put(self, namespace: bytes, key: bytes, value: bytes, overwrite: bool) -> tuple[bool, Effects]:
        """Store; the answer says whether the key was there before (then only ``overwrite`` changes it)."""
        for what, given in (("namespace", namespace), ("key", key), ("value", value)):
            if not isinstance(given, bytes):
                raise TypeError(f"the {what} of a key-value pair must be bytes, not {type(given).__name__}")
        space = self._spaces.setdefault(namespace, {})
        existed = key in space
        if existed and not overwrite:
            return True, []
        space[key] = value
        return existed, [save(TABLE, _row_key(namespace, key), (namespace, key, value))]

    def get(self, namespace: bytes, key: bytes) -> bytes | None:
        """The value, or None."""
        return self._spaces.get(namespace, {}).get(key)

    def exists(self, namespace: bytes, key: bytes) -> bool:
        """Whether the key is there."""
        return key in self._spaces.get(namespace, {})

    def keys(self, namespace: bytes, prefix: bytes) -> list[bytes]:
        """The keys of a namespace that start with ``prefix``, sorted."""
        return sorted(key for key in self._spaces.get(namespace, {}) if key.startswith(prefix))

    def delete(self, namespace: bytes, key: bytes, by_prefix: bool) -> tuple[int, Effects]:
        """Forget a key, or all that start with it; the answer is how many went."""
        space = self._spaces.get(namespace, {})
        gone = self.keys(namespace, key) if by_prefix else [key] if key in space else []
        for name in gone:
            del space[name]
        if not space:
            self._spaces.pop(namespace, None)
        return len(gone), [save(TABLE, _row_key(namespace, name), None) for name in gone]

    def check_invariants(self) -> None:
        """Raise AssertionError where the table contradicts itself."""
        assert all(self._spaces.values()), "an empty namespace was kept"
