"""Which line of the user's code called us.

Warnings about options, and later advice (``get`` in a loop, a large argument …), must point at the user's
file and line, however deep inside the package they are found. A frame counts as the user's if its file is
outside the package's folder.

Called by whatever warns at an API call. Invariant: never raises for want of a user frame (there is none
in a worker's own threads); it then names the outermost frame.
"""

from __future__ import annotations

import os
import sys
import warnings

PACKAGE_DIR = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_INSIDE = PACKAGE_DIR + os.sep


def user_stack_level() -> int:
    """The ``stacklevel`` by which a warning raised in the calling function points at the user's line."""
    frame = sys._getframe(1)
    level = 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame = frame.f_back
        level += 1
    return level


def user_location() -> tuple[str, int]:
    """File and line of the innermost frame outside the package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, pointing at the user's line."""
    warnings.warn(message, category, stacklevel=user_stack_level())
