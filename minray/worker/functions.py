"""Functions and classes as bytes: what a job ships once per definition.

The code of remote functions and actor classes, and the lists of exceptions to retry on, are pickled here
and loaded in workers. A function goes by value unless a worker finds the very same one by importing its
module (a decorated function never does: its name belongs to the RemoteFunction), with the globals and
closures that it uses, as they are at that time.

Invariant: references captured in a function leave out of band (``ObjectRef.__reduce__`` pins them): nobody
counts a function's copies.
"""

from __future__ import annotations

import pickle
import warnings
from typing import Any

from minray.worker.pickling import full_pickler_class

WARN_BYTES = 10 * 1000 * 1000
MAX_BYTES = 100 * 1000 * 1000


def dumps_function(obj: Any, name: str = "") -> bytes:
    """Pickle a function or class; ``name`` is what messages call it.

    Raises TypeError if something that it captures cannot be pickled, with the path to it; ValueError
    above 100 MB. Warns above 10 MB.
    """
    name = name or getattr(obj, "__name__", "") or repr(obj)
    chunks: list[bytes] = []
    try:
        full_pickler_class()(None, chunks).dump(obj)
    except RecursionError:
        raise
    except Exception as error:
        from minray.worker.unpicklable import explain_unpicklable

        raise TypeError(f"cannot pickle {explain_unpicklable(obj, name)}: {error}") from error
    blob = b"".join(chunks)
    if len(blob) > WARN_BYTES:
        size = f"{name} is {len(blob) / 1e6:.0f} MB when pickled"
        advice = "does it capture a large object? Store that once by put() and pass the reference"
        if len(blob) > MAX_BYTES:
            raise ValueError(f"{size}, more than the {MAX_BYTES / 1e6:.0f} MB allowed: {advice}")
        warnings.warn(f"{size}: {advice}", UserWarning, stacklevel=3)
    return blob


def loads_function(blob: Any) -> Any:
    """What ``dumps_function`` pickled. Raises whatever importing or unpickling raises."""
    return pickle.loads(blob)
