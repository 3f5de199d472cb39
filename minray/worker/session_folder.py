"""Session folders: one per daemon (a head or a node), in one folder per user, swept when their processes are dead.

    <temp root>/                     minray-<uid> in the system's temporary folder, 0700; or temp_dir
      s_<prefix>/                    0700; prefix: ten random characters, also of its segments' names
        session.info                 who lives here (see ``SessionInfo``)
        token                        the cluster's shared secret, 0600: a MINRAY_TOKEN_FILE for other machines
        sock                         where the daemon listens, if it listens on a unix socket
        logs/ …                      what node, zygote and workers put there

Called by ``launch`` (make, record, sweep) and by whoever looks for running sessions (``find_sessions``). A
folder appears under its name only with its record inside, so that another start's sweep never meets a young
one.

Invariants: nothing outside the temp root is touched, HOME least of all; a folder is removed only if every
recorded process is dead, judged by pid and start time on the machine (and in the container) that wrote it.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from dataclasses import dataclass

from minray._base.config import Config
from minray._base.process import is_alive, own_identity
from minray.exceptions import RaySystemError
from minray.store.remains import remove_session

INFO, TOKEN, SOCKET, LOGS = "session.info", "token", "sock", "logs"
_NEW = ".new-"
_MAGIC = "minray-session 1"
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_ROLES = ("driver", "starter", "daemon", "zygote")
_YOUNG_S = 60.0  # an unfinished folder may belong to a start in progress for that long


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """The record of one session. A life is ``(pid, start_time)``; None: there is no such process."""

    folder: str
    endpoint: str
    place: str  # machine, boot and pid namespace in which the pids mean something
    created: float  # seconds since the epoch
    driver: tuple[int, float] | None = None  # whose end ends the session; None: it stays until it is told
    starter: tuple[int, float] | None = None  # who makes one that stays: until the daemon is recorded, it is its life
    daemon: tuple[int, float] | None = None
    zygote: tuple[int, float] | None = None
    gcs: str = ""  # the cluster that it belongs to: where other machines reach its head; "": to none
    is_head: bool = True
    node_id: str = ""  # hexadecimal
    worker_ports: str | None = None  # see Config: drivers of the machine keep to it, too
    tls: tuple[str, str, str] | None = None  # its files (see Config.tls), which all processes of the machine use
    head_folder: str = ""  # of a head that others may join: see worker.head_folder

    @property
    def prefix(self) -> str:
        return os.path.basename(self.folder).removeprefix("s_")

    def lives(self) -> tuple[tuple[int, float], ...]:
        """The recorded processes."""
        return tuple(life for life in (self.driver, self.starter, self.daemon, self.zygote) if life is not None)

    def token(self) -> bytes:
        """The session's secret."""
        with open(self.token_path, "rb") as file:
            return file.read()

    @property
    def token_path(self) -> str:
        """The file with the secret."""
        return os.path.join(self.folder, TOKEN)

    def write(self, folder: str | None = None) -> None:
        """Put the record into its folder (or ``folder``, before that has its name), whole or not at all."""
        lines = [_MAGIC, f"endpoint {self.endpoint}", f"place {self.place}", f"created {self.created!r}"]
        lines += [f"gcs {self.gcs}"] * bool(self.gcs) + [f"role {'head' if self.is_head else 'node'}"]
        lines.append(f"node_id {self.node_id}")
        lines += [f"worker_ports {self.worker_ports}"] * bool(self.worker_ports)
        lines += [f"head_folder {self.head_folder}"] * bool(self.head_folder)
        if self.tls is not None:
            lines.append(f"tls {' '.join(os.fsencode(path).hex() for path in self.tls)}")  # paths may hold anything
        for role in _ROLES:
            life = getattr(self, role)
            if life is not None:
                lines.append(f"{role} {life[0]} {life[1]!r}")
        path = os.path.join(folder or self.folder, INFO)
        write_private(path + ".new", "\n".join(lines) + "\n")
        os.replace(path + ".new", path)

    @classmethod
    def read(cls, folder: str) -> SessionInfo | None:
        """The record in ``folder``; None if there is none or it is of another version."""
        try:
            with open(os.path.join(folder, INFO), encoding="utf-8", errors="surrogateescape") as file:
                lines = file.read().splitlines()
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
        if not lines or lines[0] != _MAGIC:
            return None
        said = dict(line.split(" ", 1) for line in lines[1:] if " " in line)
        lives: dict[str, tuple[int, float]] = {}
        for role in _ROLES:
            if role in said:
                pid, started = said[role].split()
                lives[role] = (int(pid), float(started))
        files = [os.fsdecode(bytes.fromhex(path)) for path in said.get("tls", "").split()]
        return cls(
            folder,
            said.get("endpoint", ""),
            said.get("place", ""),
            float(said["created"]),
            gcs=said.get("gcs", ""),
            is_head=said.get("role") != "node",
            node_id=said.get("node_id", ""),
            worker_ports=said.get("worker_ports"),
            tls=(files[0], files[1], files[2]) if len(files) == 3 else None,
            head_folder=said.get("head_folder", ""),
            **lives,
        )


def write_private(path: str, text: str) -> None:
    """Write a file that only this user can read."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)


def this_place() -> str:
    """Where pids of this process mean something: host, boot, pid namespace."""
    boot = space = ""
    if sys.platform.startswith("linux"):
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
                boot = file.read().strip()
            space = os.readlink("/proc/self/ns/pid")
        except OSError:  # a /proc that shows less: then the host's name has to do
            boot = space = ""
    host = os.uname().nodename.replace("/", "-") if hasattr(os, "uname") else ""
    return f"{host}/{boot}/{space}"


def user_folder(config: Config) -> str:
    """The folder of this user's sessions, made if need be. Raises RaySystemError with the fix."""
    root = config.temp_root()
    try:
        os.makedirs(root, 0o700, exist_ok=True)
        found = os.lstat(root) if config.temp_dir is None else os.stat(root)
    except OSError as error:
        raise RaySystemError(f"cannot make the folder {root} for sessions: {error}. {_FIX}") from error
    if config.temp_dir is None and hasattr(os, "geteuid"):
        _must_be_ours(root, found)
    if not os.access(root, os.W_OK | os.X_OK):
        raise RaySystemError(f"the folder {root} for sessions cannot be written to. {_FIX}")
    return root


_FIX = "Set MINRAY_TEMP_DIR (or init(_temp_dir=…)) to a folder of yours"


def _must_be_ours(root: str, found: os.stat_result) -> None:
    """The folder's name can be guessed, so somebody else may have made it."""
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        what = "is not a folder" if not stat.S_ISDIR(found.st_mode) else f"belongs to user {found.st_uid}"
        raise RaySystemError(f"the folder {root} for your sessions {what}: it will not be used. {_FIX}")
    if found.st_mode & 0o077:
        os.chmod(root, 0o700)


def make_session(root: str, driver: tuple[int, float] | None, token: bytes) -> SessionInfo:
    """A new session's folder, with its secret and its first record. Raises RaySystemError."""
    prefix = "".join(_ALPHABET[byte & 31] for byte in os.urandom(10))
    young = os.path.join(root, _NEW + prefix)
    starter = own_identity() if driver is None else None
    info = SessionInfo(os.path.join(root, "s_" + prefix), "", this_place(), time.time(), driver, starter)
    try:
        os.mkdir(young, 0o700)
        os.mkdir(os.path.join(young, LOGS), 0o700)
        write_private(os.path.join(young, TOKEN), token.decode("utf-8", "surrogateescape"))
        info.write(young)
        os.rename(young, info.folder)
    except OSError as error:
        remove_session(young)
        raise RaySystemError(f"cannot make a session's folder in {root}: {error}. {_FIX}") from error
    return info


def sweep_dead(root: str, limit: int = 20) -> list[str]:
    """Remove up to ``limit`` folders of sessions of which no process lives, with their segments.

    Two starts may sweep the same one at the same time. Whatever cannot be removed stays for the next start.
    """
    place = this_place()
    removed: list[str] = []
    for name in sorted(os.listdir(root)):
        if len(removed) == limit:
            break
        folder = os.path.join(root, name)
        if not name.startswith((_NEW, "s_")) or not is_ours(folder):
            continue
        if name.startswith(_NEW):
            dead = _age(folder) > _YOUNG_S
        else:
            info = SessionInfo.read(folder)
            dead = is_dead(info.place, place, info.lives()) if info is not None else _age(folder) > _YOUNG_S
        if dead:
            remove_session(folder)
            removed.append(folder)
    return removed


def is_ours(folder: str) -> bool:
    """A root that was named by hand may have sessions of several users."""
    try:
        return not hasattr(os, "geteuid") or os.lstat(folder).st_uid == os.geteuid()
    except OSError:
        return False


def _age(folder: str) -> float:
    try:
        return time.time() - os.stat(folder).st_mtime
    except FileNotFoundError:
        return 0.0


def is_dead(recorded: str, place: str, lives: tuple[tuple[int, float], ...]) -> bool:
    """Whether none of these lives, that were recorded at one place, is there any more, as far as can be seen here."""
    if recorded == place:
        return not any(is_alive(*life) for life in lives)
    # Another container on this machine may be alive; the same host after a reboot is not.
    host, boot, _ = recorded.split("/", 2)
    here, this_boot, _ = place.split("/", 2)
    return host == here and boot != this_boot


def find_sessions(config: Config) -> list[SessionInfo]:
    """The sessions of this user that live on this machine, newest first."""
    root = config.temp_root()
    try:
        names = os.listdir(root)
    except OSError:
        return []
    place = this_place()
    found = []
    for name in names:
        folder = os.path.join(root, name)
        info = SessionInfo.read(folder) if name.startswith("s_") and is_ours(folder) else None
        if info is not None and info.place == place and info.daemon is not None and is_alive(*info.daemon):
            found.append(info)
    return sorted(found, key=lambda info: info.created, reverse=True)
