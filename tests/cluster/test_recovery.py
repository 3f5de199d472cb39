"""What lay on a node that is gone: made again where that can be, an error that says why where not."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import minray as ray
from minray._base import current
from minray.exceptions import ObjectReconstructionFailedError
from minray.experimental import get_object_locations
from minray.wire.messages import Free, pack
from tests.cluster.conftest import eventually, objects_at

SIZE = 300_000
FAR = {"num_cpus": 1, "resources": {"far": 10}}
far = ray.remote(num_cpus=0, resources={"far": 1})


def make(seed):
    return np.random.default_rng(seed).integers(0, 256, SIZE, dtype=np.uint8)


def add(*arrays):
    return sum(arrays)


@pytest.fixture
def cluster(make_cluster):
    made = make_cluster(dict(FAR), head={"num_cpus": 2})
    made.connect()
    return made


def replace_far(cluster):
    """Its node is gone, and another one with the same resources is there."""
    (node,) = cluster.worker_nodes
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(**FAR)


def test_a_chain_is_made_again(cluster):
    x, y = far(make).remote(1), far(make).remote(2)
    z = far(add).remote(x, y)
    ray.wait([z], fetch_local=False)
    del x, y
    replace_far(cluster)
    assert (ray.get(z, timeout=60) == make(1) + make(2)).all()


def test_tasks_that_need_it_find_it(cluster):
    """As an argument, and as a reference inside one, on any node."""
    x = far(make).remote(3)
    ray.wait([x], fetch_local=False)
    replace_far(cluster)
    inside = ray.remote(num_cpus=1)(lambda refs: int(ray.get(refs[0]).sum()))
    assert ray.get([ray.remote(add).remote(x, x), inside.remote([x])], timeout=60)[1] == int(make(3).sum())


def test_what_was_freed_by_a_word_about_its_earlier_life_is_made_again(cluster):
    """It was freed, its node was lost for a moment or its task wanted it again, and then the old word arrived."""
    x = far(make).remote(5)
    ray.wait([x], fetch_local=False)
    rt = current.get()
    there, *place = rt.core.objects[x._id].value[0]
    (node,) = cluster.worker_nodes
    assert node.node_id == there.hex() and objects_at(cluster, node) == 1
    rt.node.send(pack(Free([(x._id, *place, there)])))
    eventually(lambda: objects_at(cluster, node) == 0, "it is freed")
    assert int(ray.get(far(add).remote(x), timeout=60).sum()) == int(make(5).sum())
    assert (ray.get(x, timeout=60) == make(5)).all()


def test_many_who_miss_it_have_it_made_once(cluster, tmp_path):
    marks = tmp_path / "marks"

    def marked(seed):
        with open(marks, "a") as file:
            file.write("x")
        return make(seed)

    x = far(marked).remote(4)
    ray.wait([x], fetch_local=False)
    assert marks.read_text() == "x"
    replace_far(cluster)
    total = ray.remote(num_cpus=0)(lambda refs: int(ray.get(refs[0]).sum()))
    assert ray.get([total.remote([x]) for _ in range(6)], timeout=60) == [int(make(4).sum())] * 6
    assert marks.read_text() == "xx"


def test_what_cannot_be_made_again_says_why(cluster):
    put = ray.get(far(lambda: [ray.put(make(5))]).remote())[0]
    once = far(make).options(max_retries=0).remote(6)
    kept = ray.put(make(7))
    chained = far(add).remote(kept)
    ray.wait([once, chained], num_returns=2, fetch_local=False)
    del kept
    (node,) = cluster.worker_nodes
    cluster.remove_node(node, allow_graceful=False)
    with pytest.raises(ObjectReconstructionFailedError, match="max_retries"):
        ray.get(once, timeout=60)
    with pytest.raises(ObjectReconstructionFailedError, match="freed"):
        ray.get(chained, timeout=60)
    with pytest.raises(ray.exceptions.OwnerDiedError):
        ray.get(put, timeout=60)


def test_results_of_an_actor_that_lives_again(cluster):
    @ray.remote(num_cpus=0, resources={"far": 1}, max_restarts=-1, max_task_retries=-1)
    class Maker:
        def make(self, seed):
            return make(seed)

    maker = Maker.remote()
    x = maker.make.remote(8)
    ray.wait([x], fetch_local=False)
    replace_far(cluster)
    assert (ray.get(x, timeout=60) == make(8)).all()


def test_wait_and_await_bring_it_here_first(cluster):
    x, y, z = (far(make).remote(seed) for seed in (9, 10, 11))
    assert ray.wait([x, y, z], num_returns=3, fetch_local=False, timeout=60)[1] == []

    def copies(ref):
        return len(get_object_locations([ref])[ref]["node_ids"])

    assert copies(x) == copies(y) == copies(z) == 1
    assert ray.wait([x], timeout=60) == ([x], [])
    assert copies(x) == 2

    async def awaited():
        return await y

    assert (asyncio.run(awaited()) == make(10)).all()
    assert (z.future().result(timeout=60) == make(11)).all()


def test_wait_for_what_is_lost(cluster):
    x = far(make).remote(12)
    ray.wait([x], fetch_local=False)
    (node,) = cluster.worker_nodes
    cluster.remove_node(node, allow_graceful=False)
    assert ray.wait([x], timeout=0.5) == ([], [x])
    cluster.add_node(**FAR)
    assert ray.wait([x], timeout=60) == ([x], [])
    eventually(lambda: ray.wait([x], timeout=0) == ([x], []), "a copy is here")


def test_await_of_what_is_lost(cluster):
    x, y = far(make).remote(13), far(make).remote(14)
    ray.wait([x, y], num_returns=2, fetch_local=False)
    future = y.future()
    replace_far(cluster)

    async def awaited():
        return await x

    assert (asyncio.run(awaited()) == make(13)).all()
    assert (future.result(timeout=60) == make(14)).all()
