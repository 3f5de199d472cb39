"""A file system that is really full: a clear error, never a SIGBUS. Needs a mount namespace of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from minray.store.errors import StoreFull
from minray.store.segments import choose
from tests.store.support import MIB, World, object_id
world = World(choose("file", sys.argv[1]), capacity=64 * MIB, grace_s=0.5)  # says 64, has 4
client = world.client("a")
locations = []
try:
    while len(locations) < 100:
        data = bytes([len(locations)]) * MIB
        locations.append((client.write(MIB, [(0, data)]), data))
except StoreFull as error:
    print("full after", len(locations), "No space left" in str(error))
for n, (location, data) in enumerate(locations):
    (held,) = client.acquire([(object_id(n), location)])
    assert held.view == data
    held.release()
client.free([(object_id(n), location) for n, (location, _) in enumerate(locations)])
client.drain()
for _ in range(20):  # warm now: the pages exist, mapped writes are safe
    location = client.write(MIB, [(0, data)])
    client.free([(object_id(0), location)])
print("goes on")
world.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs and mount namespaces are Linux's")
def test_a_full_tmpfs_is_an_error(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=4m none "$1" && exec "$2" -c "$3" "$1"'
    flags = ["-m"] if os.geteuid() == 0 else ["-rm"]
    if shutil.which("unshare") is None:
        pytest.skip("no unshare on this machine")
    command = ["unshare", *flags, "sh", "-c", script, "sh", str(tmp_path), sys.executable, PROGRAM]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=root, env={**os.environ, "PYTHONPATH": root}
    )
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, (done.returncode, done.stderr)
    first, second = done.stdout.splitlines()
    assert first in ("full after 3 True", "full after 4 True"), first
    assert second == "goes on"
