"""Where things run: strategies, groups and labels as they are written, and what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from minray._base.groups import GroupTarget, shape_of
from minray._base.ids import PlacementGroupID
from minray._base.labels import matches
from minray._base.options import validate_actor_options, validate_task_options
from minray._base.placement_checks import bundle_selectors, label_selector

UNIT = 10_000


@dataclass
class PlacementGroup:
    bundle_specs: list[dict[str, float]]
    id: PlacementGroupID = field(default_factory=lambda: PlacementGroupID(b"g" * 18))
    is_empty: bool = False


@dataclass
class PlacementGroupSchedulingStrategy:
    placement_group: Any
    placement_group_bundle_index: Any = -1
    placement_group_capture_child_tasks: Any = None


@dataclass
class NodeLabelSchedulingStrategy:
    hard: Any
    soft: Any = None


@dataclass
class NodeAffinitySchedulingStrategy:
    node_id: Any
    soft: bool = False


class In:
    def __init__(self, *values: str) -> None:
        self.values = values


class NotIn(In):
    pass


class Exists(In):
    pass


class DoesNotExist(In):
    pass


GROUP = PlacementGroup([{"CPU": 1.0}, {"CPU": 2.0, "GPU": 1.0}])
HEX = (b"g" * 18).hex()
Here = PlacementGroupSchedulingStrategy


def test_a_task_in_a_group() -> None:
    options = validate_task_options({"scheduling_strategy": Here(GROUP, 1, True), "num_cpus": 2})
    assert options.strategy is None
    assert not options.inherits
    assert options.group == GroupTarget(b"g" * 18, 1, True, (shape_of({"CPU": UNIT}), *_second()))
    assert options.plain_resources == {"CPU": 2 * UNIT}
    assert options.resources == {
        f"CPU_group_{HEX}": 2 * UNIT,
        f"CPU_group_1_{HEX}": 2 * UNIT,
        f"bundle_group_{HEX}": 10,
        f"bundle_group_1_{HEX}": 10,
    }
    other = validate_task_options({"scheduling_strategy": Here(GROUP), "num_cpus": 2})
    assert other.scheduling_key != options.scheduling_key
    old = {"placement_group": GROUP, "placement_group_bundle_index": 1, "placement_group_capture_child_tasks": True}
    assert validate_task_options({**old, "num_cpus": 2}).scheduling_key == options.scheduling_key


def _second() -> tuple[Any, ...]:
    return (shape_of({"CPU": 2 * UNIT, "GPU": UNIT}),)


def test_an_actor_in_a_group() -> None:
    options = validate_actor_options({"scheduling_strategy": Here(GROUP)})
    assert options.placement_resources == {f"CPU_group_{HEX}": UNIT, f"bundle_group_{HEX}": 10}
    assert options.lifetime_resources == {f"bundle_group_{HEX}": 10}
    with pytest.raises(ValueError, match=r"the actor \(which needs 1 CPU to be placed.*does not fit"):
        validate_actor_options({"placement_group": PlacementGroup([{"GPU": 1}])})


def test_who_goes_into_the_group_of_its_submitter() -> None:
    inherit: list[dict[str, Any]] = [{}, {"scheduling_strategy": None}, {"placement_group": "default"}]
    inherit.append({"placement_group_capture_child_tasks": True})
    for given in inherit:
        assert validate_task_options(given).inherits, given
    stay: list[dict[str, Any]] = [
        {"scheduling_strategy": "DEFAULT"},
        {"scheduling_strategy": "SPREAD"},
        {"scheduling_strategy": NodeAffinitySchedulingStrategy("ab" * 28)},
        {"scheduling_strategy": Here(None)},
        {"placement_group": None},
        {"placement_group_capture_child_tasks": False},
        {"label_selector": {"zone": "a"}},
        {"scheduling_strategy": Here(GROUP)},
    ]
    for given in stay:
        assert not validate_task_options(given).inherits, given
        assert not validate_actor_options(given).inherits, given


def test_put_into_the_group_of_its_submitter() -> None:
    captured = validate_task_options({"scheduling_strategy": Here(GROUP, 0, True)}).group
    assert captured is not None
    children = captured.captured(inherited=False)
    assert children is not None
    options = validate_task_options({"num_cpus": 2}).within(children, "f")
    assert options.resources == {f"CPU_group_{HEX}": 2 * UNIT, f"bundle_group_{HEX}": 10}
    assert options.scheduling_key[1:] == validate_task_options({}).scheduling_key[1:]
    with pytest.raises(ValueError, match="f asks for CPU: 3, which does not fit into any bundle"):
        validate_task_options({"num_cpus": 3}).within(children, "f")
    actor = validate_actor_options({}).within(children, "A")
    assert actor.lifetime_resources == {f"bundle_group_{HEX}": 10}


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"scheduling_strategy": Here(GROUP, 2)}, ValueError, "index 2 is invalid: .* has bundles 0 to 1"),
        ({"scheduling_strategy": Here(GROUP, -2)}, ValueError, "index -2 is invalid"),
        ({"scheduling_strategy": Here(GROUP, "a")}, TypeError, "placement_group_bundle_index must be an int"),
        ({"scheduling_strategy": Here(GROUP, None)}, TypeError, "-1 for any bundle"),
        ({"scheduling_strategy": Here(GROUP, -1, 5)}, TypeError, "placement_group_capture_child_tasks"),
        ({"scheduling_strategy": Here("x")}, TypeError, "must be a PlacementGroup or None, got str: 'x'"),
        ({"scheduling_strategy": "PACK"}, ValueError, "'DEFAULT' or 'SPREAD', got 'PACK'; for more"),
        ({"placement_group": GROUP, "scheduling_strategy": "SPREAD"}, ValueError, "are both given"),
        ({"placement_group": GROUP, "num_cpus": 3}, ValueError, "CPU: 3, which does not fit into any bundle"),
        ({"placement_group": GROUP, "label_selector": {"a": "b"}}, NotImplementedError, "bundle_label_selector"),
        (
            {"scheduling_strategy": NodeAffinitySchedulingStrategy("ab" * 28), "label_selector": {"a": "b"}},
            NotImplementedError,
            "beside a node affinity",
        ),
        ({"scheduling_strategy": NodeLabelSchedulingStrategy({"a": "b"})}, TypeError, "In, NotIn, Exists"),
        ({"scheduling_strategy": NodeLabelSchedulingStrategy("a")}, TypeError, "must be a dict such as"),
        ({"scheduling_strategy": NodeLabelSchedulingStrategy({"a b": In("c")})}, ValueError, "'a b' is no label"),
        (
            {"scheduling_strategy": NodeLabelSchedulingStrategy({"a": In("b")}), "label_selector": {"a": "c"}},
            ValueError,
            "different things about a",
        ),
    ],
)
def test_what_is_refused(given: dict[str, Any], error: type[Exception], text: str) -> None:
    for validate in (validate_task_options, validate_actor_options):
        with pytest.raises(error, match=text):
            validate(given)


def test_node_labels() -> None:
    hard = {"zone": In("a", "b"), "disk": NotIn("slow"), "gpu": Exists(), "old": DoesNotExist()}
    strategy = NodeLabelSchedulingStrategy(hard, {"rack": In("1")})
    options = validate_task_options({"scheduling_strategy": strategy})
    assert options.strategy == (
        "labels",
        {
            "zone": ("in", ("a", "b")),
            "disk": ("notin", ("slow",)),
            "gpu": ("exists", ()),
            "old": ("absent", ()),
        },
        {"rack": ("in", ("1",))},
    )
    hash(options.scheduling_key)
    same = NodeLabelSchedulingStrategy(dict(reversed(hard.items())), {"rack": In("1")})
    assert validate_task_options({"scheduling_strategy": same}).scheduling_key == options.scheduling_key


def test_a_selector_beside_a_strategy() -> None:
    selector = {"label_selector": {"zone": "a"}}
    wanted = {"zone": ("in", ("a",))}
    for strategy in (None, "DEFAULT", "SPREAD"):
        options = validate_task_options({**selector, "scheduling_strategy": strategy})
        assert options.strategy == ("labels", wanted, {})
    both = NodeLabelSchedulingStrategy({"disk": Exists(), "zone": In("a")}, {"rack": In("1")})
    options = validate_task_options({**selector, "scheduling_strategy": both})
    assert options.strategy == ("labels", {"disk": ("exists", ()), **wanted}, {"rack": ("in", ("1",))})


@pytest.mark.parametrize(
    ("text", "condition", "agrees"),
    [
        ("a", ("in", ("a",)), "a"),
        ("", ("in", ("",)), ""),
        ("!a", ("notin", ("a",)), "bN"),
        ("in(a)", ("in", ("a",)), "a"),
        ("in(a,b)", ("in", ("a", "b")), "ab"),
        ("in( a , b )", ("in", ("a", "b")), "ab"),
        ("!in(a, b)", ("notin", ("a", "b")), "cN"),
        ("in", ("in", ("in",)), "in"),
        ("v1.2_x-3", ("in", ("v1.2_x-3",)), "v1.2_x-3"),
    ],
)
def test_label_selectors(text: str, condition: Any, agrees: str) -> None:
    found = label_selector("label_selector", {"example.com/zone": text})
    assert found == {"example.com/zone": condition}
    for value in ("a", "b", "c", "", "in", "v1.2_x-3"):
        told = value in agrees if condition[0] == "in" and len(condition[1]) > 1 else None
        if told is not None:
            assert matches({"example.com/zone": value}, found) == (value in condition[1])
    assert matches({}, found) == ("N" in agrees)


@pytest.mark.parametrize(
    "text", ["in()", "in(a", "in(a,)", "a)", "!!a", " a", "a ", "a b", "-a", "a-", "in(a)b", "NOT(a)", "a" * 64, "é"]
)
def test_conditions_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no condition: write 'v', '!v'"):
        label_selector("label_selector", {"zone": text})


@pytest.mark.parametrize("label", ["", "a b", "/a", "a/", "A/b/c", "-a", "a" * 64])
def test_labels_that_are_none(label: str) -> None:
    with pytest.raises(ValueError, match="is no label"):
        label_selector("label_selector", {label: "a"})


def test_selectors_of_bundles() -> None:
    assert bundle_selectors("b", None, 2) == []
    assert bundle_selectors("b", [{"zone": "a"}, {}], 2) == [{"zone": ("in", ("a",))}, {}]
    with pytest.raises(ValueError, match="one selector per bundle: got 1 for 2 bundles"):
        bundle_selectors("b", [{}], 2)
    with pytest.raises(TypeError, match="a list of label selectors"):
        bundle_selectors("b", {"zone": "a"}, 1)
    with pytest.raises(TypeError, match=r"b\[0\]\['zone'\] must be a str"):
        bundle_selectors("b", [{"zone": 5}], 1)
