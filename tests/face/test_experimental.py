"""``minray.experimental`` in local mode, where one node has everything. (Clusters: tests/cluster/test_objects.py.)"""

from __future__ import annotations

from typing import Any

import pytest

import minray as ray
from minray.experimental import get_local_object_locations, get_object_locations


@ray.remote
def fail() -> None:
    raise ValueError("no")


def test_locations(local: Any) -> None:
    there, failed = ray.put(b"x" * 1000), fail.remote()
    found = get_object_locations([there, failed], timeout_ms=100)
    here = ray.get_runtime_context().get_node_id()
    assert found[there]["node_ids"] == [here] and found[there]["object_size"] >= 1000
    assert found[failed] == {"node_ids": [], "object_size": None, "did_spill": False}
    assert get_local_object_locations([there]) == {there: found[there]}


def test_only_references_have_locations(local: Any) -> None:
    with pytest.raises(TypeError, match=r"got str \('x'\)"):
        get_object_locations(["x"])
