"""Settings: the only module of the package that reads the environment.

``Config.from_env()`` turns ``MINRAY_*`` variables and keyword overrides into one frozen value. The driver
makes it once and hands it, as built-in values (``to_dict``), to the daemon, the zygote and the workers, so
that every process of a session agrees. A setting's variable is its name in capitals: ``MINRAY_SPIN_US``.
Byte sizes may end in K, M, G or T (powers of 1024). Besides, the values of a few foreign variables that
say what the machine grants us (CUDA_VISIBLE_DEVICES, Slurm) are captured here.

Who else needs the environment asks this module: ``child_environ`` for a process to start, ``apply_env_vars``
for one that becomes a worker.

Invariants: a Config is valid from its construction on (a bad value is a ValueError that names the
variable and the value); unknown ``MINRAY_*`` names only warn, since a newer version may know them.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

PREFIX = "MINRAY_"
TEST_PREFIX = "MINRAY_TEST_"  # parameters of the test suite and of tox environments, not settings
KIB, MIB, GIB = 1024, 1024**2, 1024**3

_CHOICES: dict[str, tuple[str, ...]] = {
    "transport": ("auto", "unix", "tcp"),
    "launcher": ("auto", "fork", "spawn"),
    "segments": ("auto", "shm", "file"),
}
# Fields that must be greater than zero, and those that may also be zero.
_POSITIVE = (
    "inline_limit", "max_frame", "extent_size", "store_memory", "max_pipeline", "handshake_s",
    "worker_start_s", "log_credit", "max_workers_soft", "max_workers_hard", "heartbeat_s", "node_timeout_s",
    "gcs_answer_s", "memory_threshold", "memory_total", "spill_disk_share",
)  # fmt: skip
_NOT_NEGATIVE = (
    "spin_us", "store_full_grace_s", "infeasible_grace_s", "lease_idle_s", "worker_idle_s", "num_cpus",
    "shutdown_grace_s", "gcs_reconnect_s", "lineage_bytes",
)  # fmt: skip

# Files that each process of a session opens, wherever its working folder is.
_FILES = ("token_file", "tls_cert", "tls_key", "tls_ca")

# What other software says about this process's share of the machine: field → variables, first one wins.
_FOREIGN: dict[str, tuple[str, ...]] = {
    "cuda_visible_devices": ("CUDA_VISIBLE_DEVICES",),
    "slurm_cpus": ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"),
}

# Libraries that start a thread per core unless told otherwise, when they are loaded.
BLAS_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

# glibc gives freed memory back to the kernel so eagerly that buffers of 100 KB cost page faults each time:
# measured, pickling one takes 67 µs instead of 2.4. For our own processes; others ignore these.
MALLOC_VARIABLES = {"MALLOC_TRIM_THRESHOLD_": "67108864", "MALLOC_MMAP_THRESHOLD_": "4194304"}


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of one session. Sizes in bytes, times in seconds unless the name says otherwise."""

    # --- wire
    transport: str = "auto"  # "unix" or "tcp"; auto: unix where it exists and the path is short enough
    max_frame: int = 256 * MIB  # a peer that announces a longer frame is cut off
    spin_us: int = 50  # how long a waiter polls before it sleeps; 0: never
    handshake_s: float = 10.0  # a connection that has not authenticated by then is closed
    token: str | None = field(default=None, repr=False)  # the cluster's shared secret; None: made per session
    token_file: str | None = None  # the same in a file of mode 0600
    worker_ports: str | None = None  # where workers and drivers listen for other machines: "20000-20999"; None: any
    tls_cert: str | None = None  # TLS for TCP connections, all three or none: this machine's certificate,
    tls_key: str | None = None  # its key,
    tls_ca: str | None = None  # and the authority whose certificates are let in (files, PEM)
    # --- tasks
    inline_limit: int = 100 * KIB  # larger values live in shared memory
    max_pipeline: int = 64  # tasks in flight per leased worker
    lease_idle_s: float = 0.2  # how long a lease stays warm after its queue is empty
    lineage_bytes: int = 256 * MIB  # what a process keeps of finished tasks, so that lost results can be made again
    infeasible_grace_s: float = 10.0  # time for a node to join that could satisfy a request
    # --- workers
    launcher: str = "auto"  # "fork" (from a zygote) or "spawn"
    max_workers_soft: int | None = None  # None: derived from the number of CPUs
    max_workers_hard: int | None = None
    worker_idle_s: float = 60.0  # idle workers above the number of CPUs end after that
    worker_start_s: float = 60.0  # a worker that has not registered by then counts as dead
    prestart: bool = True  # start num_cpus workers as soon as a driver comes
    num_cpus: int | None = None  # overrides the detected number of CPUs
    # --- object store
    segments: str = "auto"  # "shm" or "file" (mapped files in the session's folder)
    store_memory: int | None = None  # None: 30 % of the memory, at most what /dev/shm has free
    store_full_grace_s: float = 10.0  # how long a full store waits for frees when nothing can be moved to disk
    spill: bool = True  # objects that memory has no room for go to disk
    spill_dirs: str | None = None  # folders for that, with ':' between (Windows: ';'); None: the session's folder
    spill_disk_share: float = 0.95  # a disk counts as full when so much of it is used
    extent_size: int = 64 * MIB  # what a process borrows at once
    # --- memory
    memory_threshold: float = 0.95  # of the memory in use: then a worker is ended (see node.memory); 1: never
    memory_total: int | None = None  # bytes for the workers of a node; None: what the machine has, whoever uses it
    # --- cluster (the head's settings count; a session of one node has no heartbeat)
    heartbeat_s: float = 1.0  # how often a node reports when nothing changes
    node_timeout_s: float = 10.0  # a node that has not reported for so long counts as dead
    gcs_reconnect_s: float = 60.0  # how long a node that has lost the head looks for it; then it ends
    gcs_answer_s: float = 60.0  # how long a program waits for the head's answer to a question
    # --- session
    temp_dir: str | None = None  # None: a folder per user in the system's temporary folder
    address: str | None = None  # of the cluster that init() without an address joins
    namespace: str | None = None  # default for named actors
    log_to_driver: bool = True
    log_credit: int = 8 * MIB  # bytes of workers' lines on their way to a driver
    shutdown_grace_s: float = 1.0  # what processes get to end by themselves
    debug: bool = False  # check invariants at run time, log more
    # --- captured from foreign variables
    cuda_visible_devices: str | None = None
    slurm_cpus: int | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not _has_type(value, str(f.type)):
                raise ValueError(_complaint(f.name, value, f"must be {f.type}"))
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(_complaint(name, value, f"must be one of {', '.join(allowed)}"))
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(_complaint(name, value, "must be greater than 0"))
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(_complaint(name, value, "must not be negative"))
        if self.memory_threshold > 1:
            text = "must be a share of the memory: greater than 0, at most 1 (1: never end a worker)"
            raise ValueError(_complaint("memory_threshold", self.memory_threshold, text))
        if self.spill_disk_share > 1:
            raise ValueError(_complaint("spill_disk_share", self.spill_disk_share, "is a share, at most 1"))
        self._check_security()
        if self.worker_ports is not None:
            low, dash, high = self.worker_ports.partition("-")
            if not (dash and low.isdecimal() and high.isdecimal() and 0 < int(low) <= int(high) < 65536):
                text = "must be two ports in 1..65535, the lower one first, like 20000-20999"
                raise ValueError(_complaint("worker_ports", self.worker_ports, text))
        soft, hard = self.max_workers_soft, self.max_workers_hard
        if soft is not None and hard is not None and soft > hard:
            raise ValueError(_complaint("max_workers_soft", soft, f"must be at most max_workers_hard={hard}"))

    def _check_security(self) -> None:
        if self.token == "":
            raise ValueError("MINRAY_TOKEN (setting 'token') is empty: unset it, or set it to the cluster's token")
        if self.token is not None and self.token_file is not None:
            raise ValueError(
                f"MINRAY_TOKEN and MINRAY_TOKEN_FILE={self.token_file!r} are both set: unset one of them"
            )
        given = {f"MINRAY_{name.upper()}": getattr(self, name) for name in ("tls_cert", "tls_key", "tls_ca")}
        missing = [name for name, value in given.items() if value is None]
        if 0 < len(missing) < len(given):
            said = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
            raise ValueError(f"TLS needs three files: {' and '.join(missing)} is missing beside {said}")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Config:
        """Settings of this process: defaults, then the environment, then ``overrides``.

        Overrides of None are ignored. Raises ValueError for an unknown override or a bad value.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = dict(_foreign(environ))
        for variable in sorted(environ):
            if not variable.startswith(PREFIX) or variable.startswith(TEST_PREFIX):
                continue
            name = variable[len(PREFIX) :].lower()
            parse = _PARSERS.get(name)
            if parse is None:
                # The caller's line is in init(), far from whoever set the variable: no better stack level.
                warnings.warn(
                    f"{variable} is not a setting of minray; known ones: {', '.join(setting_names())}",
                    RuntimeWarning,
                    stacklevel=2,
                )
                continue
            try:
                values[name] = parse(environ[variable])
            except ValueError as error:
                raise ValueError(_complaint(name, environ[variable], str(error))) from error
        for name, value in overrides.items():
            if name not in _PARSERS and name not in _FOREIGN:
                known = ", ".join(setting_names())
                raise ValueError(f"unknown setting {name}={value!r}; known ones: {known}")
            if value is not None:
                values[name] = value
        for name, other in (("token", "token_file"), ("token_file", "token")):
            if overrides.get(name) is not None and overrides.get(other) is None:
                values.pop(other, None)  # said by the caller: it beats the environment in either form
        return cls(**_with_absolute_files(values))

    def replace(self, **changes: Any) -> Config:
        """A copy with some settings changed."""
        return replace(self, **_with_absolute_files(changes))

    @property
    def tls(self) -> tuple[str, str, str] | None:
        """The files of TLS: this machine's certificate, its key, the authority. None: there is no TLS."""
        if self.tls_cert is None or self.tls_key is None or self.tls_ca is None:
            return None
        return (self.tls_cert, self.tls_key, self.tls_ca)

    def with_tls(self, files: tuple[str, str, str] | None) -> Config:
        """A copy with these files, in the order of ``tls``, or without TLS."""
        cert, key, ca = files or (None, None, None)
        return self.replace(tls_cert=cert, tls_key=key, tls_ca=ca)

    def to_dict(self) -> dict[str, Any]:
        """Built-in values only, for another process's ``from_dict``."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The Config that ``to_dict`` was called on."""
        return cls(**values)

    def temp_root(self) -> str:
        """The folder of all sessions of this user; the caller makes it (mode 0700)."""
        if self.temp_dir is not None:
            return os.path.abspath(self.temp_dir)
        import tempfile  # it loads random and every compression module: not in each process

        getuid = getattr(os, "getuid", None)
        user = str(getuid()) if getuid is not None else os.environ.get("USERNAME", "user")
        return os.path.join(tempfile.gettempdir(), f"minray-{user}")


def _with_absolute_files(values: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(values)
    for name in _FILES:
        if isinstance(found.get(name), str):
            found[name] = os.path.abspath(os.path.expanduser(found[name]))
    return found


def setting_names() -> list[str]:
    """The environment variables that minray knows."""
    return [PREFIX + name.upper() for name in _PARSERS]


def child_environ(changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """This process's environment with ``changes`` (None removes), for a process to be started."""
    environ = dict(os.environ)
    for name, value in (changes or {}).items():
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value
    return environ


def apply_env_vars(changes: Mapping[str, str | None]) -> None:
    """Change this process's own environment (None removes): a worker on its way to its job."""
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def blas_thread_vars(threads: int, said: Mapping[str, str]) -> dict[str, str]:
    """Environment that gives BLAS and OpenMP ``threads`` threads, at least 1.

    ``said``: what the user has set stays; OMP_NUM_THREADS counts for those that the user has not set, too.
    """
    default = said.get("OMP_NUM_THREADS") or str(max(1, threads))
    return {name: said.get(name) or default for name in BLAS_THREAD_VARIABLES}


def _foreign(environ: Mapping[str, str]) -> Iterable[tuple[str, Any]]:
    for name, variables in _FOREIGN.items():
        for variable in variables:
            raw = environ.get(variable)
            if raw is None:
                continue
            if name == "cuda_visible_devices":
                yield name, raw
                break
            if raw.strip().isdigit() and int(raw) > 0:
                yield name, int(raw)
                break


def _complaint(name: str, value: Any, problem: str) -> str:
    shown = "another" if name == "token" else repr(value)
    return f"{PREFIX}{name.upper()} (setting {name!r}) {problem}, got {shown}"


def _has_type(value: Any, annotation: str) -> bool:
    for part in annotation.split(" | "):
        if part == "None" and value is None:
            return True
        if part == "bool" and isinstance(value, bool):
            return True
        if part == "str" and isinstance(value, str):
            return True
        if part == "int" and isinstance(value, int) and not isinstance(value, bool):
            return True
        if part == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
            return True
    return False


def _parse_bool(text: str) -> bool:
    low = text.strip().lower()
    if low in ("1", "true", "yes", "on"):
        return True
    if low in ("0", "false", "no", "off"):
        return False
    raise ValueError("must be 1 or 0")


def _parse_int(text: str) -> int:
    body = text.strip()
    unit = body[-1:].upper()
    factor = {"K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB}.get(unit, 1)
    if factor != 1:
        body = body[:-1]
    try:
        return int(body) * factor
    except ValueError:
        raise ValueError("must be a whole number, for sizes with an optional K, M, G or T") from None


def _parse_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be a number") from None


def _parser_of(annotation: str) -> Callable[[str], Any]:
    parsers: dict[str, Callable[[str], Any]] = {
        "bool": _parse_bool,
        "int": _parse_int,
        "float": _parse_float,
        "str": str,
    }
    return parsers[annotation.split(" | ")[0]]


_PARSERS: dict[str, Callable[[str], Any]] = {
    f.name: _parser_of(str(f.type)) for f in fields(Config) if f.name not in _FOREIGN
}
