"""Placement groups at the processes that submit into them, run in them and wait for them.

A task or actor that runs in a group and captures its children puts what it submits into the same group, unless
that says something else. So a process has, at each moment, a group that ``captured`` names, or none: in a worker that
of the running task, or of its actor for life.

Part of the runtime (between objects and submission); ``captured_by`` is for the executors. Invariant: a group
travels as ``(group_id, index, capture, bundles)`` with ``capture`` decided, and with bundles only where children need
them to be checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minray._base import log
from minray._base.groups import ANY_BUNDLE, GONE, READY_TASK, GroupTarget, different
from minray.exceptions import ActorPlacementGroupRemoved, TaskPlacementGroupRemoved
from minray.wire.messages import Request, pack
from minray.worker.link import Answer
from minray.worker.waiting import WaitOps

CREATE, REMOVE = "create_placement_group", "remove_placement_group"
REMEMBERED = 10_000  # groups that this process has removed


def captured_by(group: tuple[Any, ...] | None) -> GroupTarget | None:
    """Where the children of something that runs in ``group`` go by themselves."""
    if group is None or not group[2]:
        return None
    return GroupTarget(group[0], ANY_BUNDLE, True, group[3])


class _Unawaited(Answer):
    """The GCS's answer to a creation or removal that this process goes on without."""

    __slots__ = ()

    def arrived(self) -> None:
        if not self.ok:
            log.warning("minray: %s", self.value[1])
        elif isinstance(self.value, dict):
            warn_of(self.value)


def warn_of(created: dict[str, Any]) -> None:
    """Say that no node could ever hold the group, if the answer to its creation says so."""
    if created["warning"] is not None:
        log.warning("minray: %s", created["warning"])


class GroupOps(WaitOps):
    """create_group, wait_for_group and remove_group of the contract, and what submissions need to know."""

    captured: GroupTarget | None = None
    scoped = False  # whether a submission has to look at ``captured`` and ``removed_groups``
    removed_groups: dict[bytes, None]  # by this process, lately
    _removal: Answer | None = None  # the last that was not waited for

    def enter_scope(self, captured: GroupTarget | None) -> None:
        """From now on a task runs here whose children go there by themselves."""
        self.captured = captured
        self.scoped = captured is not None or bool(self.removed_groups)

    def group_for(self, target: GroupTarget | None) -> tuple[Any, ...] | None:
        """``target`` as it travels with a task or actor that is submitted here and now."""
        if target is None:
            return None
        capture = self.captured is not None if target.capture is None else target.capture
        return (target.group_id, target.index, capture, different(target.bundles) if capture else ())

    def check_group(self, target: GroupTarget | None, name: str, *, actor: bool = False) -> None:
        """Raise if it is known here that the group is gone. (Else whoever waits hears it.)"""
        if target is not None and target.group_id in self.removed_groups and name != READY_TASK:
            text = f"{GONE}: placement group {target.group_id.hex()} was removed: make another one"
            if actor:
                raise ActorPlacementGroupRemoved(f"The actor {name} cannot be placed: {text}")
            raise TaskPlacementGroupRemoved(f"Task {name} cannot run: {text}")

    def create_group(self, spec: dict[str, Any]) -> Callable[[], None] | None:
        """See the contract. What can be refused (a name) or must outlive this process is waited for; the rest is
        only sent: whatever else this process asks of the GCS comes after it."""
        if spec["name"] or spec["lifetime"] is not None:
            warn_of(self.request(self.gcs_link, CREATE, (spec,), None))
            return None
        made, _ = self._ask_gcs(_Unawaited(), CREATE, spec)

        def settle() -> None:
            self._await_order(made)
            if not made.ok and not self.closed:
                raise self.named_error(*made.value)

        return settle

    def _ask_gcs(self, answer: Answer, method: str, *args: Any) -> tuple[Answer, int]:
        """Send a request, and do not wait: the Answer that will hear of it, and its number."""
        with self.lock:
            if self.closed or self.gcs_link.closed:
                raise self.over()
            self._request_no += 1
            number = self._request_no
            self._answers[number] = answer
            self.leave()
            self.gcs_link.send(pack(Request(number, method, args)))
        return answer, number

    def _await_order(self, answer: Answer) -> None:
        """Until the GCS has answered this one: it answers in order."""
        if not answer.done:
            self.request(self.gcs_link, "list_placement_groups", (b"",), None)

    def settle_removals(self) -> None:
        """Until the groups that this process has removed are: before it asks what is free."""
        last = self._removal
        if last is not None:
            self._await_order(last)
            self._removal = None

    def wait_for_group(self, group_id: bytes, timeout: float | None) -> bool:
        """See the contract."""
        self.must_not_wait("PlacementGroup.wait()")
        answer, number = self._ask_gcs(Answer(), "wait_placement_group", group_id)
        try:
            done = self.wait_in_user_code(self.reactor.wait, answer, timeout)
        finally:
            with self.lock:
                self._answers.pop(number, None)
        if not done:
            self.tell_gcs("unwait_placement_group", group_id, number)
            return False
        if answer.ok:
            return True
        raise self.named_error(*answer.value)

    def remove_group(self, group_id: bytes, *, wait: bool) -> Callable[[], None] | None:
        """See the contract."""
        settle = None
        if wait:
            self.request(self.gcs_link, REMOVE, (group_id,), None)
        else:
            last = self._removal = self._ask_gcs(_Unawaited(), REMOVE, group_id)[0]

            def settle() -> None:
                self._await_order(last)

        removed = self.removed_groups
        removed[group_id] = None
        self.scoped = True
        if len(removed) > REMEMBERED:
            del removed[next(iter(removed))]
        return settle
