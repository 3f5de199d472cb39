"""What may still change: names that programs find under ``ray.experimental``."""

from __future__ import annotations

from minray.experimental.locations import get_local_object_locations, get_object_locations

__all__ = ["get_local_object_locations", "get_object_locations"]
