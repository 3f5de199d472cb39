"""The chapter that retrieves the words of a book's title from a database, in all its steps."""

from __future__ import annotations

import time

from ..conformance.target import eventually, needs_concurrency, ray

INIT = {"num_cpus": 8}

TITLE = ["Learning", "Ray", "Flexible", "Distributed", "Python", "for", "Data", "Science"]
UNIT_S = 0.004  # the chapter sleeps tenths of seconds


def retrieve(item):
    """Pretend that to read from the database takes long."""
    time.sleep(item * UNIT_S)
    return item, TITLE[item]


@ray.remote
def retrieve_task(item):
    return retrieve(item)


EXPECTED = list(enumerate(TITLE))


def test_serial():
    assert [retrieve(item) for item in range(8)] == EXPECTED


def test_tasks_around_the_same_function():
    data_references = [retrieve_task.remote(item) for item in range(8)]
    assert ray.get(data_references) == EXPECTED


def test_the_database_in_the_object_store():
    database_object_ref = ray.put(TITLE)

    @ray.remote
    def retrieve_stored(item):
        stored = ray.get(database_object_ref)
        time.sleep(item * UNIT_S)
        return item, stored[item]

    assert ray.get([retrieve_stored.remote(item) for item in range(8)]) == EXPECTED


def test_wait_for_two_at_a_time():
    data_references = [retrieve_task.remote(item) for item in range(8)]
    all_data = []
    while len(data_references) > 0:
        finished, data_references = ray.wait(data_references, num_returns=2, timeout=7.0)
        assert len(finished) == 2
        all_data.extend(ray.get(finished))
    assert sorted(all_data) == EXPECTED


@needs_concurrency
def test_wait_sees_what_is_done_first(gate):
    @ray.remote
    def retrieve_at_gate(item):
        gate.wait(f"item-{item}")
        return item, TITLE[item]

    rest = [retrieve_at_gate.remote(item) for item in range(4)]
    seen = []
    for item in (2, 0, 3, 1):
        gate.open(f"item-{item}")
        finished, rest = ray.wait(rest, num_returns=1, timeout=30)
        seen += ray.get(finished)
    assert [item for item, _ in seen] == [2, 0, 3, 1]


def test_follow_up_tasks():
    @ray.remote
    def follow_up_task(retrieve_result):
        original_item, _ = retrieve_result
        return retrieve_result, retrieve(original_item + 1)

    retrieve_refs = [retrieve_task.remote(item) for item in [0, 2, 4, 6]]
    follow_up_refs = [follow_up_task.remote(ref) for ref in retrieve_refs]
    assert ray.get(follow_up_refs) == [(EXPECTED[i], EXPECTED[i + 1]) for i in (0, 2, 4, 6)]


@ray.remote
class DataTracker:
    def __init__(self):
        self._counts = 0

    def increment(self):
        self._counts += 1

    def counts(self):
        return self._counts


def test_a_tracker_counts_the_calls():
    database_object_ref = ray.put(TITLE)

    @ray.remote
    def retrieve_tracker_task(item, tracker):
        stored = ray.get(database_object_ref)
        tracker.increment.remote()
        return item, stored[item]

    tracker = DataTracker.remote()
    data_references = [retrieve_tracker_task.remote(item, tracker) for item in range(8)]
    assert ray.get(data_references) == EXPECTED
    # Nobody waits for the increments: the last of them may arrive after the results.
    eventually(lambda: ray.get(tracker.counts.remote()) == 8, "all eight calls were counted")


def test_a_tracker_given_to_another_actor():
    @ray.remote
    class Reader:
        def __init__(self, tracker):
            self.tracker = tracker

        def read(self, item):
            ray.get(self.tracker.increment.remote())
            return TITLE[item]

    tracker = DataTracker.remote()
    readers = [Reader.remote(tracker) for _ in range(2)]
    assert ray.get([reader.read.remote(1) for reader in readers]) == ["Ray", "Ray"]
    assert ray.get(tracker.counts.remote()) == 2


def test_ownership_of_a_task_inside_a_task():
    @ray.remote
    def task_owned():
        return

    @ray.remote
    def task(dependency):
        task_owned.remote()
        return dependency

    val = ray.put("value")
    assert ray.get(task.remote(dependency=val)) == "value"
