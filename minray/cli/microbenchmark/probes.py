"""What has to be measured in a process of its own, from its beginning: start-up, idleness, many tasks.

Run by ``peer.run_probe`` through ``boot``; the answer is a JSON object in a file, since the module under
test may print. A probe that can't run here answers ``{"skip": reason}``.

Memory is proportional set size (shared pages divided among those who share them) where the kernel tells
it, summed over this process and all its descendants. Everything here is the same code for both sides.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from . import boot

Probe = Callable[[str, str, dict[str, Any], float], dict[str, Any]]


def main(arguments: list[str], started: float) -> None:
    """``arguments``: probe, module, root, file for the answer, options as JSON."""
    probe, name, root, path, options = arguments
    answer = PROBES[probe](name, root, json.loads(options), started)
    with open(path, "w") as file:
        json.dump(answer, file)


def start(name: str, root: str, options: dict[str, Any], started: float) -> dict[str, Any]:
    """Seconds for import, init() and one task together, for the import alone, and for shutdown()."""
    ray = boot.import_under_test(name, root)
    imported = time.perf_counter()
    ray.init(**options["init"])

    @ray.remote
    def first() -> int:
        return 1

    ray.get(first.remote())
    ready = time.perf_counter()
    ray.shutdown()
    ended = time.perf_counter()
    return {"startup": ready - started, "startup_import": imported - started, "shutdown": ended - ready}


def idle(name: str, root: str, options: dict[str, Any], started: float) -> dict[str, Any]:
    """MB of the whole runtime and of the driver, and per cent of one CPU, with two workers at rest."""
    ray = boot.import_under_test(name, root)
    ray.init(**{**options["init"], "num_cpus": 2})

    @ray.remote
    def process_id() -> int:
        time.sleep(0.05)
        return os.getpid()

    seen: set[int] = set()
    deadline = time.monotonic() + 60
    while len(seen) < 2 and time.monotonic() < deadline:
        seen.update(ray.get([process_id.remote() for _ in range(4)]))
    time.sleep(options.get("settle", 2.0))  # leases and start-up work end
    processes = [os.getpid(), *_descendants(os.getpid())]
    begin, cpu = time.monotonic(), sum(map(_cpu_seconds, processes))
    time.sleep(options["seconds"])
    used, elapsed = sum(map(_cpu_seconds, processes)) - cpu, time.monotonic() - begin
    memory = {process: _memory(process) for process in processes}
    ray.shutdown()
    return {
        "idle_memory": sum(memory.values()) / 1e6,
        "idle_driver": memory[os.getpid()] / 1e6,
        "idle_cpu": 100 * used / elapsed,
        "processes": len(processes),
        "workers": len(seen),
    }


def many(name: str, root: str, options: dict[str, Any], started: float) -> dict[str, Any]:
    """Very many tasks outstanding at once.

    Tasks that hold every CPU until a file appears keep the others from running, so that "outstanding"
    is exact: nothing has finished when the memory is read. Then the file appears, all run, all results
    are fetched in slices, all references are dropped, and the memory is read again.
    """
    import tempfile  # here: start-up is measured from this process's beginning

    ray = boot.import_under_test(name, root)
    ray.init(**options["init"])

    @ray.remote
    def tiny() -> None:
        return None

    @ray.remote
    def hold(folder: str, number: int) -> None:
        open(os.path.join(folder, f"holding{number}"), "w").close()
        while not os.path.exists(os.path.join(folder, "go")):
            time.sleep(0.01)

    ray.get([tiny.remote() for _ in range(2000)])
    count, cpus = options["tasks"], int(ray.cluster_resources()["CPU"])
    with tempfile.TemporaryDirectory() as folder:
        holders = [hold.remote(folder, number) for number in range(cpus)]
        while len(os.listdir(folder)) < cpus:
            time.sleep(0.01)
        baseline = _settled_memory()
        begin = time.perf_counter()
        refs = [tiny.remote() for _ in range(count)]
        submitted = time.perf_counter() - begin
        grown = _memory(os.getpid()) - baseline
        open(os.path.join(folder, "go"), "w").close()
        begin = time.perf_counter()
        for index in range(0, count, 10_000):
            ray.get(refs[index : index + 10_000])
        finished = time.perf_counter() - begin
        ray.get(holders)
    del refs, holders
    left = _settled_memory() - baseline
    ray.shutdown()
    return {
        "many_submit": count / submitted,
        "many_finish": count / finished,
        "many_bytes": grown / count,
        "many_left": 100 * max(0, left) / max(1, grown),
    }


def join(name: str, root: str, options: dict[str, Any], started: float) -> dict[str, Any]:
    """Seconds from the command that adds a node to the result of a task that only this node can run; each of some.

    The head, too, is started by the command, in a folder of its own; what it prints is not read.
    """
    import subprocess
    import tempfile

    ray: Any = boot.import_under_test(name, root)
    times = []
    with tempfile.TemporaryDirectory() as folder:

        def run(*words: str) -> subprocess.Popen[bytes]:
            command = _module(root, f"{name}.cli.main", *words, f"--temp-dir={folder}")
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

        if run("start", "--head", "--num-cpus=1").wait() != 0:
            raise RuntimeError("the head did not start")
        try:
            ray.init(address="auto", _temp_dir=folder)
            address = ray.get_runtime_context().gcs_address
            for number in range(options["nodes"]):
                late = f"late{number}"

                def first() -> int:
                    return 1

                waiting = ray.remote(resources={late: 1})(first).remote()
                time.sleep(0.5)  # it is known to wait
                begin = time.perf_counter()
                resources = json.dumps({late: 1})
                node = run("start", f"--address={address}", "--num-cpus=1", f"--resources={resources}")
                ray.get(waiting)
                times.append(time.perf_counter() - begin)
                if node.wait() != 0:
                    raise RuntimeError("the node did not start")
            ray.shutdown()
        finally:
            run("stop").wait()
    return {"join": times}


def heartbeats(name: str, root: str, options: dict[str, Any], started: float) -> dict[str, Any]:
    """Per cent of one CPU that a head uses which hears of so many nodes, at rest and with ten changes per second."""
    import importlib
    import subprocess

    boot.import_under_test(name, root)
    cluster = importlib.import_module(f"{name}.cluster_utils").Cluster(True, head_node_args={"num_cpus": 1})
    answer: dict[str, Any] = {}
    try:
        for key, changes in (("heartbeats", 0), ("heartbeats_busy", 10)):
            words = [cluster.head_node.session_dir, str(options["nodes"]), str(changes)]
            command = _module(root, f"{name}.testing.crowd", *words)
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as crowd:
                assert crowd.stdout is not None
                if crowd.stdout.readline() != b"joined\n":
                    raise RuntimeError("the nodes did not join")
                time.sleep(options.get("settle", 2.0))
                begin, cpu = time.monotonic(), _cpu_seconds(cluster.head_node.daemon_pid)
                time.sleep(options["seconds"])
                used = _cpu_seconds(cluster.head_node.daemon_pid) - cpu
                answer[key] = 100 * used / (time.monotonic() - begin)
    finally:
        cluster.shutdown()
    return answer


PROBES: dict[str, Probe] = {
    "start": start, "idle": idle, "many": many, "join": join, "heartbeats": heartbeats,
}  # fmt: skip


def _module(root: str, module: str, *arguments: str) -> list[str]:
    """The command that runs ``python -m module``, which lies in ``root`` if it is not installed."""
    code = "import runpy, sys; sys.path.append(sys.argv.pop(1)); runpy.run_module(sys.argv.pop(1), None, '__main__')"
    return [sys.executable, "-c", code, root, module, *arguments]


def _settled_memory() -> int:
    """This process's memory once it has stopped falling for a second (releases are asynchronous)."""
    gc.collect()
    least, since = _memory(os.getpid()), 0
    while since < 5:
        time.sleep(0.2)
        now = _memory(os.getpid())
        since = 0 if now < 0.99 * least else since + 1
        least = min(now, least)
    return least


def _descendants(process: int) -> list[int]:
    if not os.path.isdir("/proc/self"):
        import psutil

        return [child.pid for child in psutil.Process(process).children(recursive=True)]
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = _stat(int(entry))
            if fields:
                parents[int(entry)] = int(fields[1])
    found, fresh = set[int](), {process}
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return sorted(found)


def _stat(process: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on (the name before it may hold anything)."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:  # it has ended
        return []


def _cpu_seconds(process: int) -> float:
    if sys.platform != "linux":
        import psutil

        times = psutil.Process(process).cpu_times()
        return float(times.user + times.system)
    fields = _stat(process)
    return sum(int(ticks) for ticks in fields[11:13]) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _memory(process: int) -> int:
    """Bytes: proportional set size, or where the kernel does not tell it, resident set size."""
    try:
        with open(f"/proc/{process}/smaps_rollup") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except FileNotFoundError:
        if sys.platform == "linux":
            return 0  # it has ended
    import psutil

    return int(psutil.Process(process).memory_info().rss)
