"""What can go wrong in the object store. `worker` maps these to the public exceptions.

Every operating-system error that a user could meet (a full tmpfs or disk, too many open files, a
segment that vanished) leaves this room as one of these classes, with the figures in it that a message
needs. ``StoreFull.info`` has the shape of ``ExtentTable.stats().as_info()``; ``describe_full`` turns it
into the sentence that a user reads: how full, and with what.
"""

from __future__ import annotations

from typing import Any


class StoreError(Exception):
    """Base of this room's errors."""


class StoreFull(StoreError):
    """No room for an object, after waiting for frees. ``info`` says how full and with what."""

    def __init__(self, requested: int, info: dict[str, Any]) -> None:
        super().__init__(requested, info)
        self.requested = requested
        self.info = info

    def __str__(self) -> str:
        return describe_full(self.requested, self.info)


class StoreWouldBlock(StoreError):
    """There is no room in the extents at hand and the caller must not wait (it is inside the runtime)."""


class SegmentGone(StoreError):
    """A segment that was to be opened does not exist (any more)."""


class StoreClosed(StoreError):
    """The store was shut down, or the connection to its node is lost."""


def format_bytes(count: float) -> str:
    """``count`` bytes for people: ``1.5 GB``, ``12 KB``; powers of 1000, as disks and networks count."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def describe_full(requested: int, info: dict[str, Any]) -> str:
    """The sentence behind ObjectStoreFullError. Unknown keys in ``info`` are left out."""
    parts = [f"no room for an object of {format_bytes(requested)}"]
    if "os_error" in info:
        parts.append(f"the system said: {info['os_error']}")
    if "capacity" in info:
        parts.append(
            f"the store holds {format_bytes(info.get('reserved', 0))} of {format_bytes(info['capacity'])}"
            f" in {info.get('segments', 0)} segments: {info.get('objects', 0)} shared objects of"
            f" {format_bytes(info.get('object_bytes', 0))}"
            f" ({format_bytes(info.get('pinned_bytes', 0))} being read),"
            f" {format_bytes(info.get('unshared_bytes', 0))} with their writers"
        )
    if info.get("on_disk"):
        parts.append(f"{format_bytes(info['on_disk'])} are on disk")
    if info.get("disk_error"):
        parts.append(f"nothing more can be moved to disk: {info['disk_error']}")
    largest = info.get("largest") or []
    if largest:
        parts.append(
            "largest objects: "
            + ", ".join(
                f"{oid[:16]}… {format_bytes(size)}{f' (read by {pins})' if pins else ''}"
                for oid, size, pins in largest
            )
        )
    if info.get("waited_s"):
        parts.append(f"waited {info['waited_s']:g} s for references to be dropped")
    if info.get("disk_error"):
        parts.append(
            "make room there, name another folder (init(object_spilling_directory=…), MINRAY_SPILL_DIRS), or drop"
            " references to large objects that you need no more"
        )
    else:
        parts.append(
            "drop references to large objects that you need no more, or start with a larger object_store_memory"
        )
    return "; ".join(parts)
