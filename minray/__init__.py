"""minray: Ray's programming model in pure Python. ``import minray as ray``.

This file holds the public names and nothing else. They are loaded when first used (PEP 562), so that
importing costs milliseconds and daemons load only what they need.
"""

from __future__ import annotations

import atexit as _atexit
import importlib as _importlib
import sys as _sys
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from minray import actor, api, exceptions, runtime_context, util
    from minray._base.ids import (
        ActorClassID,
        ActorID,
        ClusterID,
        FunctionID,
        JobID,
        NodeID,
        PlacementGroupID,
        TaskID,
        UniqueID,
        WorkerID,
    )
    from minray.actor import ActorClass, ActorHandle
    from minray.api import cancel, get, get_actor, kill, put, wait
    from minray.cluster_state import (
        available_resources,
        cluster_resources,
        error_info,
        get_gpu_ids,
        nodes,
        timeline,
    )
    from minray.decorators import method, remote
    from minray.logging_config import LoggingConfig
    from minray.object_ref import DynamicObjectRefGenerator, ObjectID, ObjectRef, ObjectRefGenerator
    from minray.remote_function import RemoteFunction
    from minray.runtime_context import get_runtime_context
    from minray.session import RayContext, init, is_initialized, shutdown

# name → the module that defines it
_HOME = {
    "ActorClass": "actor",
    "ActorClassID": "_base.ids",
    "ActorHandle": "actor",
    "ActorID": "_base.ids",
    "ClusterID": "_base.ids",
    "DynamicObjectRefGenerator": "object_ref",
    "FunctionID": "_base.ids",
    "JobID": "_base.ids",
    "LoggingConfig": "logging_config",
    "NodeID": "_base.ids",
    "ObjectID": "object_ref",
    "ObjectRef": "object_ref",
    "ObjectRefGenerator": "object_ref",
    "PlacementGroupID": "_base.ids",
    "RayContext": "session",
    "RemoteFunction": "remote_function",
    "TaskID": "_base.ids",
    "UniqueID": "_base.ids",
    "WorkerID": "_base.ids",
    "available_resources": "cluster_state",
    "cancel": "api",
    "cluster_resources": "cluster_state",
    "error_info": "cluster_state",
    "get": "api",
    "get_actor": "api",
    "get_gpu_ids": "cluster_state",
    "get_runtime_context": "runtime_context",
    "init": "session",
    "is_initialized": "session",
    "kill": "api",
    "method": "decorators",
    "nodes": "cluster_state",
    "put": "api",
    "remote": "decorators",
    "shutdown": "session",
    "timeline": "cluster_state",
    "wait": "api",
}
_MODULES = ("actor", "api", "exceptions", "runtime_context", "util")

__all__ = [
    "ActorClass",
    "ActorClassID",
    "ActorHandle",
    "ActorID",
    "ClusterID",
    "DynamicObjectRefGenerator",
    "FunctionID",
    "JobID",
    "LoggingConfig",
    "NodeID",
    "ObjectID",
    "ObjectRef",
    "ObjectRefGenerator",
    "PlacementGroupID",
    "RayContext",
    "RemoteFunction",
    "TaskID",
    "UniqueID",
    "WorkerID",
    "__version__",
    "actor",
    "api",
    "available_resources",
    "cancel",
    "cluster_resources",
    "error_info",
    "exceptions",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "method",
    "nodes",
    "put",
    "remote",
    "runtime_context",
    "shutdown",
    "timeline",
    "util",
    "wait",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        # Whoever uses a name may need a session: its module installs the hook that starts one.
        _importlib.import_module("minray.session")
        value: object = getattr(_importlib.import_module(f"minray.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = _importlib.import_module(f"minray.{name}")
    else:
        raise AttributeError(f"module 'minray' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _end_session() -> None:
    session = _sys.modules.get("minray.session")
    if session is not None:
        session.shutdown(True)


# Registered as early as can be, because handlers run in reverse order: a user's own may still call get().
_atexit.register(_end_session)
