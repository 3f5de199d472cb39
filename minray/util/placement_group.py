"""Placement groups: named in minray's public face, not built yet.

Programs that import these names keep importing; a call says at once what is missing, instead of
failing later with an AttributeError. Each function goes when the feature comes. No state, no callers
inside minray.
"""

from __future__ import annotations

from typing import Any, NoReturn


def _not_built(name: str) -> NoReturn:
    raise NotImplementedError(
        f"{name}(): placement groups are not built in this version of minray. "
        "Until they are, ask for resources per task or actor (num_cpus=…, resources={…})."
    )


def placement_group(bundles: list[dict[str, float]], strategy: str = "PACK", **options: Any) -> Any:
    """Reserve bundles of resources together. Not built yet: raises NotImplementedError."""
    _not_built("placement_group")


def remove_placement_group(placement_group: Any) -> None:
    """Give a placement group's resources back. Not built yet: raises NotImplementedError."""
    _not_built("remove_placement_group")


def placement_group_table(placement_group: Any = None) -> dict[str, Any]:
    """Describe placement groups. Not built yet: raises NotImplementedError."""
    _not_built("placement_group_table")


def get_placement_group(placement_group_name: str) -> Any:
    """Find a placement group by its name. Not built yet: raises NotImplementedError."""
    _not_built("get_placement_group")


def get_current_placement_group() -> Any:
    """The placement group that the caller runs in: None, for no task or actor can be in one yet."""
    return None
