"""Starts a process of this package under any interpreter, with nothing installed there.

The interpreter that has Ray need not have minray, and minray's site-packages must not leak into it. So the
folder is loaded by path, as the top-level package ``microbenchmark``; then ``main(arguments, started)`` of
one of its modules runs. ``started`` is read before anything else is imported: probes count from there.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .row import Api

FOLDER = Path(__file__).parent

_BOOT = """\
import time
started = time.perf_counter()
import sys
sys.path[:] = [entry for entry in sys.path if entry]
import importlib.util
folder, module = sys.argv[1:3]
spec = importlib.util.spec_from_file_location(
    "microbenchmark", folder + "/__init__.py", submodule_search_locations=[folder])
package = importlib.util.module_from_spec(spec)
sys.modules["microbenchmark"] = package
spec.loader.exec_module(package)
import importlib
importlib.import_module("microbenchmark." + module).main(sys.argv[3:], started)
"""


def command(python: str, module: str, *arguments: str) -> list[str]:
    """The command line that runs ``module.main(arguments, started)`` under ``python``."""
    return [python, "-c", _BOOT, str(FOLDER), module, *arguments]


def import_under_test(name: str, root: str) -> Api:
    """Import the module that is measured. ``root`` is where it lies, if the interpreter can't know."""
    if root and root not in sys.path:
        sys.path.insert(0, root)
    module: Any = importlib.import_module(name)
    api: Api = module
    return api
