"""Checks of single option values, one function each: ``(name, value) -> the value to keep``.

Used by the tables in ``options.py``, and ``runtime_env`` by ``init()`` too; where things run is in
``placement_checks``. None means "not said" wherever Ray accepts it. A wrong type is a TypeError, a wrong value
a ValueError, a feature that minray does not have yet a NotImplementedError that names it; each message names the
option and the value.

Invariant: no check changes its argument.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from minray._base.resources import UNIT, quantity_to_units, to_units

MOST = 2**31 - 1  # of anything that is counted down: nobody who asks for more means it


def wrong_type(name: str, value: Any, expected: str) -> NoReturn:
    """Raise the TypeError for an option of a wrong type."""
    raise TypeError(f"option {name} must be {expected}, got {type(value).__name__}: {value!r}")


def optional_str(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        wrong_type(name, value, "a str or None")
    return value


def optional_dict(name: str, value: Any) -> dict[Any, Any] | None:
    if value is not None and not isinstance(value, dict):
        wrong_type(name, value, "a dict or None")
    return value


def optional_bool(name: str, value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        wrong_type(name, value, "a bool or None")
    return value


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        wrong_type(name, value, "a bool")
    return value


def integer(name: str, value: Any) -> int | None:
    """A whole number; numpy's integers count."""
    if value is None:
        return None
    if isinstance(value, bool):
        wrong_type(name, value, "an int or None")
    try:
        return operator.index(value)
    except TypeError:
        wrong_type(name, value, "an int or None")


def count(name: str, value: Any) -> int | None:
    number = integer(name, value)
    if number is not None and number < 0:
        raise ValueError(f"option {name} accepts None, 0 or a positive integer, got {value!r}")
    return number


def count_or_infinite(name: str, value: Any) -> int | None:
    number = integer(name, value)
    if number is not None and number < -1:
        raise ValueError(
            f"option {name} accepts None, 0, -1 or a positive integer, where -1 means without limit, "
            f"got {value!r}"
        )
    if number is not None and number > MOST:
        raise ValueError(f"option {name} is at most {MOST}, got {value!r}: say -1 for without limit")
    return number


def quantity(name: str, value: Any) -> float | None:
    """An amount of a resource: not negative, finite, not finer than 0.0001."""
    if value is None:
        return None
    if isinstance(value, (bool, str, bytes)):
        wrong_type(name, value, "a number or None")
    quantity_to_units(name, value)
    return value  # type: ignore[no-any-return]


def gpu_quantity(name: str, value: Any) -> float | None:
    amount = quantity(name, value)
    if amount is not None:
        units = quantity_to_units(name, amount)
        if units > UNIT and units % UNIT:
            raise ValueError(f"option {name} above 1 must be a whole number of GPUs, got {value!r}")
    return amount


def custom_resources(name: str, value: Any) -> dict[str, float] | None:
    given = optional_dict(name, value)
    if given is None:
        return None
    to_units(given, custom=True)
    return dict(given)


def num_returns(name: str, value: Any) -> int | str | None:
    if value is None or value in ("streaming", "dynamic"):
        return value  # type: ignore[no-any-return]
    if isinstance(value, str):
        raise ValueError(f"option {name} accepts an int, 'streaming' or 'dynamic', got {value!r}")
    number = integer(name, value)
    if number is not None and number < 0:
        raise ValueError(f"option {name} must be >= 0, got {value!r}")
    return number


def backpressure(name: str, value: Any) -> int | None:
    number = integer(name, value)
    if number is not None and (number == 0 or number < -1):
        raise ValueError(
            f"option {name}={value!r} is not allowed: use a value > 0 (1 behaves like a plain generator: one "
            "item at a time), or -1 for no limit"
        )
    return number


def retry_exceptions(name: str, value: Any) -> bool | tuple[type[BaseException], ...]:
    if isinstance(value, bool):
        return value
    if not isinstance(value, (list, tuple)):
        wrong_type(name, value, "a bool or a list of exception types")
    for item in value:
        if not (isinstance(item, type) and issubclass(item, Exception)):
            raise ValueError(f"option {name} must be a bool or a list of exception types, got {item!r} in it")
    return tuple(value)


def actor_name(name: str, value: Any) -> str | None:
    text = optional_str(name, value)
    if text == "":
        raise ValueError(f"option {name} must not be empty: leave it out or pass None for no {name}")
    return text


def lifetime(name: str, value: Any) -> str | None:
    text = optional_str(name, value)
    if text not in (None, "detached", "non_detached"):
        raise ValueError(f"actor option {name} must be None, 'detached' or 'non_detached', got {value!r}")
    return text


def concurrency_groups(name: str, value: Any) -> dict[str, int] | None:
    """``{"io": 2}``, or the list form ``[{"name": "io", "max_concurrency": 2}]``."""
    if value is None:
        return None
    if isinstance(value, list):
        try:
            value = {group["name"]: group["max_concurrency"] for group in value}
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"option {name} as a list holds dicts with 'name' and 'max_concurrency', got {value!r}"
            ) from error
    if not isinstance(value, dict):
        wrong_type(name, value, "a dict of group name to number of threads")
    groups: dict[str, int] = {}
    for group, size in value.items():
        if not isinstance(group, str) or not group:
            raise TypeError(f"option {name}: group names are non-empty strings, got {group!r}")
        number = integer(f"{name}[{group!r}]", size)
        if number is None or number < 1:
            raise ValueError(f"option {name}: group {group!r} needs at least 1 thread, got {size!r}")
        groups[group] = number
    return groups


def runtime_env(name: str, value: Any) -> dict[str, str] | None:
    """The environment variables of a ``runtime_env`` (a dict, or an object that is a Mapping)."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        wrong_type(name, value, "a dict or None")
    for key, setting in value.items():
        if key != "env_vars" and setting:
            raise NotImplementedError(
                f"{name}[{key!r}] is not implemented in minray yet (got {setting!r}); only 'env_vars' is"
            )
    env_vars = value.get("env_vars") or {}
    if not isinstance(env_vars, dict):
        raise TypeError(f"{name}['env_vars'] must be a dict of str to str, got {env_vars!r}")
    for key, setting in env_vars.items():
        if not isinstance(key, str) or not isinstance(setting, str):
            raise TypeError(f"{name}['env_vars'] must map str to str, got {key!r}: {setting!r}")
    return dict(env_vars)


def not_yet(feature: str) -> Callable[[str, Any], None]:
    """A check for an option whose feature is still to be built: only None and empty pass."""

    def checker(name: str, value: Any) -> None:
        if value is not None and value != {} and value != []:
            raise NotImplementedError(f"{feature} are not implemented in minray yet: option {name}={value!r}")

    return checker
