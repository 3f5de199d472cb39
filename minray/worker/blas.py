"""How many threads BLAS may use in this worker: as many as it has CPUs, unless the user has said otherwise.

The zygote has loaded numpy with one thread, or it could not fork safely; a worker that is entitled to more
tells the loaded library so, and the environment, for what is loaded later. The libraries are found among the
files mapped into this process; where those cannot be listed (not Linux), the environment alone has to do.

Called by worker.service when the node says what the worker has.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from minray._base.config import apply_env_vars, blas_thread_vars

_MAPS = "/proc/self/maps"
_LIBRARIES = {  # part of the file's name → the variable that it follows
    "openblas": "OPENBLAS_NUM_THREADS",
    "mkl_rt": "MKL_NUM_THREADS",
    "libblis": "BLIS_NUM_THREADS",
}
_SETTERS = (  # what builds of these call it: void (int), or for BLIS void (long)
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
    "MKL_Set_Num_Threads",
    "bli_thread_set_num_threads",
)


class BlasThreads:
    """The limits of one process. ``said``: the environment that the user has set."""

    def __init__(self, said: Mapping[str, str]) -> None:
        self._said = said
        self._now = blas_thread_vars(1, {})  # as the zygote has loaded them

    def entitle(self, cpus: float) -> None:
        """The worker has ``cpus`` from now on: so many threads, at least 1, where the user has not said."""
        wanted = blas_thread_vars(int(cpus), self._said)
        if wanted == self._now:
            return
        before, self._now = self._now, wanted
        apply_env_vars(wanted)
        for path, variable in loaded_libraries().items():
            threads = wanted[variable].split(",")[0]
            if wanted[variable] != before[variable] and threads.isdigit():
                _set_threads(path, int(threads))


def loaded_libraries() -> dict[str, str]:
    """The BLAS libraries mapped into this process, and the variable that each follows."""
    try:
        with open(_MAPS, encoding="utf-8", errors="surrogateescape") as maps:
            paths = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if "/" in line}
    except OSError:
        return {}
    return {
        path: variable
        for path in sorted(paths)
        for part, variable in _LIBRARIES.items()
        if part in os.path.basename(path)
    }


def _set_threads(path: str, threads: int) -> None:
    """Tell one library, if it has a setter that we know."""
    import ctypes  # here: few workers need it

    try:
        library = ctypes.CDLL(path, mode=getattr(os, "RTLD_NOLOAD", 0) | os.RTLD_NOW)
    except OSError:  # it was unloaded, or its file was replaced
        return
    for name in _SETTERS:
        setter = getattr(library, name, None)
        if setter is not None:
            setter(ctypes.c_long(threads))
            return
