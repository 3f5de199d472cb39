"""A whole cluster in one thread: the code that runs in production, on a network and a clock that are ours.

    driver, worker:  worker.core.Core, worker.task_queue.TaskQueue
    node:            node.service.NodeService, with all its machines
    GCS:             gcs.service.GcsService, with all its machines

    clock, network   time and messages              ledger    what is known of objects, tasks, calls, copies
    gcs, node        the two services               judge     what must hold
    process, worker, actor, user, groups            world     all of it, and what can befall it
                     what processes do              run       the scheduler; ``run(seed)``
                                                    scenario  stories as short texts; ``shrink``

A seed decides everything: what each piece of user code does with its references, which message arrives next, who is
killed when, which link is cut. docs/simulator.md says what must hold after each step and at rest.

Called by tests/sim and ``tox -e sim``. A failing seed replays exactly: ``run(seed, kills=…, steps=…)``.
"""

from minray.testing.simulator.ledger import SimulationError
from minray.testing.simulator.run import Event, Setting, Simulation, run
from minray.testing.simulator.scenario import Story, play, shrink, story_of

__all__ = ["Event", "Setting", "Simulation", "SimulationError", "Story", "play", "run", "shrink", "story_of"]
