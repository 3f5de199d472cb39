"""More data than the object store has memory for: nothing is lost, nothing stands still, nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .support import ROOT, eventually

THREE_TIMES = """
import numpy as np
MIB = 2**20
context = ray.init(num_cpus=2, object_store_memory=64 * MIB, log_to_driver=False, **OPTIONS)
say("session", context.address_info["session_dir"])
rng = np.random.default_rng(1)

def block(i):
    return np.random.default_rng(i).integers(0, 2**60, 4 * MIB // 8)

def same(i, array):
    return np.array_equal(array, block(i))

@ray.remote
def make(i):
    return block(i)

@ray.remote
def plus_one(array):
    return array + 1

@ray.remote
def split(n, array):
    return [array[array % n == k] for k in range(n)]

@ray.remote
def merge(*parts):
    return np.sort(np.concatenate(parts))

N = 48  # of 4 MiB: three times the capacity
puts = [ray.put(block(i)) for i in range(N)]
assert all(same(i, ray.get(ref)) for i, ref in enumerate(puts))
say("put")
mapped = [plus_one.remote(ref) for ref in puts]
assert all(np.array_equal(ray.get(ref), block(i) + 1) for i, ref in enumerate(mapped))
say("map")
del mapped
parts = [split.options(num_returns=32).remote(32, make.remote(i)) for i in range(N)]
merged = [merge.remote(*(p[k] for p in parts)) for k in range(32)]
expected = np.sort(np.concatenate([block(i) for i in range(N)]))
for k, ref in enumerate(merged):
    assert np.array_equal(ray.get(ref), expected[expected % 32 == k]), k
say("shuffle")
"""


def program(options="{}", more=""):
    return f"OPTIONS = {options}\n{THREE_TIMES}{more}"


SPILLED = """
from minray.experimental import get_object_locations
where = get_object_locations(puts)
assert any(found["did_spill"] for found in where.values()) and all(found["node_ids"] for found in where.values())
from minray._base import current
rt = current.get()
stats = rt.request(rt.node, "stats", (), 10)["store"]
assert stats["spilled_bytes"] > 2 * 64 * MIB and stats["restored_bytes"] > 64 * MIB, stats
assert not stats["disk_error"]
ray.shutdown()
say("end")
"""


@pytest.mark.parametrize("segments", ["shm", "file"])
def test_three_times_the_capacity_through_put_map_shuffle_and_get(drive, tmp_path, segments):
    folder = tmp_path / "spilled"
    driver = drive(
        program(f"{{'object_spilling_directory': {str(folder)!r}}}", SPILLED), env={"MINRAY_SEGMENTS": segments}
    )
    for word in ("put", "map", "shuffle", "end"):
        driver.await_word(word, limit=240.0)
    driver.succeeds()
    driver.leaves_nothing()
    assert os.listdir(folder) == []


def test_an_array_in_user_code_stays_where_it_is(drive):
    driver = drive(
        program(
            more="""
held = [ray.get(ref) for ref in puts[:8]]
before = [array.copy() for array in held]
more = [ray.put(block(1000 + i)) for i in range(64)]
assert all(np.array_equal(a, b) for a, b in zip(held, before))
assert all(same(1000 + i, ray.get(ref)) for i, ref in enumerate(more))
del held
say("end")
"""
        )
    )
    driver.await_word("end", limit=240.0)


def test_when_everything_is_read_it_is_an_error_that_says_so(drive):
    driver = drive("""
import numpy as np
ray.init(num_cpus=1, object_store_memory=64 * 2**20, _system_config={"store_full_grace_s": 0.5})
held = []
try:
    while True:
        held.append(ray.get(ray.put(np.full(2**20, len(held)))))
except ray.exceptions.ObjectStoreFullError as error:
    say("full", len(held), error)
assert all(array[0] == i for i, array in enumerate(held))
del held[:4]
held.append(ray.get(ray.put(np.full(2**20, 1))))
say("end")
""")
    driver.await_word("end", limit=120.0)
    (text,) = driver.said("full")
    assert 5 <= int(text.split()[0]) <= 8 and "object_store_memory" in text


def test_the_benchmarks_rows_about_it_in_small(drive, tmp_path):
    """The same program that docs/performance.md has figures of; it compares every byte by itself."""
    size = ["--scale", "0.01", "--num-cpus", "2", "--limit", "200", "--no-floors"]  # a store of 80 MiB: Ray's least
    command = [sys.executable, "-m", "minray.cli.main", "microbenchmark", "--disk", str(tmp_path / "d"), "--json"]
    driver = drive("", command=[*command, *size], cwd=ROOT)
    driver.succeeds(limit=240.0)
    found = {line["metric"]: line["ours"]["value"] for line in json.loads(driver.out)["rows"]}
    assert set(found) == {"disk_put", "disk_get", "disk_file_write", "disk_file_read", "disk_map", "disk_shuffle"}
    assert all(value > 0 for value in found.values())
    assert os.listdir(tmp_path / "d") == []
    driver.leaves_nothing()


FULL_DISK = """
import minray as ray, numpy as np
ray.init(num_cpus=1, object_store_memory=32 * 2**20, object_spilling_directory=FOLDER)
refs = []
try:
    while len(refs) < 100:
        refs.append(ray.put(np.full(2**18, len(refs))))
except ray.exceptions.OutOfDiskError as error:
    print("full", len(refs), error)
assert 16 < len(refs) < 100
assert all(ray.get(ref)[0] == i for i, ref in enumerate(refs))
@ray.remote
def large():
    return np.ones(2**20)
try:
    ray.get(large.remote())
except ray.exceptions.OutOfDiskError as error:
    print("task", "moved to disk" in str(error))
del refs[:12]
assert ray.get(large.remote()).sum() == 2**20
assert all(ray.get(ref)[0] == 12 + i for i, ref in enumerate(refs))
ray.shutdown()
import os
print("left", os.listdir(FOLDER))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs and mount namespaces are Linux's")
def test_a_disk_that_is_really_full(tmp_path: Path):
    script = 'mount -t tmpfs -o size=24m none "$1" && exec "$2" -c "$3"'
    flags = ["-m"] if os.geteuid() == 0 else ["-rm"]
    done = subprocess.run(
        ["unshare", *flags, "sh", "-c", script, "sh", str(tmp_path), sys.executable,
         f"FOLDER = {str(tmp_path)!r}\n{FULL_DISK}"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, timeout=240,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, (done.stdout, done.stderr)
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert "MINRAY_SPILL_DIRS" in lines["full"] and str(tmp_path) in lines["full"]
    assert lines["task"] == "task True"
    assert lines["left"] == "left []"


FOREVER = """
i = 0
while True:
    i += 1
    ray.get(plus_one.remote(ray.put(block(i))))
    ray.get(puts[i % N])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize("victims", [["driver"], ["daemon"], ["driver", "daemon", "zygote"]])
def test_a_killed_session_leaves_no_file(drive, tmp_path, victims):
    folder = tmp_path / "spilled"
    driver = drive(
        program(f"{{'object_spilling_directory': {str(folder)!r}}}", 'say("ready")\n' + FOREVER),
    )
    driver.await_word("put", limit=240.0)
    assert [os.listdir(folder / name) for name in os.listdir(folder)] != [[]]
    killed = [driver.process.pid if kind == "driver" else driver.processes(kind)[0].pid for kind in victims]
    for number in (signal.SIGSTOP, signal.SIGKILL):  # none of them sees another one's end
        for pid in killed:
            os.kill(pid, number)
    if len(victims) == 3:  # nobody is left to clean up: the next start does it
        driver.process.wait(20)
        eventually(lambda: not driver.processes(), "its workers die with the zygote", 20.0)
        assert os.listdir(folder) != []
        after = drive(
            'ray.init(num_cpus=1)\nsay("up")\nray.shutdown()\nsay("end")\n',
            env={"MINRAY_TEMP_DIR": str(driver.temp_dir)},
        )
        after.await_word("end")
    eventually(lambda: os.listdir(folder) == [], "the session's spilled files are gone", 20.0)


def test_values_that_cannot_be(drive, tmp_path):
    (tmp_path / "file").touch()
    driver = drive(f"""
for name, said in [
    ("file", dict(object_spilling_directory={str(tmp_path / "file")!r})),
    ("type", dict(object_spilling_directory=3)),
    ("json", dict(_system_config={{"object_spilling_config": "nonsense"}})),
    ("memory", dict(object_store_memory=10**13)),
]:
    try:
        ray.init(num_cpus=1, **said)
    except (TypeError, ValueError) as error:
        say(name, error)
""")
    driver.await_word("memory")
    assert "is a file: name one in which" in driver.said("file")[0]
    assert "got 3" in driver.said("type")[0]
    assert "'nonsense'" in driver.said("json")[0] and "directory_path" in driver.said("json")[0]
    said = driver.said("memory")[0]
    assert "object_store_memory=10000000000000 " in said and "goes to disk" in said


def test_rays_older_way_to_name_folders(drive, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    text = json.dumps({"type": "filesystem", "params": {"directory_path": [str(folder) for folder in folders]}})
    driver = drive(program(f"{{'_system_config': {{'object_spilling_config': {text!r}}}}}", 'say("end")\n'))
    driver.await_word("put", limit=240.0)
    for folder in folders:
        (own,) = folder.iterdir()
        eventually(lambda own=own: list(own.iterdir()), "files in both of them")
    driver.await_word("end", limit=240.0)
