"""What ``init()`` was told, checked and complete: one frozen value from the public face to a runtime.

Made by ``InitOptions.from_keywords`` in ``init()``; read by ``worker.connect`` (a real session) and
``worker.local`` (local mode). Keywords of Ray that mean nothing here (ports, dashboards, metrics) are
accepted and forgotten; unknown ones are a RuntimeError, as in Ray.

Invariant: an InitOptions is valid; ``config`` already holds what its keywords say about settings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from minray._base import option_checks as check
from minray._base.config import Config
from minray._base.resources import quantity_to_units, to_units

MIN_STORE_MEMORY = 1024 * 1024
OWN_LABELS = "ray.io/"

# Keywords that Ray takes and that have nothing to do here. ``_``-names are what programs pass anyway.
IGNORED = frozenset(
    {
        "include_dashboard", "dashboard_host", "dashboard_port", "configure_logging", "logging_level",
        "logging_format", "_metrics_export_port", "_enable_object_reconstruction",
        "_redis_max_memory", "_redis_username", "_redis_password", "_driver_object_store_memory",
        "_plasma_directory", "_skip_env_hook", "_cluster_id",
        "_tracing_startup_hook",
        "enable_resource_isolation", "system_reserved_cpu", "system_reserved_memory", "storage",
    }
)  # fmt: skip
_OF_A_CLUSTER = (
    "num_cpus", "num_gpus", "resources", "labels", "object_store_memory", "_system_config", "_node_name",
    "_memory", "object_spilling_directory", "_object_spilling_directory",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class InitOptions:
    """Quantities in public units (CPUs, bytes); None: not said."""

    config: Config
    address: str | None = None  # of a running cluster, "auto", or None: config.address, latest, else local
    local: bool = False  # address="local": always a new session of this machine
    offers: tuple[str, ...] = ()  # the keywords that say what nodes are to offer, or how to be
    num_cpus: float | None = None
    num_gpus: float | None = None
    memory: int | None = None
    object_store_memory: int | None = None
    resources: dict[str, float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    namespace: str | None = None  # None: anonymous, one per job
    env_vars: dict[str, str] = field(default_factory=dict)  # of the job's runtime_env
    metadata: dict[str, str] = field(default_factory=dict)
    node_name: str | None = None
    node_ip_address: str | None = None
    node_id: str | None = None  # of the node through which to join (hexadecimal), where several are on this machine
    log_to_driver: bool = True
    local_mode: bool = False

    @classmethod
    def from_keywords(cls, address: str | None, given: Mapping[str, Any]) -> InitOptions:
        """Check what ``init(address, **given)`` says.

        Raises:
            RuntimeError: an unknown keyword.
            TypeError, ValueError: a wrong type or value; resources with the address of a running cluster.
            NotImplementedError: a runtime_env with more than env_vars.
        """
        if address is not None and not isinstance(address, str):
            raise TypeError(f"init(address=…) must be a str or None, got {address!r}")
        strangers = set(given) - IGNORED - _KEYWORDS
        if strangers:
            raise RuntimeError(f"Unknown keyword argument(s): {', '.join(sorted(strangers))}")
        said = {name: value for name, value in given.items() if value is not None}
        job = _job_config(said.pop("job_config", None))
        system = said.get("_system_config") or {}
        settings = {name: value for name, value in system.items() if name in _SETTINGS and name != "spill_dirs"}
        folders = said.get("object_spilling_directory", said.get("_object_spilling_directory"))
        config = Config.from_env(
            temp_dir=said.get("_temp_dir"),
            store_memory=_store_memory(said.get("object_store_memory")),
            spill_dirs=_spill_dirs(folders, system),
            log_to_driver=said.get("log_to_driver"),
            **settings,
        )
        where = config.address or address if address in (None, "auto") else address
        offers = tuple(name for name in _OF_A_CLUSTER if said.get(name))
        if where not in (None, "local") and offers and not said.get("local_mode"):
            raise excludes_resources(
                str(where), offers, " Leave them out: `minray start` is told what its node offers. Or say "
                'init(address="local", …): a session of its own'
            )  # fmt: skip
        env = check.runtime_env("runtime_env", said.get("runtime_env", job.get("runtime_env")))
        return cls(
            config=config,
            address=None if where == "local" else where,
            local=where == "local",
            offers=offers,
            num_cpus=_amount("num_cpus", said.get("num_cpus"), float),
            num_gpus=_amount("num_gpus", said.get("num_gpus"), float),
            memory=_amount("_memory", said.get("_memory"), int),
            object_store_memory=config.store_memory,
            resources=_resources(said.get("resources")),
            labels=_labels(said.get("labels")),
            namespace=check_namespace(said.get("namespace", job.get("ray_namespace", config.namespace))),
            env_vars=env or {},
            metadata=_str_dict("metadata", job.get("metadata")),
            node_name=said.get("_node_name"),
            node_ip_address=said.get("_node_ip_address"),
            node_id=said.get("_node_id"),
            log_to_driver=config.log_to_driver,
            local_mode=bool(said.get("local_mode", False)),
        )


_KEYWORDS = frozenset(
    {
        "num_cpus", "num_gpus", "resources", "labels", "object_store_memory", "local_mode", "job_config",
        "log_to_driver", "namespace", "runtime_env", "_node_ip_address", "_memory", "_temp_dir",
        "_system_config", "_node_name", "_node_id", "object_spilling_directory",
        "_object_spilling_directory",
    }
)  # fmt: skip
_SETTINGS = frozenset(f.name for f in fields(Config))


def check_namespace(namespace: Any) -> str | None:
    """A namespace is None or a non-empty str: TypeError, ValueError."""
    if namespace is None:
        return None
    if not isinstance(namespace, str):
        raise TypeError(f"namespace must be None or a string, got {namespace!r}")
    if not namespace:
        raise ValueError('"" is not a valid namespace: pass None to not specify a namespace')
    return namespace


def excludes_resources(address: str, offers: Sequence[str], way_out: str) -> ValueError:
    """The error for a driver that joins a cluster and says what nodes are to offer."""
    return ValueError(
        f"When connecting to an existing cluster ({address!r}), num_cpus and num_gpus must not be "
        f"provided, nor anything else that its nodes decide: got {', '.join(offers)}.{way_out}"
    )


def _amount(name: str, value: Any, kind: type) -> Any:
    if value is None:
        return None
    if isinstance(value, (bool, str, bytes)):
        check.wrong_type(name, value, "a number or None")
    quantity_to_units(name, value)
    return kind(value) if kind is int or value != int(value) else int(value)


def _store_memory(value: Any) -> Any:
    size = _amount("object_store_memory", value, int)
    if size is not None and size < MIN_STORE_MEMORY:
        raise ValueError(
            f"object_store_memory is given in bytes and must be at least {MIN_STORE_MEMORY}, got {value!r}"
        )
    return size


def _spill_dirs(given: Any, system: Mapping[str, Any]) -> str | None:
    """The setting ``spill_dirs``: of the keyword, of ``_system_config``, or of Ray's older JSON there."""
    if given is not None:
        if not isinstance(given, (str, os.PathLike)) or not os.fspath(given):
            raise TypeError(f"object_spilling_directory must be the path of a folder, got {given!r}")
        return str(os.fspath(given))
    if "object_spilling_config" not in system:
        return system.get("spill_dirs")
    text = system["object_spilling_config"]
    try:
        said = json.loads(text)
        folders = said["params"]["directory_path"] if said["type"] == "filesystem" else None
    except (TypeError, ValueError, KeyError):
        folders = None
    folders = [folders] if isinstance(folders, str) else folders
    if not isinstance(folders, list) or not folders or not all(isinstance(one, str) and one for one in folders):
        raise ValueError(
            f"_system_config={{'object_spilling_config': {text!r}}} is understood only as JSON like"
            ' {"type": "filesystem", "params": {"directory_path": ["/a", "/b"]}}'
        )
    return os.pathsep.join(folders)


def _resources(given: Any) -> dict[str, float]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        check.wrong_type("resources", given, "a dict of resource name to amount")
    to_units(given, custom=True)
    return dict(given)


def _labels(given: Any) -> dict[str, str]:
    labels = _str_dict("labels", given)
    for key in labels:
        if key.startswith(OWN_LABELS):
            raise ValueError(f"labels={given!r}: names that begin with {OWN_LABELS} are minray's own; rename {key!r}")
    return labels


def _str_dict(name: str, given: Any) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(
        isinstance(key, str) and isinstance(value, str) for key, value in given.items()
    ):
        raise TypeError(f"{name} must be a dict of str to str, got {given!r}")
    return dict(given)


def _job_config(given: Any) -> dict[str, Any]:
    """A job_config is a dict or an object with attributes runtime_env, ray_namespace, metadata."""
    if given is None:
        return {}
    names = ("runtime_env", "ray_namespace", "metadata")
    if isinstance(given, Mapping):
        return {name: given[name] for name in names if given.get(name) is not None}
    return {name: getattr(given, name) for name in names if getattr(given, name, None) is not None}
