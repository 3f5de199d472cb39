"""What this machine grants us: CPUs, memory, GPUs, room for objects.

``detect_totals`` makes a node's totals from the user's wishes and, where he has none, from the least of
what the kernel and the batch system allow: CPU affinity, cgroup v1 or v2 quota, Slurm; memory limits;
CUDA_VISIBLE_DEVICES or the NVIDIA driver's list. Called once when a node starts; control processes call
it too, so psutil is only a last resort and nothing heavy is imported.

Everything is read below ``root`` (``/``), so that tests can show it any machine. Whatever can't be read
counts as unlimited: detection never fails.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping

from minray._base.config import GIB, MIB, Config

STORE_SHARE = 0.3  # of the memory, for objects, by default
SHM_MIN = 256 * MIB  # a smaller /dev/shm (64 MB in a plain container) is left alone: mapped files instead
SHM_SHARE = 0.8  # of what /dev/shm has free: other programs use it too
_UNLIMITED = 1 << 60  # cgroup v1 writes an absurd number for "no limit"


def detect_totals(
    config: Config,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    memory: float | None = None,
    object_store_memory: float | None = None,
    resources: Mapping[str, float] | None = None,
    root: str = "/",
) -> dict[str, float]:
    """A node's totals by resource name; memory in bytes. Zero quantities are left out.

    Args:
        config: settings that override detection.
        num_cpus, num_gpus, memory, object_store_memory, resources: what the user said, None for unsaid.
        root: where ``proc``, ``sys`` and ``dev`` are.
    """
    ram = memory_limit(root)
    if num_cpus is None:
        num_cpus = config.num_cpus if config.num_cpus is not None else usable_cpus(config, root)
    if num_gpus is None:
        num_gpus = visible_gpus(config, root)
    store = object_store_memory
    if store is None:
        store = config.store_memory if config.store_memory is not None else default_store_memory(config, root)
    if memory is None:
        memory = max(0, ram - int(store))
    totals = {"CPU": num_cpus, "GPU": num_gpus, "memory": memory, "object_store_memory": store}
    totals.update(resources or {})
    return {name: amount for name, amount in totals.items() if amount}


def check_store_memory(config: Config, said: float | None, root: str = "/") -> None:
    """ValueError if a node is to have more shared memory for objects than its machine has memory."""
    size = config.store_memory if said is None else said
    if size is None or config.segments == "file":
        return
    ram, shm = memory_limit(root), shm_free(root)
    if config.segments == "auto" and shm is not None and shm < SHM_MIN:
        shm = None  # mapped files will be used
    if size > ram:
        place, room = "the memory of this machine", ram
    elif shm is not None and size > shm:
        place, room = "what /dev/shm has free (mount it larger, in a container --shm-size)", shm
    else:
        return
    raise ValueError(
        f"object_store_memory={int(size)} ({size / GIB:.1f} GiB) is more than {place}, {room / GIB:.1f} GiB: name at"
        " most that, and what does not fit goes to disk; or set MINRAY_SEGMENTS=file, for files instead of memory"
    )


def usable_cpus(config: Config | None = None, root: str = "/") -> int:
    """How many CPUs this process may keep busy: at least 1."""
    limits: list[float] = []
    affinity = getattr(os, "sched_getaffinity", None)
    limits.append(len(affinity(0)) if affinity is not None else os.cpu_count() or 1)
    quota = cgroup_cpu_quota(root)
    if quota is not None:
        limits.append(max(1, math.ceil(quota)))
    if config is not None and config.slurm_cpus is not None:
        limits.append(config.slurm_cpus)
    return max(1, int(min(limits)))


def cgroup_cpu_quota(root: str = "/") -> float | None:
    """CPUs that the tightest enclosing cgroup grants, or None without a limit."""
    quotas: list[float] = []
    for folder in _cgroup_folders(root, ""):
        words = _read(folder, "cpu.max").split()
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    for folder in _cgroup_folders(root, "cpu"):
        quota, period = _read(folder, "cpu.cfs_quota_us").strip(), _read(folder, "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas) if quotas else None


def memory_limit(root: str = "/") -> int:
    """Bytes of memory that this process may use: the machine's, or its cgroup's limit if that is less."""
    limits = [_physical_memory(root)]
    for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        for folder in _cgroup_folders(root, controller):
            text = _read(folder, name).strip()
            if text.isdigit() and 0 < int(text) < _UNLIMITED:
                limits.append(int(text))
    return min(limits)


def memory_in_use(root: str = "/") -> tuple[int, int]:
    """Bytes in use, and the limit: of the machine, or of an enclosing cgroup if that is nearer to its limit. What the
    kernel gives back when asked (file pages that nobody uses) does not count."""
    total = _physical_memory(root)
    found = [(total - _available_memory(root), total)]
    for controller, limit_name, used_name, inactive in (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        for folder in _cgroup_folders(root, controller):
            limit, used = _read(folder, limit_name).strip(), _read(folder, used_name).strip()
            if limit.isdigit() and used.isdigit() and 0 < int(limit) < min(total, _UNLIMITED):
                found.append((int(used) - _stat(folder, inactive), int(limit)))
    return max(found, key=lambda one: one[0] / one[1])


def visible_gpus(config: Config, root: str = "/") -> int:
    """GPUs: what CUDA_VISIBLE_DEVICES lists if it is set, else what the NVIDIA driver lists."""
    visible = config.cuda_visible_devices
    if visible is not None:
        return len(gpu_ids(visible))
    try:
        return len(os.listdir(os.path.join(root, "proc/driver/nvidia/gpus")))
    except OSError:
        return 0


def gpu_ids(cuda_visible_devices: str) -> list[str]:
    """The entries of a CUDA_VISIBLE_DEVICES value; as CUDA reads it, an invalid entry ends the list."""
    ids: list[str] = []
    for entry in cuda_visible_devices.split(","):
        entry = entry.strip()
        if not entry or entry.startswith("-") or entry == "NoDevFiles":
            break
        ids.append(entry)
    return ids


def shm_free(root: str = "/") -> int | None:
    """Bytes free in /dev/shm, or None where there is none that can be written to."""
    folder = os.path.join(root, "dev/shm")
    try:
        if not os.access(folder, os.W_OK | os.X_OK):
            return None
        stat = os.statvfs(folder)
    except (OSError, AttributeError):
        return None
    return stat.f_bavail * stat.f_frsize


def default_store_memory(config: Config, root: str = "/") -> int:
    """Room for objects when nobody said: 30 % of the memory, at most what its place has free."""
    wanted = int(memory_limit(root) * STORE_SHARE)
    free = shm_free(root)
    if config.segments == "shm" or (config.segments == "auto" and free is not None and free >= SHM_MIN):
        return min(wanted, int((free or wanted) * SHM_SHARE))
    try:
        disk = os.statvfs(_existing_parent(config.temp_root()))
    except (OSError, AttributeError):
        return wanted
    return min(wanted, int(disk.f_bavail * disk.f_frsize * SHM_SHARE))


def _existing_parent(path: str) -> str:
    while not os.path.exists(path):
        parent = os.path.dirname(path)
        if parent == path:
            return path
        path = parent
    return path


def _physical_memory(root: str) -> int:
    found = _meminfo(root, "MemTotal")
    if found is not None:
        return found
    import psutil

    return int(psutil.virtual_memory().total)


def _available_memory(root: str) -> int:
    found = _meminfo(root, "MemAvailable")
    if found is not None:
        return found
    import psutil

    return int(psutil.virtual_memory().available)


def _meminfo(root: str, wanted: str) -> int | None:
    for line in _read(os.path.join(root, "proc"), "meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name == wanted and words and words[0].isdigit():
            return int(words[0]) * 1024
    return None


def _stat(folder: str, wanted: str) -> int:
    """One line of a cgroup's memory.stat."""
    for line in _read(folder, "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == wanted and value.isdigit():
            return int(value)
    return 0


def _cgroup_folders(root: str, controller: str) -> Iterator[str]:
    """This process's cgroup folder and its parents, for v2 (``controller`` empty) or a v1 controller."""
    own = None
    for line in _read(os.path.join(root, "proc/self"), "cgroup").splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3 and controller in fields[1].split(","):
            own = fields[2]
    base = os.path.join(root, "sys/fs/cgroup", controller)
    if own is not None:
        parts = [part for part in own.split("/") if part and part != ".."]
        while parts:
            yield os.path.join(base, *parts)
            parts.pop()
    # Inside a container the path of /proc/self/cgroup is often the host's: the mount's root counts too.
    yield base


def _read(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name), encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
