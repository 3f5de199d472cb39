"""Restricted hosts: each restriction is forced, by a setting or by the kernel, and the same program runs.

No or small ``/dev/shm``, no AF_UNIX, no fork, no semaphores, a long TMPDIR, a HOME that nobody can write,
proxies that lead nowhere, no network at all. A restriction that this machine does not let us make is skipped
with the reason.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys

import pytest

from minray.worker.blas import loaded_libraries

from .support import ROOT

PROGRAM = """
import numpy as np
started = time.monotonic()
context = ray.init(num_cpus=2)
say("session", context.address_info["session_dir"])

@ray.remote
def square(x):
    return x * x

@ray.remote
def total(array):
    return float(array.sum())

@ray.remote
def nested(n):
    return sum(ray.get([square.remote(i) for i in range(n)]))

@ray.remote
class Counter:
    def __init__(self):
        self.n = 0

    def add(self, k):
        self.n += k
        return self.n

assert ray.get([square.remote(i) for i in range(10)]) == [i * i for i in range(10)]
array = ray.put(np.ones(500_000))
assert ray.get(total.remote(array)) == 500_000
assert ray.get(array).sum() == 500_000
assert ray.get(total.remote(np.ones(400_000))) == 400_000
assert ray.get(nested.remote(4)) == 14
counter = Counter.remote()
assert ray.get([counter.add.remote(1) for _ in range(3)]) == [1, 2, 3]
assert list(map(ray.get, ray.remote(lambda: (yield 1)).remote())) == [1]
say("ok")
"""


def runs(driver):
    driver.await_word("ok")
    driver.succeeds()
    driver.leaves_nothing()


# --- by settings --------------------------------------------------------------------------------

SETTINGS = {
    "default": {},
    "no shared memory": {"MINRAY_SEGMENTS": "file"},
    "no unix sockets": {"MINRAY_TRANSPORT": "tcp"},
    "no fork": {"MINRAY_LAUNCHER": "spawn"},
    "none of them": {"MINRAY_SEGMENTS": "file", "MINRAY_TRANSPORT": "tcp", "MINRAY_LAUNCHER": "spawn"},
    "no spinning": {"MINRAY_SPIN_US": "0"},
    "no pipelining": {"MINRAY_MAX_PIPELINE": "1"},
    "nothing inline": {"MINRAY_INLINE_LIMIT": "1"},
    "a store of 64 MB": {"MINRAY_STORE_MEMORY": "64M"},
    "invariants checked": {"MINRAY_DEBUG": "1"},
    "one worker at a time": {"MINRAY_PRESTART": "0"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting(drive, name):
    runs(drive(PROGRAM, env=SETTINGS[name]))


@pytest.mark.parametrize(
    ("variable", "value"),
    [("MINRAY_TRANSPORT", "pigeon"), ("MINRAY_SPIN_US", "soon"), ("MINRAY_STORE_MEMORY", "-1")],
)
def test_a_bad_setting_is_named_with_its_value(drive, variable, value):
    driver = drive("ray.init()", env={variable: value})
    assert driver.wait() != 0
    assert variable in driver.err
    assert value in driver.err
    driver.leaves_nothing({"no session"})


def test_an_unknown_setting_is_warned_about(drive):
    driver = drive(PROGRAM, env={"MINRAY_SPIN_MS": "5"})
    runs(driver)
    assert "MINRAY_SPIN_MS" in driver.err


# --- folders and environment --------------------------------------------------------------------


def test_a_tmpdir_of_150_characters(drive, tmp_path):
    long = tmp_path / ("x" * max(10, 150 - len(str(tmp_path)) - 1))
    long.mkdir()
    assert len(str(long)) >= 150
    driver = drive(PROGRAM, env={"TMPDIR": str(long)}, temp_dir=False)
    runs(driver)
    assert driver.said("session")[0].startswith(str(long))
    assert list(long.glob("**/s_*")) == []


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null", None], ids=["absent", "a file", "unset"])
def test_a_home_that_nobody_can_write(drive, home):
    runs(drive(PROGRAM, env={"HOME": home}))


def test_a_home_of_mode_555(drive, tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    runs(drive(PROGRAM, env={"HOME": str(home)}))
    assert list(home.iterdir()) == []


def test_proxies_that_lead_nowhere(drive):
    nowhere = "http://192.0.2.1:9"
    names = ["http_proxy", "https_proxy", "all_proxy", "grpc_proxy"]
    runs(drive(PROGRAM, env={name: nowhere for lower in names for name in (lower, lower.upper())}))


def test_an_empty_environment(drive):
    runs(drive(PROGRAM, env={name: None for name in os.environ if name != "PYTHONPATH"}))


def test_another_working_folder_and_a_relative_script(drive, tmp_path):
    driver = drive(PROGRAM, command=[sys.executable, "driver.py"])
    runs(driver)


@pytest.mark.parametrize("flags", [["-O"], ["-W", "error"], ["-X", "dev"], ["-u"], ["-B"]], ids=" ".join)
def test_flags_of_the_interpreter(drive, flags):
    driver = drive(PROGRAM, command=[sys.executable, *flags, "driver.py"])
    runs(driver)
    assert driver.err == ""


def test_isolated_mode(drive):
    """``python -I`` ignores PYTHONPATH; the path that the program made has to reach its workers."""
    path = f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r})"
    run = f"{path}; runpy.run_path('driver.py', run_name='__main__')"
    runs(drive(PROGRAM, command=[sys.executable, "-I", "-c", run]))


def test_no_semaphores(drive):
    """As on hosts where sem_open is not built or not allowed."""
    broken = """
import _multiprocessing, errno

def refuse(*args, **kwargs):
    raise OSError(errno.ENOSYS, "Function not implemented")

_multiprocessing.SemLock = refuse
"""
    runs(drive(broken + PROGRAM))


BLAS = """
import numpy as np
context = ray.init(num_cpus=2)
say("session", context.address_info["session_dir"])

def threads():
    array = np.ones((600, 600))
    array @ array
    tasks = "/proc/self/task"
    extra = len(os.listdir(tasks)) - BASE if os.path.isdir(tasks) else 0
    return [os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")], extra

class Actor:
    def threads(self):
        return threads()

BASE = 0
_, base = ray.get(ray.remote(threads).remote())
BASE = base
for cpus in (0.5, 2, 1):
    (omp, openblas), extra = ray.get(ray.remote(num_cpus=cpus)(threads).remote())
    say("task", cpus, omp, openblas, extra if cpus > 1 else "-")
(omp, openblas), extra = ray.get(ray.remote(num_cpus=2)(Actor).remote().threads.remote())
say("actor", omp, openblas, extra)
"""


def has_openblas():
    """Whether this numpy brings its own, whose threads can be counted."""
    import numpy  # noqa: F401 - it maps the library

    return any("openblas" in path for path in loaded_libraries())


def test_blas_threads_are_as_many_as_the_cpus_of_a_task_or_an_actor(drive):
    driver = drive(BLAS)
    driver.succeeds()
    more = 1 if has_openblas() else 0
    assert driver.said("task") == ["0.5 1 1 -", f"2 2 2 {more}", "1 1 1 -"]
    assert driver.said("actor") == [f"2 2 {more}"]
    driver.leaves_nothing()


def test_blas_threads_that_the_user_has_set_stay(drive):
    driver = drive(BLAS, env={"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": None})
    driver.succeeds()
    assert driver.said("task") == ["0.5 2 2 -", "2 2 2 0", "1 2 2 -"]  # two threads from the start
    driver.leaves_nothing()


# --- which minray ---------------------------------------------------------------------------------

OTHER_COPY = """
import sys
sys.path.insert(0, OTHER)
import os
import minray as ray

def say(*words):
    with open(os.environ["MINRAY_TEST_SAID"], "a") as file:
        print(*words, file=file)

context = ray.init(num_cpus=1)
say("session", context.address_info["session_dir"])

class Holder:
    def __init__(self, actor):
        self.actor = actor

@ray.remote(num_cpus=0)
class Where:
    def where(self):
        import random
        return ray.__file__

@ray.remote
def inner(holder):
    return ray.get(holder.actor.where.remote())

@ray.remote
def outer(holder):
    return ray.get(inner.remote(holder))

say("driver", ray.__file__)
say("worker", ray.get(outer.remote(Holder(Where.remote()))))
"""


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_workers_run_the_copy_of_minray_that_the_driver_runs(drive, tmp_path, how):
    """Not the one that a bare interpreter would find; and its neighbours hide nothing."""
    other = tmp_path / "other"
    shutil.copytree(ROOT / "minray", other / "minray", ignore=shutil.ignore_patterns("__pycache__"))
    program = OTHER_COPY.replace("OTHER", repr(str(other)), 1)
    driver = drive(program, prelude=False, env={"MINRAY_LAUNCHER": how})
    driver.succeeds()
    assert driver.said("driver") == driver.said("worker") == [str(other / "minray" / "__init__.py")]
    driver.leaves_nothing()


# --- by the kernel ------------------------------------------------------------------------------


@functools.cache
def unshare_works(*flags):
    """Whether this machine lets us make namespaces (and mount in them)."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", *flags, "true"], capture_output=True, check=False).returncode == 0


def in_namespace(*flags, setup=""):
    """A wrapper command that runs its arguments in new namespaces after ``setup``."""
    if not unshare_works(*flags):
        pytest.skip(f"this machine does not let us `unshare {' '.join(flags)}`")
    return ["unshare", *flags, "sh", "-c", f'{setup} exec "$@"', "sh"]


@pytest.mark.parametrize("size", ["64m", "1m", "64k"])
def test_a_small_dev_shm(drive, size):
    wrapper = in_namespace("--mount", setup=f"mount -t tmpfs -o size={size} tmpfs /dev/shm || exit 77;")
    driver = drive(PROGRAM, wrapper=wrapper)
    if driver.process.poll() == 77:
        pytest.skip("this machine does not let us mount a tmpfs")
    runs(driver)


def test_a_dev_shm_that_cannot_be_written(drive):
    wrapper = in_namespace("--mount", setup="mount -t tmpfs -o ro tmpfs /dev/shm || exit 77;")
    driver = drive(PROGRAM, wrapper=wrapper)
    runs(driver)


def test_no_dev_shm_at_all(drive, tmp_path):
    empty = tmp_path / "dev"
    empty.mkdir()
    for name in ("null", "zero", "random", "urandom", "full", "tty"):
        (empty / name).touch()
    binds = " ".join(f"mount --bind /dev/{name} {empty / name} &&" for name in ("null", "zero", "random", "urandom"))
    wrapper = in_namespace("--mount", setup=f"{binds} mount --rbind {empty} /dev || exit 77;")
    driver = drive(PROGRAM, wrapper=wrapper)
    runs(driver)


def test_a_store_larger_than_dev_shm_never_ends_in_sigbus(drive):
    wrapper = in_namespace("--mount", setup="mount -t tmpfs -o size=64m tmpfs /dev/shm || exit 77;")
    driver = drive(
        """
        import numpy as np
        context = ray.init(num_cpus=1, object_store_memory=1 << 30)
        say("session", context.address_info["session_dir"])
        held = []
        try:
            for i in range(12):
                held.append(ray.put(np.full(1_250_000, i)))  # 10 MB each
            assert [ray.get(ref)[-1] for ref in held] == list(range(12))
            say("fits")
        except ray.exceptions.ObjectStoreFullError as error:
            say("full", error)
        """,
        wrapper=wrapper,
        env={"MINRAY_STORE_FULL_GRACE_S": "0.2"},
    )
    driver.succeeds()
    assert driver.said("fits") or driver.said("full")
    driver.leaves_nothing()


def test_no_network_not_even_loopback(drive):
    runs(drive(PROGRAM, wrapper=in_namespace("--net")))


def test_few_processes_allowed(drive):
    if os.geteuid() == 0:
        pytest.skip("the limit does not bind root")
    runs(drive(PROGRAM, wrapper=["sh", "-c", 'ulimit -u 64; exec "$@"', "sh"]))


def test_few_descriptors_allowed(drive):
    runs(drive(PROGRAM, wrapper=["sh", "-c", 'ulimit -n 64; exec "$@"', "sh"]))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_the_number_of_cpus_respects_affinity(drive):
    one = min(os.sched_getaffinity(0))
    driver = drive(
        """
        context = ray.init()
        say("session", context.address_info["session_dir"])
        say("cpus", int(ray.cluster_resources()["CPU"]))
        """,
        wrapper=[sys.executable, "-c", f"import os, sys; os.sched_setaffinity(0, {{{one}}}); "
                 "os.execvp(sys.argv[1], sys.argv[1:])"],
    )  # fmt: skip
    driver.succeeds()
    assert driver.said("cpus") == ["1"]
    driver.leaves_nothing()


def test_the_number_of_cpus_respects_slurm(drive):
    driver = drive(
        """
        context = ray.init()
        say("session", context.address_info["session_dir"])
        say("cpus", int(ray.cluster_resources()["CPU"]))
        """,
        env={"SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_ID": "7"},
    )
    driver.succeeds()
    assert driver.said("cpus") == ["1"]
    driver.leaves_nothing()
