"""Actors at the processes that create, find, call and kill them."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any

from minray.object_ref import ObjectRef, make_ref
from minray.worker.contract import ActorClassDef, ActorRecord, MethodMeta
from minray.worker.core import PICKLED_NONE
from minray.worker.functions import dumps_function
from minray.worker.references import INLINE, STORED
from minray.worker.serialization import serialize
from minray.worker.streams import StreamOps

if TYPE_CHECKING:
    from minray._base.options import ActorOptions

ASYNC_CONCURRENCY = 1000


class ActorOps(StreamOps):
    """create_actor, get_actor, adopt_actor, kill_actor of the contract."""

    def create_actor(
        self, actor_class: ActorClassDef, options: ActorOptions, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ActorRecord:
        """See the contract."""
        self.must_not_wait("creating an actor")
        if self.captured is not None and options.inherits:
            options = options.within(self.captured, f"actor {actor_class.name}")
        self.check_group(options.group, actor_class.name, actor=True)
        exported = actor_class.exported
        if exported is None or exported[0] != self.job_id:
            blob = dumps_function(actor_class.cls, actor_class.name)
            meta = dumps_function(actor_class.methods, actor_class.name)
            exported = actor_class.exported = (self.job_id, blob, meta)
        actor_id = os.urandom(12) + self.job_id
        handle_id, payload = self._hold_constructor_arguments(args, kwargs)
        spec = self._make_spec(actor_id, actor_class, options, exported, payload)
        counted = make_ref(handle_id, None, self)
        handle_ref: ObjectRef[Any] | None = counted
        if options.detached:
            # Not counted; but what its constructor was given must be there for restarts, as long as we live.
            self.core.refs.pin_forever(handle_id)
            handle_ref = None
        del counted
        with self.lock:  # before the GCS knows of it: where a worker is idle, ALIVE comes right after the reply
            self._client(actor_id, actor_class.name, spec["options"])
        created = False
        try:
            info = self.ask_gcs("create_actor", spec)
            created = info.get("created", True)
        finally:
            if not created:
                with self.lock:
                    self.core.calls.actors.pop(actor_id, None)
        if not created:
            return self._weak_record(info)  # handle_ref goes, and with it the spec's references
        with self.lock:
            if not options.detached:
                self._actor_refs[handle_id] = actor_id
                self.core.hold_creation(actor_id, handle_id)
        return ActorRecord(
            actor_id, self.job_id, actor_class.name, actor_class.methods, spec["options"], handle_ref, self
        )

    def _make_spec(
        self,
        actor_id: bytes,
        actor_class: ActorClassDef,
        options: ActorOptions,
        exported: tuple[Any, ...],
        payload: Any,
    ) -> dict[str, Any]:
        """What the GCS, the node and the actor's worker need to know: built-in values only."""
        max_concurrency = options.max_concurrency
        if max_concurrency is None:
            max_concurrency = ASYNC_CONCURRENCY if actor_class.is_async else 1
        identity = {
            "name": options.name,
            "namespace": options.namespace if options.namespace is not None else self.namespace,
            "lifetime": "detached" if options.detached else None,
        }
        return {
            **identity,
            "actor_id": actor_id,
            "job_id": self.job_id,
            "owner": self.core.me,
            "class_name": actor_class.name,
            "class_blob": exported[1],
            "method_meta": exported[2],
            "args": payload,
            "placement_resources": dict(options.placement_resources),
            "lifetime_resources": dict(options.lifetime_resources),
            "strategy": options.strategy,
            "placement_group": self.group_for(options.group),
            "env_vars": {**self.env_vars, **options.env_vars},  # wherever it will be, it inherits them
            "options": {
                **identity,
                "get_if_exists": options.get_if_exists,
                "max_restarts": options.max_restarts,
                "max_task_retries": options.max_task_retries,
                "max_pending_calls": options.max_pending_calls,
                "max_concurrency": max_concurrency,
                "concurrency_groups": dict(options.concurrency_groups),
                "is_async": actor_class.is_async,
                "allow_out_of_order_execution": options.allow_out_of_order_execution,
                "module": actor_class.module,
                "depth": self.depth + 1,
            },
        }

    def _hold_constructor_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, Any]:
        """The hidden object that counts an actor's handles and holds what its constructor was given, and the
        constructor's payload."""
        core = self.core
        me = core.me
        s = serialize((args, kwargs), self.config.inline_limit)
        refs = [(self._checked(r), r._owner or me, False) for r in s.refs]
        inner = tuple(r[0] for r in refs)
        handle_id = core.object_id(core.next_seq(), 0)
        large_id = core.object_id(core.next_seq(), 0)
        payload: Any = None
        if s.total > self.config.inline_limit:
            stored = self.write(s, large_id)
            self.store.report([(large_id, stored[0])])
            payload = ("stored", (*stored, refs), large_id, me)
        with self.lock:
            if payload is not None:
                large = core.refs.own(large_id)
                large.status, large.value, large.shared = STORED, payload[1], True
                core.refs.set_contains(large, inner)
                inner = (large_id,)
            else:
                payload = (s.data, [bytes(b) for b in s.buffers], refs)
            record = core.refs.own(handle_id)
            record.status, record.value = INLINE, PICKLED_NONE
            record.task = "actor"  # so that the core says when it is freed
            core.refs.set_contains(record, inner)
            if inner == (large_id,):
                core.refs.drop(large_id)  # held by the handle from now on
            self.leave()
        return handle_id, payload

    def _client(self, actor_id: bytes, class_name: str, options: dict[str, Any]) -> Any:
        eager = bool(options.get("is_async") or options.get("concurrency_groups"))
        return self.core.calls.client(
            actor_id,
            class_name,
            max_pending=options.get("max_pending_calls", -1),
            eager=eager or options.get("max_concurrency", 1) > 1,
        )

    def _weak_record(self, info: dict[str, Any]) -> ActorRecord:
        methods: dict[str, MethodMeta] = pickle.loads(info["method_meta"])
        return self.adopt_actor(
            info["actor_id"], info["job_id"], info["class_name"], methods, info["options"], None
        )

    def adopt_actor(
        self,
        actor_id: bytes,
        job_id: bytes,
        class_name: str,
        methods: dict[str, MethodMeta],
        options: dict[str, Any],
        handle_ref: ObjectRef[Any] | None,
    ) -> ActorRecord:
        """See the contract."""
        with self.lock:
            known = actor_id in self.core.calls.actors
            if not known:
                self._client(actor_id, class_name, options)
                self.tell_gcs("subscribe_actor", actor_id)
            self.leave()
        return ActorRecord(actor_id, job_id, class_name, methods, options, handle_ref, self)

    def get_actor(self, name: str, namespace: str | None) -> ActorRecord:
        """See the contract."""
        info = self.ask_gcs("get_actor", name, self.namespace if namespace is None else namespace)
        return self._weak_record(info)

    def kill_actor(self, actor_id: bytes, no_restart: bool) -> None:
        """See the contract."""
        self.ask_gcs("kill_actor", actor_id, no_restart)
