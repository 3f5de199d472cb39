"""The ``python -c`` programs of our child processes: each finds the very minray that its parent runs.

A child's own path may lead to another copy (one in site-packages, while the parent runs a checkout): then a
class of ours would not be the same class on both sides. So the copy is named, and imported before anything
else. Its folder then stands at the end of the path: what lies beside it must not hide the standard library.
"""

from __future__ import annotations

_CODE = """# minray {name}
import importlib, sys, typing
folders = sys.argv[{folders_at}:]
sys.path[:] = [p for p in sys.path if p]
sys.path.insert(0, folders[0])
import minray
del sys.path[0]
sys.path += [p for p in folders if p not in sys.path]
{body}
"""


def child_code(name: str, body: str, *, folders_at: int) -> str:
    """The program. ``name`` is for humans who look at their processes.

    Args:
        name: what the process is.
        body: its statements.
        folders_at: from which argument on the folders to find modules in are listed, minray's first.
    """
    return _CODE.format(name=name, body=body, folders_at=folders_at)
