"""The one slot that holds this process's runtime.

``init()`` (or a worker's main) puts a runtime in, ``shutdown()`` takes it out; everything public asks here.
The runtime's type is ``minray.worker.contract.Runtime``, which this room must not import, hence ``Any``.
The public face installs the hook by which ``ensure()`` starts a local runtime when there is none.

A forked child of user code inherits memory but must not speak for its parent: there the slot is empty,
``ensure()`` says what happened, and the parent's runtime is told by its ``after_fork_child()``, if it has
one, so that it closes descriptors and disables its hooks. The zygote forks with an empty slot, so its
children are not affected.

Invariant: at most one runtime per process, and none of the parent's in a forked child.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

_runtime: Any = None
_auto_init: Callable[[], Any] | None = None
_inherited: Any = None  # in a forked child: the parent's runtime, kept so that it is not destroyed here
_fork_hook_installed = False


def get() -> Any:
    """This process's runtime, or None."""
    return _runtime


def set(runtime: Any) -> None:
    """Put ``runtime`` (or None) into the slot."""
    global _runtime, _fork_hook_installed
    if runtime is not None and not _fork_hook_installed and hasattr(os, "register_at_fork"):
        _fork_hook_installed = True
        os.register_at_fork(after_in_child=_after_fork_in_child)
    _runtime = runtime


def set_auto_init(hook: Callable[[], Any] | None) -> None:
    """Install what ``ensure()`` calls when the slot is empty. It must fill the slot."""
    global _auto_init
    _auto_init = hook


def ensure() -> Any:
    """This process's runtime; started by the auto-init hook if there is none.

    Raises:
        RuntimeError: in a forked child of a process that had a runtime, or when nothing can start one.
    """
    if _runtime is not None:
        return _runtime
    check_not_forked()
    if _auto_init is None:
        raise RuntimeError("minray is not initialized in this process: call minray.init() first")
    _auto_init()
    if _runtime is None:
        raise RuntimeError("starting minray by itself failed: call minray.init() to see why")
    return _runtime


def is_forked_child() -> bool:
    """Whether this process was forked from one whose runtime was running, and has none of its own."""
    return _inherited is not None and _runtime is None


def check_not_forked() -> None:
    """Raise RuntimeError in a forked child of a process that had a runtime."""
    if is_forked_child():
        raise RuntimeError(
            f"process {os.getpid()} was forked from a process that uses minray: the runtime does not survive "
            "a fork. Use a task or an actor instead of os.fork(), or multiprocessing's 'spawn' start method"
        )


def _after_fork_in_child() -> None:
    global _runtime, _inherited
    if _runtime is None:
        return
    _inherited, _runtime = _runtime, None
    tell = getattr(_inherited, "after_fork_child", None)
    if tell is not None:
        tell()
