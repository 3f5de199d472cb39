"""Identities: value objects with sizes, and what they say about tasks, actors and jobs."""

from __future__ import annotations

import pickle

import pytest

from .target import IS_RAY, exceptions, ray

SIZES = {
    "ObjectRef": 28,
    "ObjectID": 28,
    "TaskID": 24,
    "ActorID": 16,
    "JobID": 4,
    "PlacementGroupID": 18,
    "UniqueID": 28,
    "NodeID": 28,
    "WorkerID": 28,
    "FunctionID": 28,
    "ActorClassID": 28,
    "ClusterID": 28,
}
WITH_RANDOM = sorted(set(SIZES) - {"JobID", "TaskID"})


@ray.remote
def echo(value):
    return value


@pytest.fixture(params=SIZES, ids=str)
def kind(request):
    return getattr(ray, request.param)


def test_sizes(kind):
    size = next(SIZES[name] for name in SIZES if getattr(ray, name) is kind)
    assert kind.size() == size
    assert len(kind(bytes(size)).binary()) == size


def test_the_wrong_size_is_a_value_error(kind):
    for data in (b"", b"x", bytes(29)):
        with pytest.raises(ValueError, match=str(kind.size())):
            kind(data)


def test_binary_and_hex(kind):
    data = bytes(range(kind.size()))
    value = kind(data)
    assert value.binary() == data
    assert value.hex() == data.hex()


def test_nil_is_all_ones(kind):
    nil = kind.nil()
    assert nil.is_nil()
    assert nil.binary() == b"\xff" * kind.size()
    assert not kind(bytes(kind.size())).is_nil()


def test_equality_and_hash(kind):
    one, same = kind(bytes(kind.size())), kind(bytes(kind.size()))
    other = kind(bytes(kind.size() - 1) + b"\x01")
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != one.binary()
    assert len({one, same, other}) == 2


def test_repr_shows_the_hex():
    assert repr(ray.JobID(b"\x01\x00\x00\x00")) == "JobID(01000000)"
    assert repr(ray.NodeID(bytes(28))) == f"NodeID({'00' * 28})"
    assert repr(ray.ObjectRef(bytes(28))) == f"ObjectRef({'00' * 28})"


@pytest.mark.parametrize("name", WITH_RANDOM)
def test_random_ones_differ(name):
    kind = getattr(ray, name)
    assert kind.from_random() != kind.from_random()


@pytest.mark.parametrize("name", sorted(set(SIZES) - {"ObjectRef", "ObjectID", "UniqueID"}))
def test_from_hex_and_pickle(name):
    value = getattr(ray, name)(bytes(range(SIZES[name])))
    assert type(value).from_hex(value.hex()) == value
    assert pickle.loads(pickle.dumps(value)) == value


def test_an_object_ref_says_where_it_comes_from():
    job = ray.get_runtime_context().get_job_id()
    for ref in (ray.put(1), echo.remote(1)):
        assert len(ref.binary()) == ref.size() == 28
        assert ref.hex() == ref.binary().hex()
        assert repr(ref) == str(ref) == f"ObjectRef({ref.hex()})"
        assert not ref.is_nil()
        assert isinstance(ref.task_id(), ray.TaskID)
        assert isinstance(ref.job_id(), ray.JobID)
        assert ref.job_id().hex() == job
        assert ref.task_id().job_id() == ref.job_id()


def test_the_ids_inside_a_ref():
    @ray.remote
    def who():
        return ray.get_runtime_context().get_task_id()

    ref = who.remote()
    assert ref.task_id().hex() == ray.get(ref)
    assert ref.binary().startswith(ref.task_id().binary())
    if not IS_RAY:  # the layout of ours: four bytes of index, returns from 1
        assert ref.binary()[24:] == (1).to_bytes(4, "little")


def test_the_ids_of_actors():
    @ray.remote
    class Plain:
        def ids(self):
            context = ray.get_runtime_context()
            return context.get_actor_id(), context.get_task_id()

    actor = Plain.remote()
    ref = actor.ids.remote()
    actor_id, task_id = ray.get(ref)
    assert actor_id == actor._actor_id.hex()
    assert isinstance(actor._actor_id, ray.ActorID)
    assert task_id == ref.task_id().hex()
    assert actor._actor_id.binary()[-4:].hex() == ray.get_runtime_context().get_job_id()


def test_refs_as_keys_and_in_sets():
    a, b = ray.put(1), ray.put(2)
    assert {a: "a", b: "b"}[a] == "a"
    assert a != b
    assert len({a, b, a}) == 2
    assert a != 5


def test_refs_of_several_returns_are_distinct():
    @ray.remote(num_returns=3)
    def three():
        return 1, 2, 3

    refs = three.remote()
    assert len(set(refs)) == 3
    assert len({ref.task_id() for ref in refs}) == 1


def test_object_ref_can_be_subscripted_for_types():
    assert ray.ObjectRef[int] is not None


def test_a_ref_that_nobody_made_never_hangs_silently():
    with pytest.raises((exceptions.RayError, ValueError)):
        ray.get(ray.ObjectRef.from_random(), timeout=0.1)
