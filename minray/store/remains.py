"""The end of a session's files, for whoever survives it or finds it dead: segments, spilled objects, the folder.

Called by node (and its zygote and reaper), by worker.launch and worker.session_folder, by daemon. Everything here
is idempotent and never raises for what is gone already. Loads little: every start of a driver has it.
"""

from __future__ import annotations

import os

from minray.store import segments, spill_folders


def remove_session(folder: str) -> None:
    """Unlink the segments that the journal of a session names and what it has spilled, then remove its folder."""
    try:
        segments.sweep(folder)
    except (OSError, ValueError):  # no journal that can be read: nothing more can be known
        pass
    for spilled in spill_folders.listed(folder):
        if not os.path.islink(spilled):
            remove_tree(spilled)
    remove_tree(folder)


def remove_tree(folder: str) -> None:
    """``shutil.rmtree`` without shutil, which loads every compression module. Ignores what others remove."""
    for _ in range(3):  # a dying process may still put a file there
        if _remove_once(folder):
            return


def _remove_once(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            listed = list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    for entry in listed:
        try:
            if entry.is_dir(follow_symlinks=False):
                _remove_once(entry.path)
            else:
                os.unlink(entry.path)
        except OSError:
            continue
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
