"""The command line itself: version, help, unknown commands."""

from __future__ import annotations

import subprocess
import sys

import pytest

import minray
from minray.cli.main import COMMANDS, main


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"minray {minray.__version__}\n"


def test_help_lists_what_is_built_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    printed = capsys.readouterr().out
    assert set(COMMANDS) == {"microbenchmark", "start", "stop", "status", "health-check"}
    assert all(name in printed for name in COMMANDS)


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["dance"])
    assert ended.value.code == 2
    assert "dance" in capsys.readouterr().err


def test_the_module_runs_as_a_program_without_loading_the_runtime() -> None:
    code = (
        "import sys, minray.cli.main as m; status = m.main(['microbenchmark', '--list']);"
        "print(status, 'numpy' in sys.modules, 'minray.session' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False False"
    assert "tasks_sync" in done.stdout
