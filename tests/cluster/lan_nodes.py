"""A cluster on the hosts of a ``Lan``: the head with a driver on the first, a node on each of the others."""

from __future__ import annotations

from collections.abc import Callable

from tests.cluster.hosts import COUNT, Lan
from tests.e2e.support import Driver

TOKEN = "0123456789abcdef" * 4
PORT = 6380

START = """
from minray._base.config import Config
from minray.worker.launch import launch
config = Config.from_env()
place = {{"host": {host!r}, "port": {port}}}
started = launch(config, {{"num_cpus": 1, "resources": {resources!r}}}, cluster=place, gcs={gcs!r})
say("session", started.session_dir)
"""

NODE = """
say("up")
started.daemon.wait()
say("ended", started.explain_end().replace("\\n", " "))
"""


class Hosts:
    """See the file's head. ``program`` says "ready" when it is; each node but the head's has two ``w``.

    ``settings`` of minray are for all processes.
    """

    def __init__(self, lan: Lan, drive: Callable[..., Driver], program: str, **settings: float) -> None:
        self.lan = lan
        self._drive = drive
        self._env = {f"MINRAY_{name.upper()}": str(value) for name, value in settings.items()}
        self._env |= {"MINRAY_TOKEN": TOKEN, "MINRAY_PRESTART": "0"}
        text = START.format(host=lan.addresses[0], port=PORT, resources={}, gcs=None)
        self.head = drive(text + program, env=self._env, wrapper=lan.wrapper(0))
        self.head.await_word("session")
        self.nodes = [self.start_node(host) for host in range(1, COUNT)]
        self.head.await_word("ready")

    def start_node(self, host: int) -> Driver:
        """One that joins the head. It says "up", and "ended" with the reason."""
        gcs = {"endpoint": f"tcp:{self.lan.addresses[0]}:{PORT}", "token": TOKEN.encode()}
        text = START.format(host=self.lan.addresses[host], port=0, resources={"w": 2}, gcs=gcs)
        return self._drive(text + NODE, env=self._env, wrapper=self.lan.wrapper(host))
