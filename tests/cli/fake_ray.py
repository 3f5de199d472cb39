"""Just enough of the API, serial and in process, for the benchmark's rows to run without a runtime.

Loaded by path under its own name, as any module that is compared. ``FAKE_RAY`` in the environment makes
it misbehave: ``raise`` (in get), ``die`` (in init), ``hang`` (in init).
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from types import SimpleNamespace
from typing import Any

__version__ = "0.0-fake"


class RayActorError(Exception):
    pass


class Group:
    def wait(self, timeout_seconds: float) -> bool:
        return True


util = SimpleNamespace(placement_group=lambda bundles: Group(), remove_placement_group=lambda group: None)
exceptions = SimpleNamespace(RayActorError=RayActorError)
sessions: list[str] = []


class Ref:
    def __init__(self, value: Any) -> None:
        self.value = value


def _call(function: Any, arguments: tuple[Any, ...]) -> Ref:
    value = function(*[a.value if isinstance(a, Ref) else a for a in arguments])
    return Ref(asyncio.run(value) if inspect.iscoroutine(value) else value)


class Method:
    def __init__(self, actor: Actor, name: str) -> None:
        self.actor, self.name = actor, name

    def remote(self, *arguments: Any) -> Ref:
        if self.actor._killed:
            return Ref(RayActorError("killed"))
        return _call(getattr(self.actor._instance, self.name), arguments)


class Actor:
    def __init__(self, instance: Any) -> None:
        self._instance, self._killed = instance, False

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)


class Remote:
    def __init__(self, target: Any) -> None:
        self.target = target

    def options(self, **_: Any) -> Remote:
        return self

    def remote(self, *arguments: Any) -> Any:
        if isinstance(self.target, type):
            return Actor(self.target(*arguments))
        return _call(self.target, arguments)


def remote(*arguments: Any, **_: Any) -> Any:
    return Remote(arguments[0]) if arguments else Remote


def init(**_: Any) -> None:
    mood = os.environ.get("FAKE_RAY")
    if mood == "die":
        print("the last words of the fake", flush=True)
        os._exit(3)
    if mood == "hang":
        time.sleep(600)
    sessions.append("open")


def shutdown() -> None:
    sessions.pop()


def put(value: Any) -> Ref:
    return Ref(value)


def get(refs: Any) -> Any:
    if os.environ.get("FAKE_RAY") == "raise":
        raise ValueError("the fake was told to raise")
    if isinstance(refs, list):
        return [get(ref) for ref in refs]
    if isinstance(refs.value, Exception):
        raise refs.value
    return refs.value


def wait(refs: list[Ref], *, num_returns: int = 1, **_: Any) -> tuple[list[Ref], list[Ref]]:
    return refs[:num_returns], refs[num_returns:]


def kill(actor: Actor) -> None:
    actor._killed = True


def cluster_resources() -> dict[str, float]:
    return {"CPU": 1.0}
