"""An actor that never gets ready: it is tried again after pauses, and whoever waits for it hears why."""

from __future__ import annotations

import os
import re

import pytest

import minray as ray
from minray.exceptions import ActorDiedError, GetTimeoutError


@pytest.fixture
def session():
    ray.init(num_cpus=1)
    yield
    ray.shutdown()


@ray.remote(max_task_retries=-1)
class Broken:
    def __init__(self, marks, good_at):
        with open(marks, "a") as file:
            file.write(".")
        if os.path.getsize(marks) < good_at:
            os._exit(3)

    def answer(self):
        return 42


def test_who_waits_hears_why(session, tmp_path):
    actor = Broken.options(max_restarts=-1).remote(tmp_path / "marks", good_at=10**9)
    said = ""
    while not re.search(r"actor is RESTARTING: .* exit code 3 \(ended \d+ times in a row before it was ready", said):
        with pytest.raises(GetTimeoutError) as caught:
            ray.get(actor.answer.remote(), timeout=0.2)
        said = str(caught.value)
    ray.kill(actor)
    with pytest.raises(ActorDiedError):
        ray.get(actor.answer.remote(), timeout=30)


def test_it_may_get_ready_in_the_end(session, tmp_path):
    actor = Broken.options(max_restarts=5).remote(tmp_path / "marks", good_at=6)
    assert ray.get(actor.answer.remote(), timeout=60) == 42
    assert os.path.getsize(tmp_path / "marks") == 6
