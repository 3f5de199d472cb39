"""Random histories of a node's leases: whatever happens in whatever order, the books balance.

The machine plays owners, workers and time against a LeaseTable. After each step all invariants are checked;
at the end everything is given back, everybody leaves, and nothing may remain.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from minray.wire.messages import ActorEnded

from .support import CPU1, DRIVER, JOB, World, actor_order

REQUESTS = [CPU1, {"CPU": 20_000}, {"CPU": 5_000}, {}, {"CPU": 10_000, "GPU": 5_000}, {"GPU": 10_000}]


class Leases(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(cpus=2, totals={"CPU": 20_000, "GPU": 10_000}, soft=4, hard=6, idle_s=5.0)
        self.actors = 0
        self.placed: set[bytes] = set()

    def pick(self, choice: int, items: list[int]) -> int:
        return items[choice % len(items)]

    def owners(self) -> list[bytes]:
        return [DRIVER, *(x.worker_id for x in self.world.table.leases.values())]

    @rule(
        who=st.integers(0, 9),
        key=st.integers(1, 3),
        wanted=st.integers(0, 4),
        what=st.integers(0, len(REQUESTS) - 1),
        depth=st.integers(0, 2),
        env=st.booleans(),
    )
    def demand(self, who: int, key: int, wanted: int, what: int, depth: int, env: bool) -> None:
        owners = self.owners()
        key = key * 100 + what * 10 + depth * 2 + env  # a scheduling key never changes what it stands for
        self.world.demand(
            wanted,
            key=key,
            owner=owners[who % len(owners)],
            resources=REQUESTS[what],
            depth=depth,
            env_vars={"A": "1"} if env else {},
        )

    @precondition(lambda self: self.world.ordered)
    @rule(which=st.integers(0, 9))
    def register(self, which: int) -> None:
        number = self.world.ordered.pop(which % len(self.world.ordered))
        if number in self.world.pool.workers:
            self.world.register(number)

    @precondition(lambda self: self.world.table.leases)
    @rule(
        which=st.integers(0, 9),
        what=st.sampled_from(["return", "retire", "end", "block", "unblock", "kill"]),
    )
    def lease(self, which: int, what: str) -> None:
        table, now = self.world.table, self.world.now
        lease = table.leases[self.pick(which, sorted(table.leases))]
        owner = lease.demand.owner
        no = lease.no if lease.demand.actor is None else -1
        if what == "block":
            self.world.do(table.blocked(lease.worker_id, no, now))
        elif what == "unblock":
            self.world.do(table.unblocked(lease.worker_id, no, now))
        elif what == "end":
            self.world.do(table.ended(lease.worker_id, lease.no, now))
        elif what == "kill":
            self.world.do(table.kill(owner, lease.no, now))
        else:
            self.world.do(table.returned(owner, lease.no, what == "retire", now))

    @precondition(lambda self: self.world.pool.workers)
    @rule(which=st.integers(0, 9))
    def exit(self, which: int) -> None:
        number = self.pick(which, sorted(self.world.pool.workers))
        if number in self.world.ordered:
            self.world.ordered.remove(number)
        self.world.exit(number)

    @rule(what=st.integers(0, len(REQUESTS) - 1), lives=st.integers(0, len(REQUESTS) - 1))
    def place(self, what: int, lives: int) -> None:
        self.actors += 1
        needs = REQUESTS[what]
        life = {name: min(v, needs[name]) for name, v in REQUESTS[lives].items() if name in needs}
        order = actor_order(self.actors, placement_resources=needs, lifetime_resources=life)
        self.placed.add(order.actor_id)
        self.world.do(self.world.table.start_actor(order, self.world.now))

    @precondition(lambda self: self.actors)
    @rule(which=st.integers(0, 9), graceful=st.booleans())
    def stop(self, which: int, graceful: bool) -> None:
        order = actor_order(1 + which % self.actors)
        world = self.world
        world.do(world.table.stop_actor(order.actor_id, 0, world.now, graceful=graceful, reason="test"))

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.06, 1.1, 5.3, 11.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.world.pass_time(seconds)

    @invariant()
    def nobody_is_forgotten(self) -> None:
        """Who waits and could be served has a worker on the way, a revoked lease, or a moment to look."""
        table = self.world.table
        for demand in table.queue:
            if table.book.fits(demand.resources) and not self.world.pool.idle(demand.worker_class):
                hopes = (
                    self.world.pool.count("STARTING"),
                    any(x.revoked for x in table.leases.values()),
                    table.next_deadline() is not None,
                    any(not x.blocked for x in table.leases.values()),
                )
                assert any(hopes), demand

    def teardown(self) -> None:
        world = self.world
        world.do(world.table.owner_gone(DRIVER, world.now))
        world.do(world.table.job_ends.gone(JOB, world.now))
        world.pass_time(2)
        for number in sorted(world.pool.workers):
            world.exit(number, expected=True)
        assert not world.pool.workers and not world.table.leases and not world.table.demands
        assert world.table.book.available == world.table.book.totals
        assert world.table.next_deadline() is None
        ended = [m.actor_id for m in world.to_gcs if isinstance(m, ActorEnded)]
        assert sorted(ended) == sorted(self.placed), "exactly one end for each actor that was ordered"


TestLeases = Leases.TestCase
TestLeases.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
