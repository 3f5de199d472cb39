"""A whole session in one thread: the machines that run in production, on a network and a clock that are ours.

    drivers, workers:  worker.core.Core, worker.task_queue.TaskQueue
    node:              node.leases.LeaseTable, node.worker_pool.WorkerPool, node.deaths.DeathBook
    GCS:               gcs.actors.ActorTable, gcs.nodes.NodeTable

A seed decides everything: what each piece of user code does with its references (``user``), which message arrives
next (``network``: in order per pair of processes, in any order between pairs), who is killed when. After each step
the machines' own invariants hold, and these (``run``, ``ledger``):

* what a living process references is not freed at its owner (unless a dead process had it in its hands);
* no task starts more often than its retries allow, and none that its owner has given up;
* calls of one caller start in the order in which they were made;
* what a worker has answered counts, also if it is dead when the answer arrives;
* an actor goes out of scope only after all calls by counted handles are answered;
* at rest, when all references are dropped: no object, task, generator, stored copy, lease, actor or worker of an
  ended job is left anywhere.

Called by tests/sim and ``tox -e sim``. A failing seed replays exactly: ``run(seed, kills=…)``.
"""

from minray.testing.simulator.ledger import SimulationError
from minray.testing.simulator.run import Simulation, run

__all__ = ["Simulation", "SimulationError", "run"]
