"""What the cluster says about itself: nodes, resources, errors, and which GPUs this code has.

Reads only. Unlike the rest of the face, most of these do not start a session: asking an absent cluster
for its state is a mistake.
"""

from __future__ import annotations

from typing import Any

from minray._base import current
from minray.exceptions import RaySystemError


def _running() -> Any:
    rt = current.get()
    if rt is None:
        raise RaySystemError(
            "minray has not been started yet. Trying to use state API before minray.init() has been called."
        )
    return rt


def nodes() -> list[dict[str, Any]]:
    """One dict per node, living or lately dead: NodeID (hexadecimal), Alive, NodeManagerAddress, NodeName,
    Resources (name → float; memory in bytes), Labels, …

    Raises:
        RaySystemError: before ``init``.
    """
    result: list[dict[str, Any]] = _running().gcs("nodes")
    return result


def cluster_resources() -> dict[str, float]:
    """All that the living nodes have: name → amount (CPUs, GPUs, bytes). RaySystemError before ``init``."""
    result: dict[str, float] = _running().gcs("cluster_resources")
    return result


def available_resources() -> dict[str, float]:
    """What of it is free now; what is used up is missing. RaySystemError before ``init``."""
    result: dict[str, float] = _running().gcs("available_resources")
    return result


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """Names of the living named actors of this job's namespace; of all, as {"name", "namespace"} dicts.

    This one starts a session, as asking for an actor by its name does.
    """
    rt = current.ensure()
    found: list[dict[str, str]] = rt.gcs("list_named_actors", bool(all_namespaces), rt.namespace)
    return found if all_namespaces else [actor["name"] for actor in found]


def timeline(filename: str | None = None) -> Any:
    """A trace of the tasks for a browser's tracing page. Not built yet.

    Raises:
        RuntimeError: before ``init``.
        NotImplementedError: always.
    """
    if current.get() is None:
        raise RuntimeError(
            "minray has not been started yet. Timeline requires minray to be initialized first."
        )
    raise NotImplementedError("timeline() is not implemented in minray yet")


def error_info() -> list[dict[str, Any]]:
    """The latest errors of this job's tasks, oldest first: {"type": "task", "message": text, …}."""
    result: list[dict[str, Any]] = current.ensure().error_info()
    return result


def get_gpu_ids() -> list[int | str]:
    """The GPUs that this task or actor may use, as CUDA_VISIBLE_DEVICES names them; [] in a driver."""
    result: list[int | str] = list(current.ensure().context().gpu_ids)
    return result
