"""Options: what they mean, what is refused where it is written."""

from __future__ import annotations

import math
import pickle
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from minray._base import option_checks
from minray._base.options import (
    resolve_num_returns,
    validate_actor_options,
    validate_method_options,
    validate_task_options,
)

UNIT = 10_000


@dataclass
class NodeAffinitySchedulingStrategy:
    node_id: Any
    soft: bool = False


class TestTask:
    def test_defaults(self) -> None:
        options = validate_task_options({})
        assert options.resources == {"CPU": UNIT}
        assert (options.max_retries, options.max_calls, options.backpressure) == (3, 0, -1)
        assert (options.name, options.num_returns, options.retry_exceptions) == (None, None, False)
        assert (options.env_vars, options.strategy, options.enable_task_events) == ({}, None, True)

    def test_none_means_the_default(self) -> None:
        nones = dict.fromkeys(
            ("num_cpus", "num_gpus", "memory", "resources", "max_retries", "max_calls", "num_returns", "name")
        )
        assert validate_task_options(nones).scheduling_key == validate_task_options({}).scheduling_key
        assert validate_task_options(nones).max_retries == 3

    def test_resources(self) -> None:
        options = validate_task_options(
            {"num_cpus": 0.5, "num_gpus": 2, "memory": 100, "resources": {"x": 0.25, "y": 0}}
        )
        assert options.resources == {"CPU": 5_000, "GPU": 2 * UNIT, "memory": 100 * UNIT, "x": 2_500}
        assert validate_task_options({"num_cpus": 0}).resources == {}
        assert validate_task_options({"accelerator_type": "V100"}).resources == {
            "CPU": UNIT,
            "accelerator_type:V100": 10,
        }

    def test_gpu_tasks_default_to_one_call_per_process(self) -> None:
        assert validate_task_options({"num_gpus": 0.5}).max_calls == 1
        assert validate_task_options({"num_gpus": 1, "max_calls": 0}).max_calls == 0
        assert validate_task_options({"num_gpus": 0}).max_calls == 0

    def test_equal_demands_share_a_key(self) -> None:
        one = validate_task_options({"resources": {"a": 1, "b": 2}, "name": "one"})
        same = validate_task_options({"resources": {"b": 2, "a": 1}, "num_returns": 2})
        assert one.scheduling_key == same.scheduling_key
        assert hash(one.scheduling_key) == hash(same.scheduling_key)
        env = {"runtime_env": {"env_vars": {"A": "1"}}}
        for other in ({"num_cpus": 2}, {"scheduling_strategy": "SPREAD"}, env, {"max_calls": 1}):
            assert validate_task_options({**one.given, **other}).scheduling_key != one.scheduling_key

    def test_merge_is_per_key_and_leaves_the_original_alone(self) -> None:
        base = validate_task_options({"num_cpus": 2, "resources": {"x": 1}, "max_retries": 5})
        merged = base.merged({"resources": {"y": 1}})
        assert merged.resources == {"CPU": 2 * UNIT, "y": UNIT}
        assert merged.max_retries == 5
        assert base.resources == {"CPU": 2 * UNIT, "x": UNIT}
        assert base.merged({"num_cpus": None}).resources == {"CPU": UNIT, "x": UNIT}
        assert base.merged({}).scheduling_key == base.scheduling_key

    def test_the_users_dict_is_not_kept(self) -> None:
        given: dict[str, Any] = {"num_cpus": 2}
        options = validate_task_options(given)
        given["num_cpus"] = 7
        assert options.merged({}).resources == {"CPU": 2 * UNIT}

    def test_max_calls_belongs_to_the_decorator(self) -> None:
        with pytest.raises(ValueError, match=r"'max_calls' is not supported in .options\(\)"):
            validate_task_options({}).merged({"max_calls": 1})
        assert validate_task_options({"max_calls": 3}).merged({"num_cpus": 2}).max_calls == 3

    def test_retry_exceptions(self) -> None:
        assert validate_task_options({"retry_exceptions": True}).wants_retry(KeyError())
        assert not validate_task_options({"retry_exceptions": True}).wants_retry(KeyboardInterrupt())
        some = validate_task_options({"retry_exceptions": [LookupError, OSError]})
        assert some.retry_exceptions == (LookupError, OSError)
        assert some.wants_retry(KeyError())
        assert not some.wants_retry(ValueError())
        assert not validate_task_options({}).wants_retry(KeyError())

    def test_it_pickles(self) -> None:
        options = validate_task_options({"num_gpus": 1, "retry_exceptions": [KeyError]})
        copy = pickle.loads(pickle.dumps(options))
        assert copy.scheduling_key == options.scheduling_key
        assert copy.given == options.given
        assert copy.retry_exceptions == (KeyError,)

    def test_numpy_integers_are_integers(self) -> None:
        options = validate_task_options({"num_returns": np.int64(2), "max_retries": np.int32(1)})
        assert (options.num_returns, type(options.num_returns)) == (2, int)
        assert validate_task_options({"num_cpus": np.float64(0.5)}).resources == {"CPU": 5_000}


class TestOldName:
    def test_num_return_vals(self) -> None:
        with pytest.warns(DeprecationWarning, match="use num_returns=2"):
            options = validate_task_options({"num_return_vals": 2})
        assert options.num_returns == 2
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert options.merged({"num_cpus": 2}).num_returns == 2
        with pytest.warns(DeprecationWarning):
            assert options.merged({"num_return_vals": 3}).num_returns == 3
        with pytest.warns(DeprecationWarning):
            assert validate_method_options({"num_return_vals": 2}).num_returns == 2

    def test_both_names(self) -> None:
        with pytest.raises(ValueError, match="old name of num_returns"):
            validate_task_options({"num_return_vals": 2, "num_returns": 2})

    def test_actors_never_had_it(self) -> None:
        with pytest.raises(ValueError, match="num_return_vals=2 for an actor class"):
            validate_actor_options({"num_return_vals": 2})


BAD_FOR_ALL: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"num_cpus": -1}, ValueError, "num_cpus cannot be negative, got -1"),
    ({"num_cpus": math.nan}, ValueError, "num_cpus must be finite"),
    ({"num_cpus": 0.00001}, ValueError, r"num_cpus cannot go beyond 0\.0001"),
    ({"num_cpus": "1"}, TypeError, "num_cpus must be a number or None, got str: '1'"),
    ({"num_gpus": 1.5}, ValueError, "num_gpus above 1 must be a whole number"),
    ({"memory": -1}, ValueError, "memory cannot be negative"),
    ({"resources": {"CPU": 1}}, ValueError, "use the keyword num_cpus="),
    ({"resources": {"GPU": 1}}, ValueError, "use the keyword num_gpus="),
    ({"resources": {"x": -1}}, ValueError, "x cannot be negative"),
    ({"resources": {"x": "a"}}, TypeError, "x must be a number"),
    ({"resources": {1: 1}}, TypeError, "non-empty strings, got 1"),
    ({"resources": ["x"]}, TypeError, "resources must be a dict or None"),
    ({"name": 1}, TypeError, "name must be a str or None, got int: 1"),
    ({"accelerator_type": 1}, TypeError, "accelerator_type"),
    ({"bogus": 1}, ValueError, r"invalid option bogus=1 for .*; valid ones: .*num_cpus"),
    ({"runtime_env": "x"}, TypeError, "runtime_env must be a dict or None"),
    ({"runtime_env": {"env_vars": {"A": 1}}}, TypeError, r"must map str to str, got 'A': 1"),
    ({"runtime_env": {"env_vars": ["A"]}}, TypeError, "must be a dict of str to str"),
    ({"runtime_env": {"pip": ["x"]}}, NotImplementedError, r"runtime_env\['pip'\] is not implemented"),
    ({"scheduling_strategy": "PACK"}, ValueError, "'DEFAULT' or 'SPREAD', got 'PACK'"),
    ({"scheduling_strategy": 5}, TypeError, "scheduling_strategy"),
    ({"scheduling_strategy": NodeAffinitySchedulingStrategy("ab")}, ValueError, "56 hexadecimal digits"),
    ({"scheduling_strategy": NodeAffinitySchedulingStrategy(5)}, TypeError, "node_id"),
    ({"placement_group": 5}, TypeError, "must be a PlacementGroup, 'default' or None, got int: 5"),
    ({"placement_group_bundle_index": 1}, ValueError, "index=1 says nothing without a placement_group"),
    ({"label_selector": {"a": "in("}}, ValueError, r"'in\(' is no condition"),
    ({"fallback_strategy": [{}]}, NotImplementedError, "fallback strategies are not implemented"),
    ({"enable_task_events": 1}, TypeError, "enable_task_events must be a bool"),
]
BAD_FOR_TASKS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"num_returns": -1}, ValueError, "num_returns must be >= 0, got -1"),
    ({"num_returns": "many"}, ValueError, "'streaming' or 'dynamic', got 'many'"),
    ({"num_returns": 1.5}, TypeError, "num_returns must be an int or None, got float: 1.5"),
    ({"num_returns": True}, TypeError, "num_returns"),
    ({"max_retries": -2}, ValueError, "max_retries accepts None, 0, -1"),
    ({"max_retries": 2**31}, ValueError, "max_retries is at most 2147483647, got 2147483648: say -1"),
    ({"max_retries": 1.0}, TypeError, "max_retries"),
    ({"max_calls": -1}, ValueError, "max_calls accepts None, 0 or a positive integer, got -1"),
    ({"retry_exceptions": 1}, TypeError, "a bool or a list of exception types"),
    ({"retry_exceptions": ValueError}, TypeError, "a bool or a list of exception types"),
    ({"retry_exceptions": [1]}, ValueError, "got 1 in it"),
    ({"retry_exceptions": [KeyboardInterrupt]}, ValueError, "KeyboardInterrupt"),
    ({"_generator_backpressure_num_objects": 0}, ValueError, "use a value > 0"),
    ({"_generator_backpressure_num_objects": -2}, ValueError, "use a value > 0"),
    ({"_generator_backpressure_num_objects": 1.5}, TypeError, "_generator_backpressure"),
    ({"max_restarts": 1}, ValueError, "invalid option max_restarts=1 for a remote function"),
    ({"max_concurrency": 2}, ValueError, "invalid option max_concurrency"),
    ({"lifetime": "detached"}, ValueError, "invalid option lifetime"),
]
BAD_FOR_ACTORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"max_restarts": -2}, ValueError, "max_restarts accepts None, 0, -1"),
    ({"max_restarts": "a"}, TypeError, "max_restarts"),
    ({"max_task_retries": -2}, ValueError, "max_task_retries"),
    ({"max_concurrency": -1}, ValueError, "max_concurrency"),
    ({"max_concurrency": 1.5}, TypeError, "max_concurrency"),
    ({"max_pending_calls": -2}, ValueError, "max_pending_calls"),
    ({"name": ""}, ValueError, "name must not be empty"),
    ({"name": 1}, TypeError, "name must be a str"),
    ({"namespace": ""}, ValueError, "namespace must not be empty"),
    ({"namespace": 1}, TypeError, "namespace must be a str"),
    ({"lifetime": "forever"}, ValueError, "'detached' or 'non_detached', got 'forever'"),
    ({"get_if_exists": True}, ValueError, "needs a name"),
    ({"get_if_exists": 1, "name": "a"}, TypeError, "get_if_exists must be a bool"),
    ({"concurrency_groups": "a"}, TypeError, "concurrency_groups"),
    ({"concurrency_groups": {"a": 0}}, ValueError, "group 'a' needs at least 1 thread, got 0"),
    ({"concurrency_groups": {"a": "b"}}, TypeError, r"concurrency_groups\['a'\]"),
    ({"concurrency_groups": {1: 1}}, TypeError, "group names"),
    ({"concurrency_groups": [{"name": "a"}]}, ValueError, "'name' and 'max_concurrency'"),
    ({"max_calls": 1}, ValueError, "invalid option max_calls=1 for an actor class"),
    ({"max_retries": 1}, ValueError, "invalid option max_retries"),
    ({"num_returns": 1}, ValueError, "invalid option num_returns"),
]


def named(rows: list[tuple[dict[str, Any], type[Exception], str]]) -> dict[str, Any]:
    return {
        "argnames": ("given", "error", "text"),
        "argvalues": rows,
        "ids": ["-".join(row[0]) + f"-{n}" for n, row in enumerate(rows)],
    }


@pytest.mark.parametrize(**named(BAD_FOR_ALL + BAD_FOR_TASKS))
def test_bad_task_options(given: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        validate_task_options(given)
    if "max_calls" not in given:  # that one is refused in .options() anyway
        with pytest.raises(error, match=text):
            validate_task_options({}).merged(given)


@pytest.mark.parametrize(**named(BAD_FOR_ALL + BAD_FOR_ACTORS))
def test_bad_actor_options(given: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        validate_actor_options(given)


class TestCommon:
    def test_scheduling_strategies(self) -> None:
        assert validate_task_options({"scheduling_strategy": "DEFAULT"}).strategy is None
        assert validate_actor_options({"scheduling_strategy": "SPREAD"}).strategy == "SPREAD"
        node = "ab" * 28
        options = validate_task_options({"scheduling_strategy": NodeAffinitySchedulingStrategy(node, True)})
        assert options.strategy == ("affinity", bytes.fromhex(node), True)
        hash(options.scheduling_key)

    def test_runtime_env(self) -> None:
        given = {"runtime_env": {"env_vars": {"A": "1"}, "pip": None, "config": {}}}
        assert validate_task_options(given).env_vars == {"A": "1"}
        assert validate_actor_options(given).env_vars == {"A": "1"}
        assert validate_task_options({"runtime_env": {}}).env_vars == {}
        assert option_checks.runtime_env("runtime_env", None) is None

    def test_what_is_accepted_and_has_no_effect(self) -> None:
        accepted: list[dict[str, Any]] = [
            {"placement_group": None},
            {"placement_group": "default", "placement_group_bundle_index": -1},
            {"placement_group_capture_child_tasks": False},
            {"label_selector": {}},
            {"_labels": {"a": "b"}},
            {"_metadata": {"a": 1}},
            {"enable_task_events": False},
        ]
        for given in accepted:
            validate_task_options(given)
            validate_actor_options(given)


class TestActor:
    def test_defaults(self) -> None:
        options = validate_actor_options({})
        assert options.placement_resources == {"CPU": UNIT}
        assert options.lifetime_resources == {}
        assert (options.max_restarts, options.max_task_retries, options.max_pending_calls) == (0, 0, -1)
        assert (options.max_concurrency, options.concurrency_groups) == (None, {})
        assert (options.name, options.namespace, options.detached) == (None, None, False)

    @pytest.mark.parametrize(
        ("given", "placement", "lifetime"),
        [
            # Memory alone leaves the default: a CPU to be placed, none to live.
            ({"memory": 5}, {"CPU": UNIT, "memory": 5 * UNIT}, {"memory": 5 * UNIT}),
            # Any other explicit resource makes it one CPU for life.
            ({"num_gpus": 1}, {"CPU": UNIT, "GPU": UNIT}, {"CPU": UNIT, "GPU": UNIT}),
            ({"num_gpus": 0}, {"CPU": UNIT}, {"CPU": UNIT}),
            ({"resources": {"x": 1}}, {"CPU": UNIT, "x": UNIT}, {"CPU": UNIT, "x": UNIT}),
            ({"resources": {}}, {"CPU": UNIT}, {}),
            # What is said about CPUs holds for both.
            ({"num_cpus": 0}, {}, {}),
            ({"num_cpus": 2}, {"CPU": 2 * UNIT}, {"CPU": 2 * UNIT}),
            ({"num_cpus": 0, "num_gpus": 0.5}, {"GPU": 5_000}, {"GPU": 5_000}),
        ],
    )
    def test_placement_and_lifetime(
        self, given: dict[str, Any], placement: dict[str, int], lifetime: dict[str, int]
    ) -> None:
        options = validate_actor_options(given)
        assert options.placement_resources == placement
        assert options.lifetime_resources == lifetime

    def test_names(self) -> None:
        options = validate_actor_options(
            {"name": "a", "namespace": "n", "lifetime": "detached", "get_if_exists": True}
        )
        assert (options.name, options.namespace) == ("a", "n")
        assert options.detached
        assert options.get_if_exists
        assert not validate_actor_options({"lifetime": "non_detached"}).detached

    def test_get_if_exists_takes_its_name_from_either_place(self) -> None:
        assert validate_actor_options({"name": "a"}).merged({"get_if_exists": True}).get_if_exists

    def test_zero_means_the_default(self) -> None:
        options = validate_actor_options({"max_concurrency": 0, "max_pending_calls": 0})
        assert (options.max_concurrency, options.max_pending_calls) == (None, -1)

    def test_concurrency_groups(self) -> None:
        assert validate_actor_options({"concurrency_groups": {"io": 2}}).concurrency_groups == {"io": 2}
        listed = [{"name": "io", "max_concurrency": 2}]
        assert validate_actor_options({"concurrency_groups": listed}).concurrency_groups == {"io": 2}
        with pytest.raises(ValueError, match=r"not supported in .options\(\)"):
            validate_actor_options({}).merged({"concurrency_groups": {"io": 2}})

    def test_it_pickles(self) -> None:
        options = validate_actor_options({"num_cpus": 2, "name": "a"})
        assert pickle.loads(pickle.dumps(options)).lifetime_resources == {"CPU": 2 * UNIT}


class TestMethod:
    def test_what_is_not_said_is_none(self) -> None:
        options = validate_method_options({})
        assert options.given == {}
        assert options.num_returns is None
        assert options.max_task_retries is None
        assert options.retry_exceptions is None
        assert options.backpressure is None
        assert not options.wants_retry(KeyError())

    def test_options_beat_the_decorator_per_key(self) -> None:
        declared = validate_method_options({"num_returns": 2, "concurrency_group": "io"})
        called = declared.merged({"num_returns": 3, "name": "x", "retry_exceptions": [KeyError]})
        assert (called.num_returns, called.concurrency_group, called.name) == (3, "io", "x")
        assert called.wants_retry(KeyError())
        assert declared.num_returns == 2
        assert called.merged({"num_returns": 4}).name == "x"

    @pytest.mark.parametrize(
        ("given", "error"),
        [
            ({"name": "x"}, ValueError),
            ({"num_cpus": 1}, ValueError),
            ({"max_retries": 1}, ValueError),
            ({"num_returns": -1}, ValueError),
            ({"concurrency_group": 1}, TypeError),
            ({"max_task_retries": -2}, ValueError),
            ({"retry_exceptions": 1}, TypeError),
            ({"_generator_backpressure_num_objects": 0}, ValueError),
        ],
    )
    def test_bad_ones(self, given: dict[str, Any], error: type[Exception]) -> None:
        with pytest.raises(error, match=next(iter(given))):
            validate_method_options(given)


class TestNumReturns:
    @pytest.mark.parametrize(
        ("num_returns", "is_generator", "expected"),
        [
            (None, False, 1),
            (None, True, "streaming"),
            (0, False, 0),
            (3, True, 3),
            ("streaming", True, "streaming"),
            ("dynamic", True, "dynamic"),
        ],
    )
    def test_meaning(self, num_returns: int | str | None, is_generator: bool, expected: int | str) -> None:
        assert resolve_num_returns(num_returns, is_generator, "f") == expected

    @pytest.mark.parametrize("num_returns", ["streaming", "dynamic"])
    def test_generators_only(self, num_returns: str) -> None:
        with pytest.raises(ValueError, match=r"generator functions .*: 'f' is not"):
            resolve_num_returns(num_returns, False, "'f'")
