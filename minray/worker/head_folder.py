"""What outlives a head that is killed: one folder per head of a cluster, beside the folders of its sessions.

    <temp root>/
      h_<prefix>/            0700
        head.info            where its cluster is reached, and whose life it is (see ``HeadRecord``)
        token                the cluster's secret, 0600
        gcs.sqlite …         the tables of the GCS (see ``gcs.tables``)
      s_<prefix>/            the session of the head's process: gone with it

Made by ``launch`` for a head that other nodes may join, and removed when that ends in good order. What a killed one
leaves is taken up only by whoever asks for it (``minray start --head --resume``, ``Cluster.restart_head``): a new
head never looks here. What nobody has asked for is swept after ``KEPT_S``, or when the program is gone whose
``Cluster`` it was.

Invariant: the folder of a head that lives is never touched by others.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace

from minray._base.config import Config
from minray._base.process import is_alive
from minray.exceptions import RaySystemError
from minray.store.remains import remove_tree
from minray.worker.session_folder import TOKEN, SessionInfo, is_dead, is_ours, this_place, write_private

INFO, TABLES = "head.info", "gcs.sqlite"
KEPT_S = 24 * 3600.0
YOUNG_S = 60.0  # a folder without a record may belong to a start in progress
_MAGIC = "minray-head 1"
_PREFIX = "h_"


@dataclass(frozen=True, slots=True)
class HeadRecord:
    """One head, running or killed. A life is ``(pid, start_time)``."""

    folder: str
    host: str  # where other machines reach it: a numeric address
    port: int
    place: str  # see SessionInfo
    started: float  # seconds since the epoch
    daemon: tuple[int, float]
    keeper: tuple[int, float] | None = None  # what it leaves if it is killed goes with this one; None: stays a while
    tls: tuple[str, str, str] | None = None  # the files that it used, see Config.tls

    @property
    def address(self) -> str:
        """host:port, as users write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def tables(self) -> str:
        """The file of the GCS."""
        return tables_in(self.folder)

    def token(self) -> bytes:
        """The cluster's secret."""
        with open(os.path.join(self.folder, TOKEN), "rb") as file:
            return file.read()

    def write(self) -> None:
        """Put the record into its folder, whole or not at all."""
        lines = [_MAGIC, f"host {self.host}", f"port {self.port}", f"place {self.place}", f"started {self.started!r}"]
        lines.append(f"daemon {self.daemon[0]} {self.daemon[1]!r}")
        if self.keeper is not None:
            lines.append(f"keeper {self.keeper[0]} {self.keeper[1]!r}")
        if self.tls is not None:
            lines.append(f"tls {' '.join(os.fsencode(path).hex() for path in self.tls)}")
        path = os.path.join(self.folder, INFO)
        write_private(path + ".new", "\n".join(lines) + "\n")
        os.replace(path + ".new", path)

    @classmethod
    def read(cls, folder: str) -> HeadRecord | None:
        """The record in ``folder``; None if there is none, or none that this version can read."""
        try:
            with open(os.path.join(folder, INFO), encoding="utf-8", errors="surrogateescape") as file:
                lines = file.read().splitlines()
            if not lines or lines[0] != _MAGIC:
                return None
            said = dict(line.split(" ", 1) for line in lines[1:])
            lives = {role: _life(said[role]) for role in ("daemon", "keeper") if role in said}
            files = [os.fsdecode(bytes.fromhex(path)) for path in said.get("tls", "").split()]
            return cls(
                folder, said["host"], int(said["port"]), said["place"], float(said["started"]), lives["daemon"],
                lives.get("keeper"), (files[0], files[1], files[2]) if files else None,
            )  # fmt: skip
        except (OSError, KeyError, ValueError, IndexError):
            return None

    def of(self, info: SessionInfo) -> HeadRecord:
        """The same cluster, served by the head of this session from now on."""
        assert info.daemon is not None
        return replace(self, started=time.time(), daemon=info.daemon, place=info.place, tls=info.tls)

    def is_dead(self) -> bool:
        """Whether its process is gone."""
        return is_dead(self.place, this_place(), (self.daemon,))


def _life(text: str) -> tuple[int, float]:
    pid, started = text.split()
    return (int(pid), float(started))


def tables_in(folder: str) -> str:
    """The file of the GCS in a head's folder."""
    return os.path.join(folder, TABLES)


def make_head_folder(root: str, info: SessionInfo, token: bytes) -> str:
    """The folder of a new head, still without its record. Raises RaySystemError."""
    folder = os.path.join(root, _PREFIX + info.prefix)
    try:
        os.mkdir(folder, 0o700)
        write_private(os.path.join(folder, TOKEN), token.decode("utf-8", "surrogateescape"))
    except OSError as error:
        remove_tree(folder)
        raise RaySystemError(f"cannot make the folder of the head's tables in {root}: {error}") from error
    return folder


def record_of(
    folder: str, host: str, port: int, info: SessionInfo, keeper: tuple[int, float] | None
) -> HeadRecord:
    """The record of a head that has just been started."""
    assert info.daemon is not None
    return HeadRecord(folder, host, port, info.place, time.time(), info.daemon, keeper, info.tls)


def _folders(root: str) -> list[str]:
    try:
        names = os.listdir(root)
    except OSError:
        return []
    folders = (os.path.join(root, name) for name in sorted(names) if name.startswith(_PREFIX))
    return [folder for folder in folders if is_ours(folder)]


def _records(root: str) -> list[HeadRecord]:
    return [record for record in map(HeadRecord.read, _folders(root)) if record is not None]


def dead_heads(config: Config) -> list[HeadRecord]:
    """The heads of this user on this machine that were killed and can go on; the latest first."""
    found = [record for record in _records(config.temp_root()) if record.keeper is None and record.is_dead()]
    return sorted(found, key=lambda record: record.started, reverse=True)


def sweep_heads(root: str) -> list[str]:
    """Remove what nobody will ask for any more: how old it is, its tables say."""
    removed = []
    for folder in _folders(root):
        record, age = HeadRecord.read(folder), _age(folder)
        if record is None:
            over = age > YOUNG_S
        elif record.is_dead():
            keeper = record.keeper
            forlorn = keeper is not None and not (record.place == this_place() and is_alive(*keeper))
            over = forlorn or age > KEPT_S
        else:
            over = False
        if over:
            remove_tree(folder)
            removed.append(folder)
    return removed


def _age(folder: str) -> float:
    """Since something was written there."""
    times = [0.0]
    for path in (folder, tables_in(folder), tables_in(folder) + "-wal"):
        try:
            times.append(os.stat(path).st_mtime)
        except OSError:  # the log of the database is there while it is needed
            continue
    return time.time() - max(times)
