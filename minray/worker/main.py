"""A worker process, from fork to end. Called by the zygote's child, or started by the spawn launcher.

    bootstrap → reactor, own listener → node (Register) → executor in the main thread → maybe an actor

``python -m minray.worker.main`` reads the bootstrap, a pickled dict of built-ins, from standard input.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from typing import Any, NoReturn

from minray._base import current
from minray._base.config import Config
from minray._base.process import own_identity
from minray._base.status_page import StatusPageWriter
from minray.wire.codec import decode
from minray.wire.messages import CreateActor, Hello, Register, Registered, pack
from minray.wire.reactor import Reactor
from minray.worker.actor_executor import ActorExecutor
from minray.worker.blas import BlasThreads
from minray.worker.endpoints import sibling_endpoint
from minray.worker.executor import Executor
from minray.worker.pickling import set_worker_path
from minray.worker.service import WorkerRuntime

REGISTER_S = 30.0


class Worker:
    """Puts a worker together."""

    def __init__(self, bootstrap: dict[str, Any]) -> None:
        self.bootstrap = bootstrap
        config = Config.from_dict(bootstrap["config"])
        reactor = Reactor.configured(  # spin_us=0: a worker that spins gains nothing, its driver does
            config, token=bootstrap["token"], spin_us=0, background=True, name="worker"
        )
        pid, started = own_identity()
        name = "w" + bootstrap["worker_id"][:6].hex()
        folder = bootstrap["session"]["dir"]
        endpoint = sibling_endpoint(bootstrap["node_endpoint"], folder, name, config.worker_ports)
        hello = Hello("worker", bootstrap["worker_id"], bootstrap["node_id"], b"", pid, started, endpoint)
        rt = self.rt = WorkerRuntime(reactor, config, hello)
        real = reactor.listen(endpoint, rt.accept)
        rt.hello = hello = Hello("worker", hello.worker_id, hello.node_id, b"", pid, started, real)
        rt.env_vars = dict(bootstrap["env_vars"])
        rt.blas = BlasThreads({**bootstrap["blas_said"], **rt.env_vars})
        rt.handle(CreateActor, self._on_create_actor)
        self.page = StatusPageWriter(bootstrap["status_page"], bootstrap["slot"])
        rt.prepare_executor = self._prepare
        rt.node = reactor.dial(bootstrap["node_endpoint"], hello, rt)
        rt.node.send(pack(Register(False, bootstrap["worker_number"], {})))

    def _prepare(self, _msg: Registered) -> None:
        """As soon as the core is there, and before any task can come."""
        rt = self.rt
        rt.executor = Executor(rt, self.page)
        rt.reactor.on_background_takeover = self._flush

    def _flush(self) -> None:
        who = self.rt.actor if self.rt.actor is not None else self.rt.executor
        who.flush()

    def _on_create_actor(self, _conn: Any, order: CreateActor) -> None:
        rt = self.rt
        rt.set_resources(order.spec["lifetime_resources"], order.resource_ids)
        rt.actor = ActorExecutor(rt, order, self.page)
        rt.executor.leave_loop(rt.actor.run)

    def run(self) -> NoReturn:
        """Serve until the end."""
        rt = self.rt
        registered = rt.await_registration(REGISTER_S)
        current.set(rt)
        set_worker_path(registered.job_config.get("sys_path"))
        cwd = registered.job_config.get("cwd")
        if cwd and os.path.isdir(cwd):
            os.chdir(cwd)
        rt.executor.install_signals()
        rt.executor.run()
        raise AssertionError("the executor has returned")


def run(bootstrap: dict[str, Any]) -> NoReturn:
    """Be a worker. Does not return."""
    for folder in bootstrap["sys_path"]:
        if folder not in sys.path:
            sys.path.append(folder)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    stack = open(bootstrap["stack_file"], "w", encoding="utf-8")  # noqa: SIM115 - open until the end
    faulthandler.enable(file=stack, all_threads=True)
    Worker(bootstrap).run()


def main() -> NoReturn:
    """``python -m minray.worker.main``: the bootstrap comes on standard input."""
    run(decode(sys.stdin.buffer.read())[0])


if __name__ == "__main__":
    main()
