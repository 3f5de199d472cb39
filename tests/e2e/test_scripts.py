"""Programs as users run them: scripts with and without a guard, notebooks, pipes, Ctrl-C, exits."""

from __future__ import annotations

import os
import re
import signal
import sys
import textwrap

import pytest

from .support import ROOT

START = """
context = ray.init(num_cpus=2)
say("session", context.address_info["session_dir"])
"""


def ends_well(driver, *words):
    """It ended with 0, said ``words``, was silent on stderr and left nothing."""
    driver.succeeds()
    for word in words:
        assert driver.said(word), f"it never said {word!r}; stdout:\n{driver.out}"
    assert driver.err == ""
    driver.leaves_nothing()


# --- where functions come from ------------------------------------------------------------------

MAIN = """
import dataclasses, enum

class Colour(enum.Enum):
    RED = 1

@dataclasses.dataclass
class Point:
    x: int

class Trouble(Exception):
    def __init__(self, code, why):
        super().__init__(why)
        self.code = code

OFFSET = 10

def helper(x):
    return x + OFFSET

@ray.remote
def use(point):
    assert isinstance(point, Point)
    return Point(helper(point.x)), Colour.RED

@ray.remote
def fail():
    raise Trouble(7, "in main")

@ray.remote
class Keeper:
    def __init__(self):
        self.points = [Point(1)]

    def last(self):
        return self.points[-1]

def main():
    point, colour = ray.get(use.remote(Point(1)))
    assert type(point) is Point and point == Point(11)
    assert colour is Colour.RED
    assert ray.get(Keeper.remote().last.remote()) == Point(1)
    try:
        ray.get(fail.remote())
    except Trouble as error:
        assert error.code == 7
    say("ok")
"""


def test_functions_and_classes_of_main(drive):
    ends_well(drive(MAIN + "if __name__ == '__main__':\n" + textwrap.indent(START + "main()\n", "    ")), "ok")


@pytest.mark.parametrize("launcher", ["fork", "spawn"])
def test_a_script_without_a_guard(drive, launcher):
    driver = drive(MAIN + START + "main()\n", env={"MINRAY_LAUNCHER": launcher})
    ends_well(driver, "ok")
    assert len(driver.said("session")) == 1  # no worker ran the script again


def test_init_before_the_definitions(drive):
    ends_well(drive(START + MAIN + "main()\n"), "ok")


@pytest.mark.parametrize("launcher", ["fork", "spawn"])
def test_a_module_beside_the_script(drive, tmp_path, launcher):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "beside.py").write_text(
        "import minray as ray\n"
        "class Point:\n"
        "    def __init__(self, x): self.x = x\n"
        "def helper(x): return x * 2\n"
        "@ray.remote\n"
        "def remote_helper(x): return Point(helper(x))\n"
    )
    program = """
    import os, sys
    import minray as ray
    import beside
    context = ray.init(num_cpus=1)
    @ray.remote
    def use(x):
        return beside.helper(x)
    assert ray.get(use.remote(4)) == 8
    assert ray.get(beside.remote_helper.remote(5)).x == 10
    assert type(ray.get(beside.remote_helper.remote(5))) is beside.Point
    with open(os.environ["MINRAY_TEST_SAID"], "a") as file:
        file.write("ok\\n")
    """
    script = folder / "script.py"
    script.write_text(textwrap.dedent(program))
    # Run from another folder: it is the script's folder that counts.
    driver = drive("", command=[sys.executable, str(script)], env={"MINRAY_LAUNCHER": launcher})
    ends_well(driver, "ok")


def test_a_module_run_with_dash_m(drive, tmp_path):
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "run.py").write_text(
        "import os\nimport minray as ray\n"
        "@ray.remote\ndef f(x): return x + 1\n"
        "if __name__ == '__main__':\n"
        "    ray.init(num_cpus=1)\n"
        "    assert ray.get(f.remote(1)) == 2\n"
        "    open(os.environ['MINRAY_TEST_SAID'], 'a').write('ok\\n')\n"
    )
    driver = drive("", command=[sys.executable, "-m", "pack.run"], env={"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"})
    ends_well(driver, "ok")


def test_a_program_from_standard_input(drive, tmp_path):
    program = tmp_path / "program"
    program.write_text(
        "import os\nimport minray as ray\nray.init(num_cpus=1)\n"
        "f = ray.remote(lambda x: x + 1)\n"
        "assert ray.get(f.remote(1)) == 2\n"
        "open(os.environ['MINRAY_TEST_SAID'], 'a').write('ok\\n')\n"
    )
    with open(program, "rb") as stdin:
        driver = drive("", command=[sys.executable, "-"], stdin=stdin)
        ends_well(driver, "ok")


def test_the_interactive_interpreter(drive, tmp_path):
    lines = tmp_path / "lines"
    lines.write_text(
        "import os\nimport minray as ray\nx = ray.init(num_cpus=1)\n"
        "@ray.remote\ndef f(x):\n    return x + 1\n\n"
        "class Point:\n    pass\n\n"
        "g = ray.remote(lambda: Point())\n"
        "ok = ray.get(f.remote(1)) == 2 and type(ray.get(g.remote())) is Point\n"
        "n = open(os.environ['MINRAY_TEST_SAID'], 'a').write(f'ok {ok}\\n')\n"
    )
    with open(lines, "rb") as stdin:
        driver = drive("", command=[sys.executable, "-i", "-q"], stdin=stdin)
        driver.succeeds()
        assert driver.said("ok") == ["True"]
        driver.leaves_nothing()


def test_cells_of_a_notebook(drive):
    """Cells run by exec in one namespace called __main__, with sources in linecache, definitions repeated."""
    ends_well(
        drive(
            """
            import linecache, types
            main = sys.modules["__main__"]
            space = main.__dict__

            def cell(number, source):
                name = f"<ipython-input-{number}>"
                linecache.cache[name] = (len(source), None, source.splitlines(True), name)
                exec(compile(source, name, "exec"), space)

            cell(1, "import minray as ray\\ncontext = ray.init(num_cpus=1)")
            say("session", space["context"].address_info["session_dir"])
            cell(2, "class Point:\\n    def __init__(self, x):\\n        self.x = x\\n")
            cell(3, "@ray.remote\\ndef f(p):\\n    return Point(p.x + 1)\\n")
            cell(4, "a = ray.get(f.remote(Point(1)))")
            assert space["a"].x == 2 and type(space["a"]) is space["Point"]
            cell(5, "@ray.remote\\ndef f(p):\\n    return Point(p.x + 100)\\n")
            cell(6, "b = ray.get(f.remote(Point(1))).x")
            assert space["b"] == 101
            cell(7, "@ray.remote\\ndef broken():\\n    raise ValueError('cell seven')\\n")
            try:
                cell(8, "ray.get(broken.remote())")
            except ValueError as error:
                assert "cell seven" in str(error)
            say("ok")
            """
        ),
        "ok",
    )


def test_globals_of_main_are_those_of_the_first_call(drive):
    ends_well(
        drive(
            START
            + """
SETTING = "first"

@ray.remote
def read():
    return SETTING

assert ray.get(read.remote()) == "first"
SETTING = "second"
assert ray.get(read.remote()) == "first"
say("ok")
"""
        ),
        "ok",
    )


# --- prints -------------------------------------------------------------------------------------

SPEAK = (
    START
    + """
@ray.remote
def speak():
    print("a line of a task")
    print("a line of stderr", file=sys.stderr)
    return os.getpid()

@ray.remote
class Speaker:
    def speak(self):
        print("a line of an actor")
        return os.getpid()

say("task", ray.get(speak.remote()))
say("actor", ray.get(Speaker.remote().speak.remote()))
"""
)


def test_prints_arrive_with_name_and_pid(drive):
    driver = drive(SPEAK)
    driver.succeeds()
    (task,), (actor,) = driver.said("task"), driver.said("actor")
    assert f"(speak pid={task}) a line of a task\n" in driver.out
    assert f"(Speaker pid={actor}) a line of an actor\n" in driver.out
    assert f"(speak pid={task}) a line of stderr\n" in driver.err
    driver.leaves_nothing()


def test_no_print_is_lost_however_many(drive):
    driver = drive(
        START
        + """
@ray.remote
def speak(name):
    for i in range(20_000):
        print(f"{name}:{i}")

ray.get([speak.remote(name) for name in "ab"])
"""
    )
    driver.succeeds()
    for name in "ab":
        numbers = re.findall(rf"^\(speak pid=\d+\) {name}:(\d+)$", driver.out, re.MULTILINE)
        assert [int(number) for number in numbers] == list(range(20_000))
    driver.leaves_nothing()


def test_prints_of_a_worker_that_crashes_arrive(drive):
    driver = drive(
        START
        + """
@ray.remote(max_retries=0)
def crash():
    print("last words", flush=True)
    os._exit(1)

try:
    ray.get(crash.remote())
except ray.exceptions.WorkerCrashedError:
    say("ok")
"""
    )
    driver.succeeds()
    assert driver.said("ok")
    assert re.search(r"\(crash pid=\d+\) last words", driver.out)
    driver.leaves_nothing()


def test_prints_of_subprocesses_and_unfinished_lines(drive):
    driver = drive(
        START
        + """
@ray.remote
def run():
    import subprocess
    subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
    sys.stdout.write("no newline at the end")

ray.get(run.remote())
"""
    )
    driver.succeeds()
    assert re.search(r"^\(.*pid=\d+\) from a child$", driver.out, re.MULTILINE)
    assert "no newline at the end" in driver.out
    driver.leaves_nothing()


# --- pipes, signals, exits ----------------------------------------------------------------------


def test_a_script_in_a_pipe_ends(drive):
    """``script | cat`` ends only if nothing that lives on holds the pipe."""
    driver = drive(SPEAK, wrapper=["sh", "-c", '"$@" 2>&1 | cat', "sh"])
    driver.succeeds(limit=30)
    assert "a line of a task" in driver.out
    driver.leaves_nothing()


def test_a_reader_that_goes_away(drive):
    driver = drive(
        START + "ray.get(ray.remote(lambda: 1).remote())\nsay('ok')\nfor i in range(10_000): print(i)\n",
        wrapper=["sh", "-c", '"$@" 2>/dev/null | head -n 1', "sh"],
    )
    driver.succeeds(limit=30)
    driver.leaves_nothing()


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams(drive, closed):
    driver = drive(
        START + "assert ray.get(ray.remote(lambda: 1).remote()) == 1\nsay('ok')\n",
        wrapper=["sh", "-c", f'exec "$@" {closed}', "sh"],
    )
    driver.wait()
    assert driver.said("ok")
    driver.leaves_nothing()


CTRL_C = (
    START
    + """
@ray.remote
def hang():
    while True:
        time.sleep(0.01)

@ray.remote
def echo(x):
    return x

ray.get(echo.remote(0))
try:
    say("ready")
    ray.get([hang.remote() for _ in range(2)])
except KeyboardInterrupt:
    say("interrupted")
"""
)


def test_the_first_ctrl_c_interrupts_and_the_session_stays_usable(drive):
    driver = drive(CTRL_C + "assert ray.get(echo.remote(5), timeout=30) == 5\nsay('ok')\n")
    driver.await_word("ready")
    driver.process.send_signal(signal.SIGINT)
    ends_well(driver, "interrupted", "ok")


def test_the_second_ctrl_c_exits(drive):
    driver = drive(CTRL_C + "ray.get(hang.remote())\n")
    driver.await_word("ready")
    driver.process.send_signal(signal.SIGINT)
    driver.await_word("interrupted")
    driver.process.send_signal(signal.SIGINT)
    assert driver.wait(limit=10) != 0
    assert "KeyboardInterrupt" in driver.err
    driver.leaves_nothing()


def test_ctrl_c_of_a_terminal_reaches_the_whole_group(drive):
    """A terminal signals the foreground process group; workers and daemons must not be in it."""
    driver = drive(CTRL_C + "assert ray.get(echo.remote(5), timeout=30) == 5\nsay('ok')\n", start_new_session=True)
    driver.await_word("ready")
    os.killpg(driver.process.pid, signal.SIGINT)
    ends_well(driver, "interrupted", "ok")


@pytest.mark.parametrize("waits", ["ray.wait([hang.remote()])", "next(stream.remote())", "time.sleep(99)"])
def test_ctrl_c_in_other_waits(drive, waits):
    driver = drive(
        START
        + f"""
@ray.remote
def hang():
    time.sleep(999)

@ray.remote
def stream():
    time.sleep(999)
    yield 1

try:
    say("ready")
    {waits}
except KeyboardInterrupt:
    say("interrupted")
"""
    )
    driver.await_word("ready")
    driver.process.send_signal(signal.SIGINT)
    ends_well(driver, "interrupted")


def test_get_in_an_atexit_handler(drive):
    driver = drive(
        """
        import atexit

        @ray.remote
        def last():
            return "last"

        atexit.register(lambda: say("registered-before", ray.get(last.remote())))
        context = ray.init(num_cpus=1)
        say("session", context.address_info["session_dir"])
        atexit.register(lambda: say("registered-after", ray.get(last.remote())))
        """
    )
    driver.wait()
    assert driver.said("registered-after") == ["last"]
    driver.leaves_nothing()


def test_api_calls_in_del_at_the_end_of_the_interpreter(drive):
    driver = drive(
        START
        + """
class Holder:
    def __init__(self):
        self.ref = ray.put([1])

    def __del__(self):
        try:
            ray.get(self.ref)
        except Exception as error:
            say("error", type(error).__name__)
        say("deleted")

holder = Holder()
module_level_ref = ray.put(2)
actor = ray.remote(type("A", (), {"m": lambda self: 1})).remote()
"""
    )
    driver.succeeds(limit=20)
    driver.leaves_nothing()


def test_an_exception_ends_the_script_with_its_traceback(drive):
    driver = drive(START + "@ray.remote\ndef fail():\n    raise KeyError('the reason')\n\nray.get(fail.remote())\n")
    assert driver.wait() == 1
    assert "the reason" in driver.err
    assert "RayTaskError(KeyError)" in driver.err
    driver.leaves_nothing()


# --- fork and threads in the driver -------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


@needs_fork
@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "pass"])
def test_a_fork_of_the_driver_does_no_harm(drive, end):
    """The child runs atexit handlers and destructors of what it inherited; the session must not notice."""
    driver = drive(
        START
        + f"""
@ray.remote
def echo(x):
    return x

refs = [ray.put(i) for i in range(10)]
actor = ray.remote(type("A", (), {{"m": lambda self: 5}})).remote()
ray.get(actor.m.remote())
pid = os.fork()
if pid == 0:
    {end}
else:
    _, status = os.waitpid(pid, 0)
    assert status == 0
    assert ray.get(refs) == list(range(10))
    assert ray.get(actor.m.remote()) == 5
    assert ray.get([echo.remote(i) for i in range(10)]) == list(range(10))
    say("ok")
""",
        command=[sys.executable, "-W", "ignore", "driver.py"],
    )
    ends_well(driver, "ok")


@needs_fork
def test_a_multiprocessing_pool_of_the_driver(drive):
    driver = drive(
        START
        + """
import multiprocessing
ref = ray.put("mine")
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
assert ray.get(ref) == "mine"
say("ok")
""",
        command=[sys.executable, "-W", "ignore", "driver.py"],
    )
    ends_well(driver, "ok")


def test_init_in_a_thread(drive):
    driver = drive(
        """
        import threading

        def work():
            context = ray.init(num_cpus=1)
            say("session", context.address_info["session_dir"])
            assert ray.get(ray.remote(lambda: 3).remote()) == 3

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert ray.get(ray.put(1)) == 1
        say("ok")
        """
    )
    ends_well(driver, "ok")


def test_init_inside_a_running_event_loop(drive):
    driver = drive(
        """
        import asyncio

        async def main():
            context = ray.init(num_cpus=1)
            say("session", context.address_info["session_dir"])
            f = ray.remote(lambda x: x + 1)
            assert await f.remote(1) == 2
            assert await asyncio.gather(*[f.remote(i) for i in range(10)]) == list(range(1, 11))
            say("ok")

        asyncio.run(main())
        """
    )
    ends_well(driver, "ok")


# --- small promises -----------------------------------------------------------------------------


def test_import_loads_little(drive):
    driver = drive("for name in sorted(sys.modules): say('module', name)")
    driver.succeeds()
    loaded = set(driver.said("module"))
    for name in ("numpy", "cloudpickle", "sqlite3", "asyncio", "psutil", "minray.util.queue", "minray.node"):
        assert name not in loaded, name


def test_a_quiet_session_says_nothing(drive):
    driver = drive(START + "assert ray.get(ray.remote(lambda: 1).remote()) == 1\nsay('ok')\n")
    ends_well(driver, "ok")
    assert driver.out == ""


def test_an_infeasible_task_warns_at_once(drive):
    driver = drive(
        START
        + """
@ray.remote(num_cpus=99)
def huge():
    pass

try:
    ray.get(huge.remote())
except ray.exceptions.TaskUnschedulableError as error:
    say("error", str(error).replace("\\n", " "))
""",
        env={"MINRAY_INFEASIBLE_GRACE_S": "0.3"},
    )
    driver.succeeds()
    (text,) = driver.said("error")
    assert "99" in text
    assert "99" in driver.err
    driver.leaves_nothing()


def test_a_script_that_never_calls_shutdown_ends_at_once(drive):
    driver = drive(START + "say('at-end', time.monotonic())\n")
    ends_well(driver, "at-end")
