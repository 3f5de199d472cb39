"""For all tests: sessions in a folder of this run's own, and nothing may be left behind (see leaks.py)."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

from tests.leaks import PREFIX, nothing_is_left, pytest_addoption

__all__ = ["nothing_is_left", "pytest_addoption"]

if "MINRAY_TEMP_DIR" not in os.environ:  # runs beside each other, of one user, do not see each other's sessions
    os.environ["MINRAY_TEMP_DIR"] = tempfile.mkdtemp(prefix=PREFIX)
    atexit.register(shutil.rmtree, os.environ["MINRAY_TEMP_DIR"], ignore_errors=True)
