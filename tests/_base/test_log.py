"""Logging that loads nothing until there is something to say."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from minray._base import log

REPOSITORY = str(Path(__file__).resolve().parent.parent.parent)


def test_records_reach_the_logger_minray(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "minray")
    log.info("%s", 1)
    log.warning("two of %s", 3)
    log.error("three")
    try:
        raise KeyError("lost")
    except KeyError:
        log.exception("four")
    assert [record.getMessage() for record in caplog.records] == ["1", "two of 3", "three", "four"]
    assert {record.name for record in caplog.records} == {"minray"}
    assert "KeyError: 'lost'" in caplog.text


def test_a_process_that_never_fails_does_not_load_it() -> None:
    code = (
        "import sys; sys.path.append(sys.argv[1])\nfrom minray._base import log\nlog.info('unheard')\n"
        "print('logging' in sys.modules)\nlog.warning('%s!', 'heard')"
    )
    command = [sys.executable, "-S", "-c", code, REPOSITORY]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False"] and found.stderr.strip() == "heard!"
