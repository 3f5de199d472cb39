"""The old name of ``minray.util.testing``: programs say ``from ray.test_utils import SignalActor``.

Nothing here but that alias; nothing inside minray imports it.
"""

from __future__ import annotations

from minray.util.testing import Semaphore, SignalActor, wait_for_condition

__all__ = ["Semaphore", "SignalActor", "wait_for_condition"]
