"""The id classes: values of a fixed size."""

from __future__ import annotations

import copy
import pickle

import pytest

from minray._base import ids
from minray._base.ids import ActorID, BaseID, JobID, NodeID, PlacementGroupID, TaskID, UniqueID, WorkerID

SIZES = {
    ids.JobID: 4,
    ids.ActorID: 16,
    ids.PlacementGroupID: 18,
    ids.TaskID: 24,
    ids.UniqueID: 28,
    ids.NodeID: 28,
    ids.WorkerID: 28,
    ids.ClusterID: 28,
    ids.FunctionID: 28,
    ids.ActorClassID: 28,
}


@pytest.mark.parametrize(("cls", "size"), SIZES.items(), ids=lambda x: getattr(x, "__name__", str(x)))
class TestEveryClass:
    def test_size(self, cls: type[BaseID], size: int) -> None:
        assert cls.size() == size
        assert len(cls.from_random().binary()) == size

    def test_a_wrong_size_is_a_value_error(self, cls: type[BaseID], size: int) -> None:
        for wrong in (size - 1, size + 1, 0):
            with pytest.raises(ValueError, match=f"{cls.__name__} needs {size} bytes, got {wrong}"):
                cls(b"x" * wrong)

    def test_something_else_than_bytes_is_a_type_error(self, cls: type[BaseID], size: int) -> None:
        with pytest.raises(TypeError, match="needs bytes, got str"):
            cls("x" * size)  # type: ignore[arg-type]

    def test_hex_and_back(self, cls: type[BaseID], size: int) -> None:
        one = cls.from_random()
        assert len(one.hex()) == 2 * size
        assert cls.from_hex(one.hex()) == one == cls.from_binary(one.binary())

    def test_nil(self, cls: type[BaseID], size: int) -> None:
        assert cls.nil().is_nil()
        assert cls.nil().binary() == b"\xff" * size
        assert not cls(b"\x00" * size).is_nil()

    def test_it_is_a_value(self, cls: type[BaseID], size: int) -> None:
        one, same, other = cls(b"a" * size), cls(b"a" * size), cls(b"b" * size)
        assert one == same != other
        assert hash(one) == hash(same)
        assert {one: 1}[same] == 1
        assert pickle.loads(pickle.dumps(one)) == one == copy.copy(one) == copy.deepcopy(one)

    def test_it_does_not_change(self, cls: type[BaseID], size: int) -> None:
        one = cls(b"a" * size)
        with pytest.raises(AttributeError, match="immutable"):
            one._id = b"b" * size
        with pytest.raises(AttributeError, match="immutable"):
            del one._id

    def test_repr(self, cls: type[BaseID], size: int) -> None:
        assert repr(cls(b"\x01" * size)) == str(cls(b"\x01" * size)) == f"{cls.__name__}({'01' * size})"


def test_ids_of_different_classes_differ() -> None:
    raw = b"a" * 28
    assert NodeID(raw) != WorkerID(raw)
    assert UniqueID(raw) != raw


@pytest.mark.parametrize("text", ["zz000000", "00", "0000000000"])
def test_from_hex_of_nonsense(text: str) -> None:
    with pytest.raises(ValueError, match="JobID"):
        JobID.from_hex(text)
    with pytest.raises(TypeError, match="needs a str"):
        JobID.from_hex(b"00000000")  # type: ignore[arg-type]


def test_job_numbers() -> None:
    assert JobID.from_int(1).hex() == "01000000"
    assert JobID.from_int(513).int() == 513
    for wrong in (-1, 2**32):
        with pytest.raises(ValueError, match=str(wrong)):
            JobID.from_int(wrong)


def test_the_job_is_read_off_the_id() -> None:
    job = JobID.from_int(7)
    assert ActorID.of(job).job_id == job
    assert ActorID.of(job) != ActorID.of(job)
    assert TaskID(b"p" * 12 + (5).to_bytes(8, "big") + job.binary()).job_id() == job
    assert PlacementGroupID.of(job).binary()[-4:] == job.binary()


def test_parts_of_an_object_id() -> None:
    task = b"p" * 12 + (5).to_bytes(8, "big") + JobID.from_int(7).binary()
    object_id = task + (3).to_bytes(4, "little")
    assert ids.task_id_of_object(object_id) == task
    assert ids.job_id_of_object(object_id) == JobID.from_int(7).binary()
    assert ids.object_index(object_id) == 3
