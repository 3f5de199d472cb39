"""The names of bundles: there and back, and what a request in a group asks for."""

from __future__ import annotations

import pytest

from minray._base.groups import (
    ANY_BUNDLE,
    TOKEN,
    TOKENS,
    GroupTarget,
    bundle_of,
    different,
    group_of,
    in_any,
    in_bundle,
    offered,
    plain,
    plain_name,
    shape_of,
)

UNIT = 10_000
GROUP = bytes(range(18))
HEX = GROUP.hex()
BUNDLES = (shape_of({"CPU": 2 * UNIT}), shape_of({"GPU": UNIT, "CPU": UNIT}))


def target(index: int = ANY_BUNDLE, capture: bool | None = None) -> GroupTarget:
    return GroupTarget(GROUP, index, capture, BUNDLES)


def test_a_request_for_any_bundle() -> None:
    assert target().rename({"CPU": UNIT}) == {f"CPU_group_{HEX}": UNIT, f"bundle_group_{HEX}": TOKEN}


def test_a_request_for_one_bundle_takes_both_names() -> None:
    assert target(1).rename({"CPU": UNIT}) == {
        f"CPU_group_{HEX}": UNIT,
        f"CPU_group_1_{HEX}": UNIT,
        f"bundle_group_{HEX}": TOKEN,
        f"bundle_group_1_{HEX}": TOKEN,
    }


def test_what_is_offered_is_what_is_asked_for() -> None:
    names = offered(GROUP, 1, dict(BUNDLES[1]))
    assert names[f"bundle_group_1_{HEX}"] == names[f"bundle_group_{HEX}"] == TOKENS
    for index in (1, ANY_BUNDLE):
        assert all(amount <= names[name] for name, amount in target(index).rename({"CPU": UNIT}).items())
    assert not target(0).rename({"CPU": UNIT}).keys() <= names.keys()


@pytest.mark.parametrize("name", ["CPU", "memory", "thing", "a_group_b", "node:127.0.0.1", "accelerator_type:A100"])
def test_names_there_and_back(name: str) -> None:
    assert plain_name(name) == name
    assert plain_name(in_any(name, GROUP)) == name
    assert plain_name(in_bundle(name, GROUP, 12)) == name


@pytest.mark.parametrize(
    "name", [f"_group_{HEX}", f"CPU_group_{HEX[:-1]}", f"CPU_group_x_{HEX}", f"CPU_group_{'z' * 36}", "CPU_group_1_"]
)
def test_names_that_only_look_like_it(name: str) -> None:
    assert plain_name(name) == name


def test_what_a_user_sees() -> None:
    request = target(0).rename({"CPU": UNIT, "thing": 5})
    assert plain(request) == {"CPU": UNIT, "thing": 5}
    assert plain({f"GPU_group_{HEX}": [(1, UNIT)]}) == {"GPU": [(1, UNIT)]}
    assert plain({"CPU": 1, "bundle": 2}) == {"CPU": 1, "bundle": 2}


def test_of_which_group_and_bundle() -> None:
    for index in (0, 17, ANY_BUNDLE):
        request = target(index).rename({"CPU": UNIT})
        assert group_of(request) == GROUP
        assert bundle_of(request) == index
    assert group_of({"CPU": UNIT, "bundle": 1, "bundle_group_x": 1}) is None
    assert group_of(target().rename({})) == GROUP, "nothing but a token"


def test_what_fits() -> None:
    target().check_fits({"CPU": 2 * UNIT}, "f")
    target().check_fits({"GPU": UNIT}, "f")
    target(1).check_fits({"CPU": UNIT, "GPU": UNIT}, "f")
    with pytest.raises(ValueError, match=r"f asks for CPU: 2, GPU: 1, which does not fit into any bundle .*CPU: 2 \| "):
        target().check_fits({"CPU": 2 * UNIT, "GPU": UNIT}, "f")
    with pytest.raises(ValueError, match=r"does not fit into bundle 0 of placement group .*\(CPU: 2\)"):
        target(0).check_fits({"GPU": UNIT}, "f")


def test_who_captures() -> None:
    for capture, inherited, expected in (
        (True, False, True),
        (False, True, False),
        (None, True, True),
        (None, False, False),
    ):
        assert (target(1, capture).captured(inherited=inherited) is not None) == expected
    children = target(1, True).captured(inherited=False)
    assert children is not None
    assert (children.index, children.capture) == (ANY_BUNDLE, True)


def test_as_it_travels() -> None:
    assert GroupTarget.from_wire(target(1, True).to_wire()) == target(1, True)
    assert hash(target(1)) == hash(target(1))
    assert different([*BUNDLES, BUNDLES[0]]) == BUNDLES
