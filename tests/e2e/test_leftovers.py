"""Nothing is left behind: SIGKILL of each kind of process under load, and every way a driver can end.

Within five seconds no process of the session, no segment and no folder remains. ``MINRAY_TEST_KILLS`` says
how often each kind is killed (the kill environment of tox asks for a hundred); moments are random but seeded
by the round, so that a failing round can be repeated: the parameter is the seed.
"""

from __future__ import annotations

import os
import random
import signal
import time

import psutil
import pytest

KILLS = int(os.environ.get("MINRAY_TEST_KILLS", "2"))

LOAD = """
import numpy as np
context = ray.init(num_cpus=2, log_to_driver=False)
say("session", context.address_info["session_dir"])

@ray.remote(max_retries=-1)
def small(i):
    return i

@ray.remote(max_retries=-1)
def large(i):
    return np.full(200_000, i)

@ray.remote(max_retries=-1)
def nested(i):
    return sum(ray.get([small.remote(j) for j in range(i)]))

@ray.remote(max_restarts=-1, max_task_retries=-1, num_cpus=0)
class Adder:
    def add(self, array, n):
        return float(array[0]) + n

adders = [Adder.remote() for _ in range(2)]

def turn(i):
    kept = ray.put(np.ones(300_000))
    refs = [small.remote(j) for j in range(20)] + [large.remote(j) for j in range(3)]
    refs += [nested.remote(4), *[adder.add.remote(kept, i) for adder in adders]]
    assert len(ray.get(refs, timeout=50)) == 26

turn(0)
say("ready")
"""

FOREVER = (
    LOAD
    + """
i = 0
while True:
    i += 1
    turn(i)
    say("turn")
"""
)

UNTIL_ERROR = (
    LOAD
    + """
try:
    while True:
        turn(1)
        say("turn")
except Exception as error:
    say("error", type(error).__name__, time.monotonic())
ray.shutdown()
say("shut")
"""
)

SOME_TURNS = (
    LOAD
    + """
for i in range(1, 8):
    turn(i)
    say("turn")
say("done")
"""
)


def moment(*seed, most=0.3):
    """Sleep to a moment that only the seed decides: the moment is what is tested."""
    time.sleep(random.Random(repr(seed)).uniform(0, most))


def kill(process):
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        pass


# --- SIGKILL ------------------------------------------------------------------------------------


@pytest.mark.kill
@pytest.mark.parametrize("seed", range(KILLS))
def test_killing_the_driver_under_load(drive, seed):
    driver = drive(FOREVER)
    driver.await_word("ready")
    assert driver.processes("daemon")
    moment("driver", seed)
    driver.process.kill()
    driver.wait()
    driver.leaves_nothing()


@pytest.mark.kill
@pytest.mark.parametrize("seed", range(KILLS))
def test_killing_the_driver_while_it_starts(drive, seed):
    driver = drive(FOREVER)
    moment("start", seed, most=0.6)
    driver.process.kill()
    driver.wait()
    driver.leaves_nothing()


@pytest.mark.kill
@pytest.mark.parametrize("seed", range(KILLS))
@pytest.mark.parametrize("kind", ["daemon", "zygote"])
def test_killing_a_control_process(drive, kind, seed):
    driver = drive(UNTIL_ERROR)
    driver.await_word("ready")
    victims = driver.processes(kind)
    assert len(victims) == 1, f"expected one {kind}: {victims}"
    moment(kind, seed)
    kill(victims[0])
    driver.await_word("error", limit=10)  # every get ends
    driver.await_word("shut", limit=10)
    driver.succeeds(limit=10)
    driver.leaves_nothing()


@pytest.mark.kill
@pytest.mark.parametrize("seed", range(KILLS))
def test_killing_workers_ends_no_session(drive, seed):
    driver = drive(SOME_TURNS)
    driver.await_word("ready")
    dice = random.Random(seed)
    for _ in range(3):
        workers = driver.processes("worker")
        if workers:
            kill(dice.choice(workers))
        moment("worker", seed, _, most=0.1)
    driver.await_word("done")
    driver.succeeds(limit=10)
    driver.leaves_nothing()


@pytest.mark.kill
@pytest.mark.parametrize("seed", range(KILLS))
def test_killing_driver_and_zygote_at_once(drive, seed):
    driver = drive(FOREVER)
    driver.await_word("ready")
    zygotes = driver.processes("zygote")
    moment("both", seed)
    driver.process.kill()
    for zygote in zygotes:
        kill(zygote)
    driver.wait()
    driver.leaves_nothing()


@pytest.mark.kill
@pytest.mark.parametrize("seed", range(KILLS))
def test_killing_driver_and_daemon_at_once(drive, seed):
    driver = drive(FOREVER)
    driver.await_word("ready")
    daemons = driver.processes("daemon")
    moment("both", seed)
    driver.process.kill()
    for daemon in daemons:
        kill(daemon)
    driver.wait()
    driver.leaves_nothing()


@pytest.mark.kill
@pytest.mark.parametrize("settings", [{"MINRAY_LAUNCHER": "spawn"}, {"MINRAY_SEGMENTS": "file"}], ids=str)
def test_killing_the_driver_without_fork_or_shared_memory(drive, settings):
    driver = drive(FOREVER, env=settings)
    driver.await_word("ready")
    driver.process.kill()
    driver.wait()
    driver.leaves_nothing()


# --- other ends of a driver ---------------------------------------------------------------------

ENDS = {
    "shutdown": ("ray.shutdown()", 0),
    "normal exit": ("", 0),
    "an exception": ("raise ValueError('the end')", 1),
    "sys.exit": ("sys.exit(3)", 3),
    "os._exit": ("os._exit(4)", 4),
    "shutdown in a thread": (
        "import threading\nt = threading.Thread(target=ray.shutdown)\nt.start()\nt.join()",
        0,
    ),
    "unfinished tasks": ("refs = [large.remote(i) for i in range(100)]", 0),
    "a daemon thread in get": (
        "import threading\n"
        "@ray.remote\ndef hang():\n    time.sleep(999)\n"
        "threading.Thread(target=lambda: ray.get(hang.remote()), daemon=True).start()",
        0,
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_every_end_of_a_driver(drive, end):
    text, code = ENDS[end]
    driver = drive(LOAD + text)
    assert driver.wait() == code, driver.err
    driver.leaves_nothing()
    if code == 0:
        assert driver.err == ""  # a clean exit is silent


LATE = """
import atexit, threading
go, threads = threading.Event(), []
def late():
    go.set()
    for thread in threads:
        thread.join(20)
        if thread.is_alive():
            print(thread.name, "hangs")
atexit.register(late)  # before minray's own: it runs when that has ended the session
import minray as ray
from minray._base import current
ray.init(num_cpus=1)
rt, ref, sent = current.get(), ray.put(1), ray.remote(lambda: 1)
ray.get(sent.remote())
calls = [
    lambda: ray.put(1), lambda: ray.get(ref), lambda: sent.remote(), lambda: ray.wait([ref]),
    lambda: rt.put(1), lambda: rt.get_actor("nobody", None),
]
def one(call):
    go.wait()
    call()
    print("it went on")
threads += [threading.Thread(target=one, args=(call,), daemon=True) for call in calls]
for thread in threads:
    thread.start()
"""


def test_daemon_threads_that_call_when_all_is_over_end_in_silence(drive):
    driver = drive(LATE, prelude=False)
    assert driver.wait() == 0, driver.err
    assert (driver.err, driver.out) == ("", "")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"])
def test_signals_that_end_a_driver(drive, name):
    driver = drive(FOREVER)
    driver.await_word("ready")
    driver.process.send_signal(getattr(signal, name))
    assert driver.wait(limit=10) != 0
    driver.leaves_nothing()


def test_a_stopped_driver_keeps_its_session(drive):
    driver = drive(FOREVER)
    driver.await_word("ready")
    driver.process.send_signal(signal.SIGSTOP)
    daemons = driver.processes("daemon")
    time.sleep(0.2)
    assert daemons
    assert all(daemon.is_running() for daemon in daemons)
    turns = len(driver.said("turn"))
    driver.process.send_signal(signal.SIGCONT)
    driver.await_word("turn", count=turns + 2)
    driver.process.kill()
    driver.wait()
    driver.leaves_nothing()


# --- sessions beside each other -----------------------------------------------------------------


def test_two_sessions_do_not_touch_each_other(drive):
    first, second = drive(FOREVER), drive(FOREVER)
    first.await_word("ready")
    second.await_word("ready")
    assert first.said("session") != second.said("session")
    first.process.kill()
    first.wait()
    first.leaves_nothing()
    turns = len(second.said("turn"))
    second.await_word("turn", count=turns + 2)
    second.process.kill()
    second.wait()
    second.leaves_nothing()


def test_two_sessions_in_one_folder(drive, tmp_path):
    shared = {"MINRAY_TEMP_DIR": str(tmp_path / "shared")}
    first, second = drive(FOREVER, env=shared), drive(FOREVER, env=shared)
    first.await_word("ready")
    second.await_word("ready")
    first.process.kill()
    first.wait()
    first.leaves_nothing()
    turns = len(second.said("turn"))
    second.await_word("turn", count=turns + 2)
    assert [path.name for path in (tmp_path / "shared").glob("s_*")] == [os.path.basename(second.said("session")[0])]
    second.process.kill()
    second.wait()
    second.leaves_nothing()


def test_one_driver_after_the_other(drive):
    driver = drive(
        """
        for _ in range(3):
            context = ray.init(num_cpus=1)
            say("session", context.address_info["session_dir"])
            assert ray.get(ray.put(1)) == 1
            ray.shutdown()
        """
    )
    driver.succeeds()
    assert len(set(driver.said("session"))) == 3
    driver.leaves_nothing()


# --- what users' tasks start --------------------------------------------------------------------


def test_children_of_tasks_go_with_the_session(drive):
    driver = drive(
        """
        import subprocess
        context = ray.init(num_cpus=1)
        say("session", context.address_info["session_dir"])

        @ray.remote
        def start():
            return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(999)"]).pid

        say("child", ray.get(start.remote()))
        time.sleep(999)
        """
    )
    child = psutil.Process(int(driver.await_word("child")))
    assert child.is_running()
    driver.process.kill()
    driver.wait()
    driver.leaves_nothing()


def test_a_users_own_session_of_processes_is_spared(drive):
    driver = drive(
        """
        import subprocess
        context = ray.init(num_cpus=1)
        say("session", context.address_info["session_dir"])

        @ray.remote
        def start():
            command = [sys.executable, "-c", "import time; time.sleep(999)"]
            return subprocess.Popen(command, start_new_session=True).pid

        say("child", ray.get(start.remote()))
        """
    )
    child = psutil.Process(int(driver.await_word("child")))
    driver.succeeds()
    prefixes = {os.path.basename(path).removeprefix("s_") for path in driver.said("session")}
    deadline = time.monotonic() + 5
    while any(str(child.pid) not in left for left in driver.remains(prefixes)):
        assert time.monotonic() < deadline, driver.remains(prefixes)
        time.sleep(0.02)
    assert child.is_running()
    child.kill()


def test_a_crashed_session_is_swept_by_the_next_start(drive, tmp_path):
    """Everything at once is killed, so that nobody is left to clear up: the next init does it."""
    shared = {"MINRAY_TEMP_DIR": str(tmp_path / "shared")}
    first = drive(FOREVER, env=shared)
    first.await_word("ready")
    everyone = [*first.processes(), psutil.Process(first.process.pid)]
    for process in everyone:
        process.suspend()  # or one of them clears up before its own turn comes
    for process in everyone:
        kill(process)
    first.wait()
    second = drive(SOME_TURNS, env=shared)
    second.succeeds()
    second.leaves_nothing()
    first.leaves_nothing()
    assert list((tmp_path / "shared").glob("s_*")) == []


def test_what_a_task_wrote_before_one_of_its_results_could_not_be_sent_is_freed(drive):
    """Nobody will ever hear of the first result, nor of the references inside it."""
    driver = drive("""
import threading
import numpy as np
from minray._base import current
ray.init(num_cpus=1)

@ray.remote
class Maker:
    @ray.method(num_returns=2)
    def half(self):
        large = np.ones(2**20)
        return [ray.put(large), large], threading.Lock()  # a lock cannot be pickled

maker = Maker.remote()
for _ in range(20):
    for ref in maker.half.remote():
        try:
            ray.get(ref)
        except TypeError as error:
            assert "lock" in str(error)
        else:
            raise AssertionError("a lock was pickled")
rt = current.get()
stats = lambda: rt.request(rt.node, "stats", (), 10)["store"]
while stats()["objects"]:
    time.sleep(0.01)
assert stats()["reserved"] < 100 * 2**20, stats()  # of 320 MiB in all
say("end")
""")
    driver.await_word("end", limit=60.0)
    driver.succeeds()
