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


def test_word_count_of_one_s_own_folder(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "a.py").write_text("spam = spam + 1\n")
    (tmp_path / "tests" / "b.py").write_text("this is no Python (")
    printed = run("word_count.py", "--root", str(tmp_path), "--num-cpus", "1")
    assert "library: 1 files, 2 words, 1 different ones, 0 that are no Python" in printed
    assert "tests: 1 files, 4 words, 4 different ones, 1 that are no Python" in printed
    assert "both results are equal" in printed
