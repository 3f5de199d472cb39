"""Every example runs as a program of its own and says what it should; none is missing here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"

# file → its arguments, small enough for a test; what has to be in its output, in this order
EXPECTED: dict[str, tuple[list[str], list[str]]] = {
    "hello.py": ([], ["hello Ada", "hello Grace", "hello Barbara", "hello Katherine"]),
    "actors.py": (
        [],
        [
            "balance: 200",
            "refused: ValueError: there are only 200",
            "after withdrawing 50: 150",
            "squares: [0, 1, 4, 9, 16, 25, 36, 49]",
        ],
    ),
    "streaming.py": (
        [],
        [
            "first: 1 second: 3",
            "the others sum up to 999996",
            "24 of the odd numbers below 100 are prime",
            "after [0, 10, 20] came: RuntimeError: the source ran dry",
        ],
    ),
    "big_arrays.py": (
        ["--megabytes", "8"],
        ["right: True", "writeable: False", "read-only, a copy is not", "doubled by a task: True"],
    ),
    "map_reduce.py": (
        ["--nodes", "3", "--limit", "30"],
        [
            "30 files", "12 map and 6 reduce tasks on 3 nodes with 6 CPUs", "functions and classes",
            "pieces from other nodes", "times as fast", "results are equal",
        ],
    ),
    "parameter_server.py": (
        ["--nodes", "2", "--rounds", "20", "--rows", "1024", "--hidden", "32"],
        [
            "2 nodes with 4 CPUs", "sync: ", "after   20 rounds", "rows/s", "async: ", "after   20 rounds", "rows/s",
            "learned: True",
        ],
    ),
    "word_count.py": (
        ["--limit", "40", "--num-cpus", "2"],
        ["counting 40 files", "40 of 40 files", "words of the library", "times as fast", "results are equal"],
    ),
}


def run(name: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_example(name: str) -> None:
    arguments, expected = EXPECTED[name]
    printed = run(name, *arguments)
    position = 0
    for text in expected:
        position = printed.find(text, position)
        assert position >= 0, f"{text!r} is missing or out of order in:\n{printed}"


def test_no_example_is_untested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", ["map_reduce.py", "parameter_server.py", "word_count.py", "big_arrays.py"])
def test_an_example_with_options_explains_them(name: str) -> None:
    printed = run(name, "--help")
    lines = [line.split() for line in printed.splitlines() if line.startswith("  -")]
    assert len(lines) > 1 and all(len(words) > 1 for words in lines), printed


def test_map_reduce_of_several_nodes_has_the_answer_of_one(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("def hammer(): pass\ndef saw(): pass\n")
    (tmp_path / "a.py").write_text("import tools\ntools.hammer()\n")
    (tmp_path / "b.py").write_text("import tools as t\nt.hammer(), t.hammer()\n")
    (tmp_path / "c.py").write_text("from tools import hammer\nclass Unused: pass\n")
    (tmp_path / "broken.py").write_text("this is no Python (")
    answers = []
    for where in (["--nodes", "2", "--maps", "5", "--reduces", "3"], ["--reduces", "1"]):
        printed = run("map_reduce.py", "--root", str(tmp_path), *where)
        assert "both results are equal" in printed
        answers.append([line for line in printed.splitlines() if "module" in line])
    assert answers[0] == answers[1]
    assert "3 functions and classes, 2 of them used by no other module" in answers[0][0]
    assert answers[0][1].split() == ["tools.hammer", "by", "3", "modules"]


def test_in_step_a_network_learns_the_same_on_every_cluster() -> None:
    common = ["--mode", "sync", "--rounds", "10", "--rows", "512", "--hidden", "16", "--cpus-per-worker", "0.25"]
    learned = [
        [line for line in run("parameter_server.py", *common, *where).splitlines() if "right" in line]
        for where in (["--nodes", "2"], [])
    ]
    assert learned[0] == learned[1] and len(learned[0]) == 6


def test_word_count_of_one_s_own_folder(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "a.py").write_text("spam = spam + 1\n")
    (tmp_path / "tests" / "b.py").write_text("this is no Python (")
    printed = run("word_count.py", "--root", str(tmp_path), "--num-cpus", "1")
    assert "library: 1 files, 2 words, 1 different ones, 0 that are no Python" in printed
    assert "tests: 1 files, 4 words, 4 different ones, 1 that are no Python" in printed
    assert "both results are equal" in printed
