"""``get``, ``put``, ``wait``, ``cancel``, ``kill``, ``get_actor``: what is refused, and what is passed on."""

from __future__ import annotations

from typing import Any

import pytest

import minray
from minray.object_ref import ObjectRef

from .conftest import FakeRuntime


def test_b01_get_takes_a_ref_or_a_list(rt: FakeRuntime) -> None:
    ref = rt.new_ref()
    rt.settle(ref, 5)
    assert minray.get(ref) == 5 and minray.get([ref, ref]) == [5, 5] and minray.get([]) == []
    generator = rt.new_generator()
    assert minray.get(generator) is generator
    for wrong in ((ref,), 5, {ref}, None):
        with pytest.raises(ValueError, match="get"):
            minray.get(wrong)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="5"):
        minray.get([ref, 5])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="iterate"):
        minray.get([generator])
    with pytest.raises(TypeError, match="timeout"):
        minray.get([ref], timeout="1")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("refs", "keywords", "error"),
    [
        ((), {}, TypeError),
        (ObjectRef(bytes(28)), {}, TypeError),
        ([5], {}, TypeError),
        ([minray.TaskID(bytes(24))], {}, TypeError),
        ([ObjectRef(bytes(28))] * 2, {"num_returns": 2}, ValueError),
        ([ObjectRef(bytes(28))], {"num_returns": 0}, ValueError),
        ([ObjectRef(bytes(28))], {"num_returns": 2}, ValueError),
        ([ObjectRef(bytes(28))], {"num_returns": 1.0}, TypeError),
        ([ObjectRef(bytes(28))], {"timeout": -1}, ValueError),
    ],
)
def test_b05_wait_checks_its_arguments(
    rt: FakeRuntime, refs: Any, keywords: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        minray.wait(refs, **keywords)
    assert rt.asked == []


def test_b05_wait_for_nothing(rt: FakeRuntime) -> None:
    assert minray.wait([]) == ([], [])


def test_b06_a_ref_cannot_be_put(rt: FakeRuntime) -> None:
    with pytest.raises(TypeError, match="wrap"):
        minray.put(rt.new_ref())


def test_b34_cancel_takes_refs_and_generators(rt: FakeRuntime) -> None:
    ref = rt.new_ref()
    minray.cancel(ref, force=True)
    minray.cancel(rt.new_generator(), recursive=False)
    assert rt.asked[0] == ("cancel", ref, True, True)
    assert rt.asked[1][1].binary() == b"s" * 24 + b"\x01\0\0\0"
    for wrong in (5, [ref], None):
        with pytest.raises(TypeError, match="kill"):
            minray.cancel(wrong)


def test_b30_kill_takes_handles(rt: FakeRuntime) -> None:
    with pytest.raises(ValueError, match="cancel"):
        minray.kill(rt.new_ref())


@pytest.mark.parametrize(
    ("name", "namespace", "error"),
    [("", None, ValueError), (5, None, TypeError), ("a", "", ValueError), ("a", 5, TypeError)],
)
def test_b28_names_are_non_empty_strings(
    rt: FakeRuntime, name: Any, namespace: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        minray.get_actor(name, namespace)


def test_timeline_is_not_built_yet(rt: FakeRuntime) -> None:
    with pytest.raises(NotImplementedError, match="timeline"):
        minray.timeline()
