"""Documentation is part of the program: its code blocks run, its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def programs() -> list[tuple[str, str]]:
    return [
        (f"{page.name}-{i}", code)
        for page in PAGES
        for i, code in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")), 1)
    ]


@pytest.mark.parametrize(("name", "code"), programs(), ids=[name for name, _ in programs()])
def test_a_program_in_the_docs_runs(name: str, code: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout, "a program in the docs shows something"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    missing = [
        target
        for target in LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not missing, f"{page.name} links to what is not there: {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_tests_that_are_named_are_there(page: Path) -> None:
    named = set(re.findall(r"`(tests/[a-z0-9_/.]*)", page.read_text(encoding="utf-8")))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_each_page_of_docs_opens_with_a_drawing() -> None:
    for page in sorted((ROOT / "docs").glob("*.md")):
        head = page.read_text(encoding="utf-8").splitlines()[:6]
        assert any(line.startswith(("```", "|")) for line in head), f"{page.name} opens without a drawing or table"


def test_the_readme_has_its_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for mark in ("<!-- command: run -->", "<!-- command: test -->"):
        assert text.count(mark) == 1, f"README.md needs exactly one {mark}"
    run = text.split("<!-- command: run -->")[1].split("```")[1]
    (example,) = re.findall(r"examples/\w+\.py", run)
    assert (ROOT / example).is_file()
