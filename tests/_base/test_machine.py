"""Detection, on machines made of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minray._base import machine
from minray._base.config import Config

GIB = 1024**3


def make_machine(root: Path, files: dict[str, str]) -> str:
    for name, text in {"proc/meminfo": f"MemTotal: {16 * GIB // 1024} kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


@pytest.fixture(autouse=True)
def _eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def test_affinity_alone(tmp_path: Path) -> None:
    assert machine.usable_cpus(Config(), make_machine(tmp_path, {})) == 8


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("garbage", 8)],
)
def test_cgroup_v2_quota(tmp_path: Path, text: str, cpus: int) -> None:
    root = make_machine(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": text})
    assert machine.usable_cpus(Config(), root) == cpus


def test_the_tightest_parent_of_a_cgroup_counts(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/b/cpu.max": "max 100000",
        "sys/fs/cgroup/a/cpu.max": "300000 100000",
        "sys/fs/cgroup/a/memory.max": str(2 * GIB),
        "sys/fs/cgroup/a/b/memory.max": "max",
    }
    root = make_machine(tmp_path, files)
    assert machine.usable_cpus(Config(), root) == 3
    assert machine.memory_limit(root) == 2 * GIB


def test_cgroup_v1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n",
        # The container sees its own group at the mount's root.
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(4 * GIB),
    }
    root = make_machine(tmp_path, files)
    assert machine.cgroup_cpu_quota(root) == 4
    assert machine.usable_cpus(Config(), root) == 4
    assert machine.memory_limit(root) == 4 * GIB


def test_cgroup_v1_without_limits(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "3:cpu,cpuacct:/\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    root = make_machine(tmp_path, files)
    assert machine.cgroup_cpu_quota(root) is None
    assert machine.memory_limit(root) == 16 * GIB


def test_slurm(tmp_path: Path) -> None:
    root = make_machine(tmp_path, {})
    assert machine.usable_cpus(Config(slurm_cpus=3), root) == 3
    assert machine.usable_cpus(Config(slurm_cpus=64), root) == 8


def test_without_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert machine.usable_cpus(Config(), make_machine(tmp_path, {})) == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.usable_cpus(Config(), str(tmp_path)) == 1


def test_memory_without_proc(tmp_path: Path) -> None:
    assert machine.memory_limit(str(tmp_path)) > 0


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [("0", 1), ("0,1", 2), ("", 0), ("-1", 0), ("0,-1,1", 1), ("GPU-8932f937, GPU-5d", 2), ("NoDevFiles", 0)],
)
def test_cuda_visible_devices(tmp_path: Path, visible: str, gpus: int) -> None:
    root = make_machine(tmp_path, {"proc/driver/nvidia/gpus/0000:01:00.0/information": ""})
    assert machine.visible_gpus(Config(cuda_visible_devices=visible), root) == gpus


def test_gpus_of_the_driver(tmp_path: Path) -> None:
    assert machine.visible_gpus(Config(), make_machine(tmp_path, {})) == 0
    files = {f"proc/driver/nvidia/gpus/0000:0{i}:00.0/information": "" for i in range(2)}
    assert machine.visible_gpus(Config(), make_machine(tmp_path, files)) == 2


class TestStoreMemory:
    def shm(self, monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
        monkeypatch.setattr(machine, "shm_free", lambda root="/": free)

    def test_a_share_of_the_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shm(monkeypatch, 64 * GIB)
        assert machine.default_store_memory(Config(), make_machine(tmp_path, {})) == int(16 * GIB * 0.3)

    def test_at_most_what_shm_has_free(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shm(monkeypatch, 2 * GIB)
        assert machine.default_store_memory(Config(), make_machine(tmp_path, {})) == int(2 * GIB * 0.8)

    @pytest.mark.parametrize("free", [None, 64 * 1024**2])
    def test_without_shm_the_disk_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int | None
    ) -> None:
        self.shm(monkeypatch, free)
        root = make_machine(tmp_path, {})
        config = Config(temp_dir=str(tmp_path / "not" / "there" / "yet"))
        disk = os.statvfs(tmp_path)
        wanted = min(int(16 * GIB * 0.3), int(disk.f_bavail * disk.f_frsize * 0.8))
        assert machine.default_store_memory(config, root) == pytest.approx(wanted, rel=0.05)

    def test_a_small_shm_on_demand(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shm(monkeypatch, 64 * 1024**2)
        config = Config(segments="shm")
        assert machine.default_store_memory(config, make_machine(tmp_path, {})) == int(64 * 1024**2 * 0.8)


@pytest.mark.parametrize(
    ("segments", "shm", "size", "said"),
    [
        ("auto", 64 * GIB, 16 * GIB, ""),
        ("auto", 64 * GIB, 17 * GIB, "memory of this machine, 16.0 GiB"),
        ("auto", 4 * GIB, 5 * GIB, "/dev/shm has free .*--shm-size.*, 4.0 GiB"),
        ("shm", GIB // 16, GIB, "/dev/shm has free"),
        ("auto", GIB // 16, GIB, ""),  # so small that mapped files are taken
        ("auto", None, GIB, ""),
        ("file", 4 * GIB, 900 * GIB, ""),
    ],
)
def test_a_store_that_is_larger_than_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segments: str, shm: int | None, size: int, said: str
) -> None:
    monkeypatch.setattr(machine, "shm_free", lambda root="/": shm)
    monkeypatch.setattr(machine, "memory_limit", lambda root="/": 16 * GIB)
    config = Config(segments=segments)
    if not said:
        machine.check_store_memory(config, size)
        return
    with pytest.raises(ValueError, match=f"object_store_memory={size} .*{said}.*goes to disk.*MINRAY_SEGMENTS=file"):
        machine.check_store_memory(config, size)


def test_shm_free(tmp_path: Path) -> None:
    assert machine.shm_free(str(tmp_path)) is None
    (tmp_path / "dev" / "shm").mkdir(parents=True)
    assert machine.shm_free(str(tmp_path)) is not None


def test_totals_take_what_the_user_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "shm_free", lambda root="/": 64 * GIB)
    root = make_machine(tmp_path, {})
    totals = machine.detect_totals(
        Config(), num_cpus=0.5, num_gpus=2, object_store_memory=GIB, resources={"x": 3}, root=root
    )
    assert totals == {
        "CPU": 0.5,
        "GPU": 2,
        "memory": 15 * GIB,
        "object_store_memory": GIB,
        "x": 3,
    }


def test_totals_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "shm_free", lambda root="/": 64 * GIB)
    root = make_machine(tmp_path, {})
    totals = machine.detect_totals(Config(), root=root)
    assert totals["CPU"] == 8
    assert "GPU" not in totals
    assert totals["memory"] + totals["object_store_memory"] == 16 * GIB
    assert machine.detect_totals(Config(num_cpus=3, store_memory=GIB), root=root)["CPU"] == 3
    assert machine.detect_totals(Config(), num_cpus=0, root=root).get("CPU", 0) == 0


def test_memory_in_use(tmp_path: Path) -> None:
    """Whoever is nearest to its limit counts, and what can be given back at once does not."""
    meminfo = f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {12 * GIB // 1024} kB\n"
    root = make_machine(tmp_path / "plain", {"proc/meminfo": meminfo})
    assert machine.memory_in_use(root) == (4 * GIB, 16 * GIB)
    cgroup = {
        "proc/meminfo": meminfo,
        "proc/self/cgroup": "0::/a\n",
        "sys/fs/cgroup/a/memory.max": str(2 * GIB),
        "sys/fs/cgroup/a/memory.current": str(GIB + 5000),
        "sys/fs/cgroup/a/memory.stat": "anon 17\ninactive_file 5000\nactive_file 3\n",
        "sys/fs/cgroup/memory.max": "max",
        "sys/fs/cgroup/memory.current": str(15 * GIB),
    }
    assert machine.memory_in_use(make_machine(tmp_path / "v2", cgroup)) == (GIB, 2 * GIB)
    old = {
        "proc/meminfo": meminfo,
        "proc/self/cgroup": "4:memory:/docker/abc\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(8 * GIB),
        "sys/fs/cgroup/memory/memory.usage_in_bytes": str(7 * GIB),
        "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {GIB}\n",
    }
    assert machine.memory_in_use(make_machine(tmp_path / "v1", old)) == (6 * GIB, 8 * GIB)
