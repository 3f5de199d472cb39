"""Actors at the processes that create, find, call and kill them."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any

from minray.object_ref import ObjectRef, make_ref
from minray.worker.contract import ActorClassDef, ActorRecord, MethodMeta
from minray.worker.core import PICKLED_NONE, new_actor_client
from minray.worker.functions import dumps_function
from minray.worker.references import INLINE
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
        exported = actor_class.exported
        if exported is None or exported[0] != self.job_id:
            blob = dumps_function(actor_class.cls, actor_class.name)
            meta = dumps_function(actor_class.methods, actor_class.name)
            exported = actor_class.exported = (self.job_id, blob, meta)
        actor_id = os.urandom(12) + self.job_id
        handle_id, spec = self._make_spec(actor_id, actor_class, options, exported, args, kwargs)
        # A detached actor is not counted, but its arguments live as long as this process: see docs/ownership.md.
        handle_ref = make_ref(handle_id, None, self)
        if options.detached:
            self.core.refs.pin_forever(handle_id)
            handle_ref = None
        info = self.request(self.gcs_link, "create_actor", (spec,), None)
        if not info.get("created", True):
            return self._weak_record(info)  # handle_ref goes, and with it the spec's references
        with self.lock:
            if not options.detached:
                self._actor_refs[handle_id] = actor_id
            self._client(actor_id, actor_class.name, spec["options"])
        return ActorRecord(
            actor_id, self.job_id, actor_class.name, actor_class.methods, spec["options"], handle_ref, self
        )

    def _make_spec(
        self,
        actor_id: bytes,
        actor_class: ActorClassDef,
        options: ActorOptions,
        exported: tuple[Any, ...],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[bytes, dict[str, Any]]:
        """The spec for the GCS, and the hidden object that counts handles and holds the arguments."""
        core = self.core
        s = serialize((args, kwargs))
        me = core.me
        refs = [(self._checked(r), r._owner or me, False) for r in s.refs]
        stored = s.total > self.config.inline_limit
        payload: Any
        if stored:
            large_id = core.object_id(core.next_seq(), 0)
            payload = ("stored", (*self.write(large_id, s), refs), large_id, me)
            self.store.report([large_id], me[1])
        else:
            payload = (s.data, [bytes(b) for b in s.buffers], refs)
        seq = core.next_seq()
        handle_id = core.object_id(seq, 0)
        with self.lock:
            inner = tuple(r[0] for r in refs)
            if stored:
                large = core.refs.own(payload[2], local=0)
                large.status, large.value, large.shared = 2, payload[1], True
                core.refs.hold(payload[2])
                core.refs.set_contains(large, inner)
                inner = (payload[2],)
            record = core.refs.own(handle_id)
            record.status, record.value = INLINE, PICKLED_NONE
            core.refs.set_contains(record, inner)
            if stored:
                core.refs.unhold(payload[2])
            record.task = "actor"  # so that the core says when it is freed
            self.leave()
        max_concurrency = options.max_concurrency
        if max_concurrency is None:
            max_concurrency = ASYNC_CONCURRENCY if actor_class.is_async else 1
        namespace = options.namespace if options.namespace is not None else self.namespace
        spec = {
            "actor_id": actor_id,
            "job_id": self.job_id,
            "owner": me,
            "name": options.name,
            "namespace": namespace,
            "lifetime": "detached" if options.detached else None,
            "class_name": actor_class.name,
            "class_blob": exported[1],
            "method_meta": exported[2],
            "args": payload,
            "placement_resources": dict(options.placement_resources),
            "lifetime_resources": dict(options.lifetime_resources),
            "strategy": options.strategy,
            "env_vars": dict(options.env_vars),
            "options": {
                "name": options.name,
                "namespace": namespace,
                "lifetime": "detached" if options.detached else None,
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
        return handle_id, spec

    def _client(self, actor_id: bytes, class_name: str, options: dict[str, Any]) -> Any:
        eager = bool(options.get("is_async") or options.get("concurrency_groups"))
        return new_actor_client(
            self.core,
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
        info = self.request(
            self.gcs_link, "get_actor", (name, self.namespace if namespace is None else namespace), None
        )
        return self._weak_record(info)

    def kill_actor(self, actor_id: bytes, no_restart: bool) -> None:
        """See the contract."""
        self.request(self.gcs_link, "kill_actor", (actor_id, no_restart), None)
