"""Options of tasks, actors and methods: what may be written, what it means.

``validate_task_options``, ``validate_actor_options`` and ``validate_method_options`` turn what a user wrote
(a decorator's or ``.options()``'s keywords) into a frozen value, or raise at that call: TypeError for a
wrong type, ValueError for a wrong value or an unknown name, NotImplementedError for a feature that minray
does not have yet. The checks of single values are in ``option_checks.py`` and ``placement_checks.py``.

The values are read on the hot path, so all that can be derived is a plain attribute made once: resources
in units, the scheduling key, the environment of the worker. In a placement group the resources have the
group's names (see ``groups``); ``within()`` puts what ``inherits`` into the group of whoever submits it. They also
remember what was ``given``: ``merged()`` lays new keywords over it, per key, and never changes the original.

Invariants: an options value is always valid and complete; ``given`` holds only what was written; equality
is identity (caches are keyed by the value itself).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from minray._base import option_checks as check
from minray._base import placement_checks as place
from minray._base.callsite import warn_user
from minray._base.groups import GroupTarget
from minray._base.placement_checks import Strategy as Strategy
from minray._base.placement_checks import hashable, whereabouts
from minray._base.resources import CPU, GPU, MEMORY, to_units

DEFAULT_MAX_RETRIES = 3
INFINITE = -1

RetryExceptions = bool | tuple[type[BaseException], ...]
Check = Callable[[str, Any], Any]

_COMMON: dict[str, Check] = {
    "name": check.optional_str,
    "num_cpus": check.quantity,
    "num_gpus": check.gpu_quantity,
    "memory": check.quantity,
    "resources": check.custom_resources,
    "accelerator_type": check.optional_str,
    "runtime_env": check.runtime_env,
    "scheduling_strategy": place.strategy,
    "label_selector": place.label_selector,
    "fallback_strategy": check.not_yet("fallback strategies"),
    "enable_task_events": check.boolean,
    "placement_group": place.placement_group,
    "placement_group_bundle_index": check.integer,
    "placement_group_capture_child_tasks": check.optional_bool,
    "_labels": check.optional_dict,
    "_metadata": check.optional_dict,
}
_CALL: dict[str, Check] = {
    "num_returns": check.num_returns,
    "retry_exceptions": check.retry_exceptions,
    "_generator_backpressure_num_objects": check.backpressure,
    "enable_task_events": check.boolean,
}
_TASK: dict[str, Check] = {
    **_COMMON,
    **_CALL,
    "max_calls": check.count,
    "max_retries": check.count_or_infinite,
}
_ACTOR: dict[str, Check] = {
    **_COMMON,
    "name": check.actor_name,
    "namespace": check.actor_name,
    "lifetime": check.lifetime,
    "get_if_exists": check.boolean,
    "concurrency_groups": check.concurrency_groups,
    "max_concurrency": check.count,
    "max_restarts": check.count_or_infinite,
    "max_task_retries": check.count_or_infinite,
    "max_pending_calls": check.count_or_infinite,
    "allow_out_of_order_execution": check.optional_bool,
}
_METHOD: dict[str, Check] = {
    **_CALL,
    "name": check.optional_str,
    "concurrency_group": check.optional_str,
    "max_task_retries": check.count_or_infinite,
}
_NOT_IN_OPTIONS = {"task": ("max_calls",), "actor": ("concurrency_groups",), "method": ()}


@dataclass(frozen=True, slots=True, eq=False)
class TaskOptions:
    """How to run a remote function."""

    given: dict[str, Any]
    name: str | None
    num_returns: int | str | None  # None: 1, or "streaming" for generators (see resolve_num_returns)
    max_calls: int  # 0: without limit
    max_retries: int  # -1: without limit
    retry_exceptions: RetryExceptions
    backpressure: int  # unconsumed items of a streaming generator that stop it; -1: without limit
    env_vars: dict[str, str]
    strategy: Strategy
    group: GroupTarget | None  # of a placement group
    inherits: bool  # it goes into the group of whoever submits it, if that captures
    plain_resources: dict[str, int]  # units, of all that running takes, as written
    resources: dict[str, int]  # the same, under the names of the group
    scheduling_key: tuple[Any, ...]  # equal keys can share leases (within a job)
    enable_task_events: bool

    def merged(self, updates: Mapping[str, Any]) -> TaskOptions:
        """These with ``updates`` (of ``.options()``) laid over them, per key."""
        return validate_task_options(_merge("task", self.given, updates))

    def within(self, target: GroupTarget, what: str) -> TaskOptions:
        """The same in a placement group. ValueError if ``what`` does not fit there."""
        target.check_fits(self.plain_resources, what)
        resources = target.rename(self.plain_resources)
        key = (tuple(sorted(resources.items())), *self.scheduling_key[1:])
        return replace(self, group=target, inherits=False, resources=resources, scheduling_key=key)

    def wants_retry(self, error: BaseException) -> bool:
        """Whether ``retry_exceptions`` covers what user code raised."""
        return covers(self.retry_exceptions, error)


@dataclass(frozen=True, slots=True, eq=False)
class ActorOptions:
    """How to create and keep an actor."""

    given: dict[str, Any]
    name: str | None
    namespace: str | None
    detached: bool
    get_if_exists: bool
    max_concurrency: int | None  # None: 1, or 1000 for asyncio actors
    concurrency_groups: dict[str, int]
    max_restarts: int  # -1: without limit
    max_task_retries: int  # -1: without limit
    max_pending_calls: int  # -1: without limit
    allow_out_of_order_execution: bool | None
    env_vars: dict[str, str]
    strategy: Strategy
    group: GroupTarget | None  # of a placement group
    inherits: bool  # it goes into the group of whoever creates it, if that captures
    plain_resources: tuple[dict[str, int], dict[str, int]]  # the two below, as written
    placement_resources: dict[str, int]  # units; a node must have them free for the actor to start
    lifetime_resources: dict[str, int]  # units that stay taken while it lives
    enable_task_events: bool

    def merged(self, updates: Mapping[str, Any]) -> ActorOptions:
        """These with ``updates`` (of ``.options()``) laid over them, per key."""
        return validate_actor_options(_merge("actor", self.given, updates))

    def within(self, target: GroupTarget, what: str) -> ActorOptions:
        """The same in a placement group. ValueError if ``what`` does not fit there."""
        placement, lifetime = self.plain_resources
        if placement != lifetime:
            what += " (which needs 1 CPU to be placed, unless it says num_cpus=0)"
        target.check_fits(placement, what)
        placement, lifetime = target.rename(placement), target.rename(lifetime)
        return replace(
            self, group=target, inherits=False, placement_resources=placement, lifetime_resources=lifetime
        )


@dataclass(frozen=True, slots=True, eq=False)
class MethodOptions:
    """How to call an actor's method. None: not said here, so the actor's value counts."""

    given: dict[str, Any]
    name: str | None
    num_returns: int | str | None
    concurrency_group: str | None
    max_task_retries: int | None
    retry_exceptions: RetryExceptions | None
    backpressure: int | None
    enable_task_events: bool | None

    def merged(self, updates: Mapping[str, Any]) -> MethodOptions:
        """These with ``updates`` (of ``.options()``) laid over them, per key."""
        return validate_method_options(_merge("method", self.given, updates), in_options=True)

    def wants_retry(self, error: BaseException) -> bool:
        """Whether ``retry_exceptions`` covers what user code raised."""
        return self.retry_exceptions is not None and covers(self.retry_exceptions, error)


def validate_task_options(given: Mapping[str, Any]) -> TaskOptions:
    """The meaning of a remote function's keywords. Raises TypeError, ValueError, NotImplementedError."""
    values = _checked("a remote function", _TASK, given)
    gpus = values.get("num_gpus") or 0
    max_calls = values.get("max_calls")
    if max_calls is None:
        # A process that has used a GPU keeps part of its memory: by default it serves one task only.
        max_calls = 1 if gpus > 0 else 0
    num_cpus = values.get("num_cpus")
    resources = _resources(values, 1 if num_cpus is None else num_cpus)
    env_vars: dict[str, str] = values.get("runtime_env") or {}
    max_retries = _or(values.get("max_retries"), DEFAULT_MAX_RETRIES)
    strategy, group, inherits = whereabouts(values)
    options = TaskOptions(
        given=dict(values["given"]),
        name=values.get("name"),
        num_returns=values.get("num_returns"),
        max_calls=max_calls,
        max_retries=max_retries,
        retry_exceptions=_or(values.get("retry_exceptions"), False),
        backpressure=_or(values.get("_generator_backpressure_num_objects"), INFINITE),
        env_vars=env_vars,
        strategy=strategy,
        group=None,
        inherits=inherits,
        plain_resources=resources,
        resources=resources,
        scheduling_key=(
            tuple(sorted(resources.items())),
            hashable(strategy),
            tuple(sorted(env_vars.items())),
            max_calls,
            max_retries == 0,
        ),
        enable_task_events=_or(values.get("enable_task_events"), True),
    )
    return options if group is None else options.within(group, "the task")


def validate_actor_options(given: Mapping[str, Any]) -> ActorOptions:
    """The meaning of an actor class's keywords. Raises TypeError, ValueError, NotImplementedError."""
    values = _checked("an actor class", _ACTOR, given)
    if values.get("get_if_exists") and values.get("name") is None:
        raise ValueError("get_if_exists=True needs a name: pass name=… too")
    placement, lifetime = _actor_resources(values)
    strategy, group, inherits = whereabouts(values)
    options = ActorOptions(
        given=dict(values["given"]),
        name=values.get("name"),
        namespace=values.get("namespace"),
        detached=values.get("lifetime") == "detached",
        get_if_exists=bool(values.get("get_if_exists")),
        max_concurrency=values.get("max_concurrency") or None,
        concurrency_groups=values.get("concurrency_groups") or {},
        max_restarts=_or(values.get("max_restarts"), 0),
        max_task_retries=_or(values.get("max_task_retries"), 0),
        # As in Ray, 0 also means: without limit.
        max_pending_calls=values.get("max_pending_calls") or INFINITE,
        allow_out_of_order_execution=values.get("allow_out_of_order_execution"),
        env_vars=values.get("runtime_env") or {},
        strategy=strategy,
        group=None,
        inherits=inherits,
        plain_resources=(placement, lifetime),
        placement_resources=placement,
        lifetime_resources=lifetime,
        enable_task_events=_or(values.get("enable_task_events"), True),
    )
    return options if group is None else options.within(group, "the actor")


def validate_method_options(given: Mapping[str, Any], *, in_options: bool = False) -> MethodOptions:
    """The meaning of ``@method(…)``'s keywords, or with ``in_options`` of a method's ``.options(…)``."""
    table = _METHOD if in_options else {name: c for name, c in _METHOD.items() if name != "name"}
    values = _checked("an actor's method", table, given)
    return MethodOptions(
        given=dict(values["given"]),
        name=values.get("name"),
        num_returns=values.get("num_returns"),
        concurrency_group=values.get("concurrency_group"),
        max_task_retries=values.get("max_task_retries"),
        retry_exceptions=values.get("retry_exceptions"),
        backpressure=values.get("_generator_backpressure_num_objects"),
        enable_task_events=values.get("enable_task_events"),
    )


def resolve_num_returns(num_returns: int | str | None, is_generator: bool, what: str) -> int | str:
    """What ``num_returns`` means for this function: a count, "streaming" or "dynamic".

    Raises:
        ValueError: "streaming" or "dynamic" for something that is not a generator function.
    """
    if num_returns is None:
        return "streaming" if is_generator else 1
    if isinstance(num_returns, str) and not is_generator:
        raise ValueError(
            f"num_returns={num_returns!r} can only be used with generator functions (functions that use "
            f"'yield'): {what} is not a generator function"
        )
    return num_returns


def _checked(what: str, table: Mapping[str, Check], given: Mapping[str, Any]) -> dict[str, Any]:
    """Checked values by name; under "given", what was written with old names made new."""
    written = _renamed(given) if "num_return_vals" in given and "num_returns" in table else dict(given)
    values: dict[str, Any] = {}
    for name, value in written.items():
        checker = table.get(name)
        if checker is None:
            raise ValueError(
                f"invalid option {name}={value!r} for {what}; valid ones: {', '.join(sorted(table))}"
            )
        values[name] = checker(name, value)
    values["given"] = written
    return values


def _renamed(given: Mapping[str, Any]) -> dict[str, Any]:
    written = dict(given)
    old = written.pop("num_return_vals")
    if "num_returns" in written:
        raise ValueError("num_return_vals is the old name of num_returns: pass only num_returns")
    warn_user(f"num_return_vals is deprecated: use num_returns={old!r}", DeprecationWarning)
    written["num_returns"] = old
    return written


def _merge(kind: str, base: Mapping[str, Any], updates: Mapping[str, Any]) -> dict[str, Any]:
    for name in _NOT_IN_OPTIONS[kind]:
        if name in updates:
            raise ValueError(f"setting {name!r} is not supported in .options(): write it in the decorator")
    merged = {**base, **updates}
    if "num_return_vals" in updates:
        merged.pop("num_returns", None)
    return merged


def _resources(values: Mapping[str, Any], num_cpus: float) -> dict[str, int]:
    quantities: dict[str, float] = {CPU: num_cpus, GPU: values.get("num_gpus") or 0}
    if values.get("memory"):
        quantities[MEMORY] = values["memory"]
    if values.get("accelerator_type"):
        # A token amount: the node that has such a device offers 1 of it.
        quantities[f"accelerator_type:{values['accelerator_type']}"] = 0.001
    quantities.update(values.get("resources") or {})
    return to_units(quantities)


def _actor_resources(values: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """Placement and lifetime resources: an actor that asks for nothing needs a CPU only to be placed."""
    num_cpus = values.get("num_cpus")
    if num_cpus is None:
        asks = any(values.get(name) is not None for name in ("num_gpus", "accelerator_type"))
        if not asks and not values.get("resources"):
            return _resources(values, 1), _resources(values, 0)
        num_cpus = 1
    resources = _resources(values, num_cpus)
    return resources, dict(resources)


def covers(retry_exceptions: RetryExceptions, error: BaseException) -> bool:
    """Whether a ``retry_exceptions`` option names this error."""
    if isinstance(retry_exceptions, bool):
        return retry_exceptions and isinstance(error, Exception)
    return isinstance(error, retry_exceptions)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
