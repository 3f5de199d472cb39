"""Where objects lie: for programs that place work beside its data, and for the curious.

What is said is what this process and the node of its machine know, and that is not all: the process knows where an
object was made; the node knows whether it has a copy itself, and, of objects that were made there, who else has
copied them. Nobody else is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minray._base import current
from minray.object_ref import ObjectRef


def get_object_locations(
    obj_refs: Sequence[ObjectRef[Any]], timeout_ms: int = -1
) -> dict[ObjectRef[Any], dict[str, Any]]:
    """Where copies of these objects are, as far as this process and its node know.

    Args:
        obj_refs: the references.
        timeout_ms: accepted for compatibility; no other machine is asked.

    Returns:
        For each reference a dict with ``node_ids`` (hexadecimal; [] while the object is not there, or is an error),
        ``object_size`` (bytes; None while it is not there) and ``did_spill`` (whether the node
        of this machine has it on disk, because memory was short).

    Raises:
        RuntimeError: before ``init``.
        TypeError: for what is no ObjectRef.
    """
    rt = current.get()
    if rt is None:
        raise RuntimeError("minray has not been started yet: call minray.init() before get_object_locations()")
    refs = list(obj_refs)
    for ref in refs:
        if not isinstance(ref, ObjectRef):
            raise TypeError(f"get_object_locations() takes ObjectRefs, got {type(ref).__name__} ({ref!r})")
    return {
        ref: {"node_ids": [node_id.hex() for node_id in nodes], "object_size": size, "did_spill": did_spill}
        for ref, (nodes, size, did_spill) in zip(refs, rt.object_locations(refs), strict=True)
    }


def get_local_object_locations(obj_refs: Sequence[ObjectRef[Any]]) -> dict[ObjectRef[Any], dict[str, Any]]:
    """The same; in Ray it is the one of the two that asks nobody."""
    return get_object_locations(obj_refs)
