"""Identities, as users meet them.

Inside minray every identity is plain ``bytes``: they are dictionary keys and travel on the wire as they
are. These classes wrap the bytes where a user sees them (``ObjectRef`` lives in ``minray.object_ref`` and
follows the same rules). They are immutable values: equal when type and bytes are equal, hashable, picklable.

Layout: a worker and a node id are 28 random bytes; a job id is a 4-byte number; an actor id is 12 random
bytes and the job id; a task id is 12 process-random bytes, an 8-byte big-endian counter and the job id; an
object id is the task id and a 4-byte little-endian index (0: put, from 1: return values). So the job of
a task, and the task of an object, are read off the id. The nil id of each class is all ones.

Invariant: an instance always holds exactly ``SIZE`` bytes (a wrong size is a ValueError).
"""

from __future__ import annotations

import os
from typing import Any, ClassVar, TypeVar

JOB_ID_SIZE = 4
ACTOR_ID_SIZE = 16
PLACEMENT_GROUP_ID_SIZE = 18
TASK_ID_SIZE = 24
UNIQUE_ID_SIZE = 28
OBJECT_ID_SIZE = 28

_IdT = TypeVar("_IdT", bound="BaseID")


class BaseID:
    """An identity of ``SIZE`` bytes.

    Raises:
        TypeError: what was given is not bytes.
        ValueError: it is not ``SIZE`` bytes long.
    """

    __slots__ = ("_id",)
    SIZE: ClassVar[int] = UNIQUE_ID_SIZE
    _id: bytes

    def __init__(self, id: bytes) -> None:
        if not isinstance(id, bytes):
            raise TypeError(f"{type(self).__name__} needs bytes, got {type(id).__name__}: {id!r}")
        if len(id) != self.SIZE:
            raise ValueError(f"{type(self).__name__} needs {self.SIZE} bytes, got {len(id)}: {id!r}")
        object.__setattr__(self, "_id", id)

    @classmethod
    def nil(cls: type[_IdT]) -> _IdT:
        """The id that stands for none: all ones."""
        return cls(b"\xff" * cls.SIZE)

    @classmethod
    def from_random(cls: type[_IdT]) -> _IdT:
        """A fresh id of random bytes."""
        return cls(os.urandom(cls.SIZE))

    @classmethod
    def from_binary(cls: type[_IdT], id: bytes) -> _IdT:
        """The id of these bytes: the constructor, as a function."""
        return cls(id)

    @classmethod
    def from_hex(cls: type[_IdT], hex_id: str) -> _IdT:
        """The id whose ``hex()`` is ``hex_id``. ValueError if it is not hexadecimal or of another size."""
        if not isinstance(hex_id, str):
            raise TypeError(f"{cls.__name__}.from_hex needs a str, got {type(hex_id).__name__}: {hex_id!r}")
        try:
            raw = bytes.fromhex(hex_id)
        except ValueError as error:
            raise ValueError(f"{cls.__name__}.from_hex needs hexadecimal digits, got {hex_id!r}") from error
        return cls(raw)

    @classmethod
    def size(cls) -> int:
        """Length in bytes of every id of this class."""
        return cls.SIZE

    def binary(self) -> bytes:
        """The bytes themselves."""
        return self._id

    def hex(self) -> str:
        """The bytes as hexadecimal digits."""
        return self._id.hex()

    def is_nil(self) -> bool:
        """Whether this is the nil id."""
        return self._id == b"\xff" * self.SIZE

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable: cannot delete {name!r}")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._id == self._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self._id,))


class UniqueID(BaseID):
    """28 bytes without structure; base of the ids that have none."""

    __slots__ = ()


class NodeID(UniqueID):
    """One incarnation of a node."""

    __slots__ = ()


class WorkerID(UniqueID):
    """One process (worker or driver)."""

    __slots__ = ()


class ClusterID(UniqueID):
    """One life of a cluster."""

    __slots__ = ()


class FunctionID(UniqueID):
    """One exported function definition."""

    __slots__ = ()


class ActorClassID(UniqueID):
    """One exported actor class."""

    __slots__ = ()


class JobID(BaseID):
    """One driver's life: a number, little-endian."""

    __slots__ = ()
    SIZE = JOB_ID_SIZE

    @classmethod
    def from_int(cls, value: int) -> JobID:
        """The job with this number."""
        if not 0 <= value < 2**32:
            raise ValueError(f"a job's number is from 0 to {2**32 - 1}, got {value!r}")
        return cls(value.to_bytes(JOB_ID_SIZE, "little"))

    def int(self) -> int:
        """The job's number."""
        return int.from_bytes(self._id, "little")


class ActorID(BaseID):
    """One actor: 12 random bytes and its job."""

    __slots__ = ()
    SIZE = ACTOR_ID_SIZE

    @classmethod
    def of(cls, job_id: JobID) -> ActorID:
        """A fresh actor id of that job."""
        return cls(os.urandom(ACTOR_ID_SIZE - JOB_ID_SIZE) + job_id.binary())

    @property
    def job_id(self) -> JobID:
        """The job that made the actor."""
        return JobID(self._id[-JOB_ID_SIZE:])


class TaskID(BaseID):
    """One task (or actor call): process-random prefix, counter, job."""

    __slots__ = ()
    SIZE = TASK_ID_SIZE

    def job_id(self) -> JobID:
        """The job that the task belongs to."""
        return JobID(self._id[-JOB_ID_SIZE:])


class PlacementGroupID(BaseID):
    """One placement group: 14 random bytes and its job."""

    __slots__ = ()
    SIZE = PLACEMENT_GROUP_ID_SIZE

    @classmethod
    def of(cls, job_id: JobID) -> PlacementGroupID:
        """A fresh placement-group id of that job."""
        return cls(os.urandom(PLACEMENT_GROUP_ID_SIZE - JOB_ID_SIZE) + job_id.binary())


def task_id_of_object(object_id: bytes) -> bytes:
    """The task part of an object id (both as bytes)."""
    return object_id[:TASK_ID_SIZE]


def job_id_of_object(object_id: bytes) -> bytes:
    """The job part of an object id (both as bytes)."""
    return object_id[TASK_ID_SIZE - JOB_ID_SIZE : TASK_ID_SIZE]


def object_index(object_id: bytes) -> int:
    """Which value of its task an object id names: 0 a put, from 1 the return values."""
    return int.from_bytes(object_id[TASK_ID_SIZE:], "little")
