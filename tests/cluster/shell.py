"""One user's machine, as far as commands go: a folder of sessions of its own, and a mark in the environment by which
everything that its commands have started is found again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

from minray.worker.session_folder import SessionInfo
from tests.e2e.support import MARK, ROOT, _marked, eventually, session_dir_prefix

LIMIT_S = 60.0
SQUARES = """
import minray as ray

@ray.remote
def square(x):
    return x * x

@ray.remote
class Counter:
    def __init__(self):
        self.n = 0
    def add(self, n):
        self.n += n
        return self.n

ray.init(ADDRESS)
counter = Counter.remote()
print(ray.get([square.remote(i) for i in range(20)]), ray.get([counter.add.remote(i) for i in range(5)]))
ray.shutdown()
"""


class Shell:
    """See the file's head."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.root = Path(tempfile.mkdtemp(prefix="mrt-"))
        self.prefixes: set[str] = set()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MINRAY_")}
        self.env = {**kept, "PYTHONPATH": str(ROOT), "MINRAY_TEMP_DIR": str(self.root), MARK: self.mark}

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        pipe: Any = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, *words], text=True, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe,
            env={**self.env, **env}, cwd=self.root.parent,
        )  # fmt: skip

    def run(self, *words: str, code: int = 0, **env: str) -> str:
        """What a Python program writes (both ways), after it has ended with ``code``."""
        process = self.start(*words, **env)
        try:
            out, err = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"{words} hangs: {process.communicate()}") from None
        self.prefixes |= {session_dir_prefix(path) for path in self.sessions()}
        assert process.returncode == code, f"{words}: {process.returncode}\n{out}\n{err}"
        return out + err

    def minray(self, *words: str, code: int = 0, **env: str) -> str:
        return self.run("-m", "minray.cli.main", *words, code=code, **env)

    def head(self, *words: str) -> str:
        """Start a head; its address."""
        text = self.minray("start", "--head", "--num-cpus=2", *words)
        return text.split("cluster at ")[1].split(" ")[0]

    def driver(self, program: str, **env: str) -> str:
        return self.run("-c", program, **env)

    def sessions(self) -> list[str]:
        return [str(path) for path in self.root.glob("s_*")]

    def info(self, address: str) -> SessionInfo:
        """The record of the head."""
        found = [SessionInfo.read(path) for path in self.sessions()]
        (info,) = [info for info in found if info is not None and info.is_head and info.gcs == f"tcp:{address}"]
        return info

    def log(self, address: str) -> str:
        """What the head's process has written."""
        return Path(self.info(address).folder, "logs", "daemon.log").read_text()

    def token(self, text: str = "0123456789abcdef") -> str:
        path = self.root / f"token-{text[:6]}"
        path.write_text(text)
        path.chmod(0o600)
        return str(path)

    def left(self) -> list[str]:
        shm = Path("/dev/shm")
        segments = list(shm.iterdir()) if shm.is_dir() else []
        return [
            *(f"process {process.pid}" for process in _marked(self.mark)),
            *(str(path) for path in self.root.iterdir() if not path.name.startswith("token-")),
            *(str(path) for path in segments if any(prefix in path.name for prefix in self.prefixes)),
        ]

    def leaves_nothing(self) -> None:
        eventually(lambda: not self.left(), f"nothing is left of {self.left()}", limit=5.0)

    def close(self) -> None:
        """End what is left, by force."""
        for process in _marked(self.mark):
            process.kill()
        shutil.rmtree(self.root, ignore_errors=True)
