"""The benchmark's own logic without a runtime: rates by a fake clock, bars, table, every row on a fake."""

from __future__ import annotations

from typing import Any

import numpy
import pytest

from minray.cli.microbenchmark import catalogue, report, rows_disk
from minray.cli.microbenchmark.bars import BARS, Bar, times_better
from minray.cli.microbenchmark.row import Bench, Metric, RowList, Sample, SkipRow, deviation, summary

from . import fake_ray

RATE = Metric("r", "a rate")
TIME = Metric("t", "a time", "s", lower_is_better=True)


class Clock:
    """Each call that is measured takes ``step``; reading the clock takes nothing."""

    def __init__(self, step: float) -> None:
        self.now, self.step, self.calls = 0.0, step, 0

    def read(self) -> float:
        return self.now

    def call(self) -> None:
        self.calls += 1
        self.now += self.step


# --- rates ----------------------------------------------------------------------------------------


def test_a_rate_is_calls_per_second() -> None:
    clock = Clock(0.001)
    sample = Bench(fake_ray, seconds=1.0, clock=clock.read).rate(clock.call, per_call=10)
    assert sample.value == pytest.approx(10_000)
    assert sample.spread == pytest.approx(0, abs=1e-3)
    assert 1000 <= sample.count <= 1200
    assert clock.calls <= 1800  # warm-up included


def test_a_slow_call_runs_twice_and_is_measured_once() -> None:
    clock = Clock(31.0)
    sample = Bench(fake_ray, seconds=2.0, clock=clock.read).rate(clock.call)
    assert (clock.calls, sample.count) == (2, 1)
    assert sample.value == pytest.approx(1 / 31)


def test_sizes_are_scaled_but_never_vanish() -> None:
    bench = Bench(fake_ray, scale=0.001)
    assert (bench.size(10_000), bench.size(5), bench.size(5, least=2)) == (10, 1, 2)


def test_summary_is_the_median() -> None:
    assert summary([3.0, 1.0, 2.0]).value == 2.0
    assert summary([1.0, 2.0]).value == 1.5
    assert deviation([5.0]) == 0.0
    assert deviation([1.0, 3.0]) == 1.0


def test_a_row_measures_its_metrics_and_no_others() -> None:
    rows = RowList()
    rows.add("good", RATE)(lambda bench: Sample(1.0))
    rows.add("bad", RATE, TIME)(lambda bench: {"r": Sample(1.0)})
    good, bad = rows
    assert good.measure(Bench(fake_ray)) == {"r": Sample(1.0)}
    with pytest.raises(AssertionError, match="bad"):
        bad.measure(Bench(fake_ray))


# --- the catalogue ----------------------------------------------------------------------------------


def test_every_bar_has_a_metric_and_every_metric_one_key() -> None:
    keys = [metric.key for row in catalogue.ROWS.values() for metric in row.metrics]
    assert len(keys) == len(set(keys))
    assert set(BARS) <= set(keys)


def test_select_takes_names_and_parts_of_names() -> None:
    assert [row.name for row in catalogue.select(["tasks_sync"])] == ["tasks_sync"]
    assert [row.name for row in catalogue.select(["put_gigabytes"])] == ["put_gigabytes"]
    assert {row.name for row in catalogue.select(["wait_", "many"])} == {"wait_1k", "wait_10k", "many"}
    writing = [row.name for row in catalogue.ROWS.values() if row.writes]
    assert [row.name for row in catalogue.select([])] == [name for name in catalogue.ROWS if name not in writing]
    assert [row.name for row in catalogue.select([], disk=True)] == writing == ["disk_get", "disk_map", "disk_shuffle"]
    assert [row.name for row in catalogue.select(["disk_map", "idle"], disk=True)] == ["idle", "disk_map"]
    with pytest.raises(ValueError, match=r"disk_map write gigabytes.*--disk FOLDER"):
        catalogue.select(["disk_map", "idle"])
    with pytest.raises(ValueError, match=r"no row is called 'dance'.*tasks_sync"):
        catalogue.select(["dance"])


@pytest.mark.parametrize("name", [name for name, row in catalogue.ROWS.items() if row.session])
def test_every_row_runs(name: str) -> None:
    bench = Bench(fake_ray, seconds=0.002, scale=0.001)
    samples = catalogue.ROWS[name].measure(bench)
    assert all(sample.value > 0 for sample in samples.values())


def test_rows_about_the_runtime_ask_for_fresh_processes() -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def fresh(probe: str, **options: Any) -> dict[str, Any]:
        asked.append((probe, options))
        keys = [metric.key for row in catalogue.ROWS.values() for metric in row.metrics]
        return dict.fromkeys(keys, 1.0)

    bench = Bench(fake_ray, seconds=0.01, scale=0.1, options={"tasks": 50}, fresh=fresh)
    for name in ("startup", "idle", "many"):
        catalogue.ROWS[name].measure(bench)
    assert [probe for probe, _ in asked] == ["start", "start", "start", "idle", "many"]
    assert asked[-1][1] == {"tasks": 5}
    catalogue.ROWS["heartbeats"].measure(bench)
    assert asked[-1] == ("heartbeats", {"nodes": 10, "seconds": 0.5})
    with pytest.raises(SkipRow):
        catalogue.ROWS["idle"].measure(Bench(fake_ray))


def test_the_row_about_joining_takes_the_median() -> None:
    bench = Bench(fake_ray, fresh=lambda probe, **options: {"join": [0.5, 0.1, 0.4][: options["nodes"]]})
    assert catalogue.ROWS["join"].measure(bench)["join"].value == 0.4


@pytest.mark.parametrize("name", ["far_tasks", "transfer"])
def test_rows_of_a_cluster_are_skipped_where_there_is_none(name: str) -> None:
    with pytest.raises(SkipRow, match="it has no cluster_utils"):
        catalogue.ROWS[name].measure(Bench(fake_ray, seconds=0.01, scale=0.001))


@pytest.mark.parametrize("name", ["disk_get", "disk_map", "disk_shuffle"])
def test_rows_that_write_need_a_folder(name: str) -> None:
    with pytest.raises(SkipRow, match="--disk FOLDER"):
        catalogue.ROWS[name].measure(Bench(fake_ray, scale=0.001))


@pytest.mark.parametrize("wrong", [{}, {"block": 3}, {"element": 5000}, {"length": 31}])
def test_a_block_that_came_back_otherwise_is_an_error(wrong: dict[str, int]) -> None:
    data = rows_disk.Data(Bench(fake_ray, scale=0.001))
    came = data.block(wrong.get("block", 7)).copy()
    if "element" in wrong:
        came[wrong["element"]] += 1
    if "length" in wrong:
        came = came[: wrong["length"]]
    data.block(8)  # the next one is in its place meanwhile
    if not wrong:
        data.check(7, came)
        data.check(7, came + 1, plus=1)
        return
    with pytest.raises(RuntimeError, match="block 7 is not what it was"):
        data.check(7, came)


def test_a_part_of_all_blocks_in_another_order_is_an_error() -> None:
    data = rows_disk.Data(Bench(fake_ray, scale=0.001))
    data.count = 4
    parts = [data.block(number)[5 :: rows_disk.PARTS].copy() for number in range(4)]
    data.check_part(5, numpy.concatenate(parts))
    with pytest.raises(RuntimeError, match="part 5 of the blocks"):
        data.check_part(5, numpy.concatenate([parts[0], parts[2], parts[1], parts[3]]))
    parts[2][-1] += 1
    with pytest.raises(RuntimeError, match="part 5 of the blocks"):
        data.check_part(5, numpy.concatenate(parts))


@pytest.mark.parametrize("name", list(catalogue.FLOORS))
def test_every_floor_runs(name: str) -> None:
    samples = catalogue.FLOORS[name].measure(Bench(None, seconds=0.01, scale=0.001))
    assert all(sample.value > 0 for sample in samples.values())


# --- bars -------------------------------------------------------------------------------------------


def test_a_ratio_says_how_many_times_better() -> None:
    assert times_better(RATE, 100, 10) == 10
    assert times_better(TIME, 0.5, 5) == 10
    assert times_better(RATE, 100, 0) is None


@pytest.mark.parametrize(
    ("bar", "metric", "value", "ratio", "met"),
    [
        (Bar(8), RATE, 100, 8.0, True),
        (Bar(8), RATE, 100, 7.9, False),
        (Bar(8), RATE, 100, None, None),
        (Bar(limit=0.5), TIME, 0.5, None, True),
        (Bar(limit=0.5), TIME, 0.6, 20.0, False),
        (Bar(limit=50), RATE, 49, None, False),
        (Bar(10, limit=0.5), TIME, 0.4, None, None),
        (Bar(10, limit=0.5), TIME, 0.4, 9.0, False),
        (Bar(10, limit=0.5), TIME, 0.4, 11.0, True),
    ],
)
def test_bars(bar: Bar, metric: Metric, value: float, ratio: float | None, met: bool | None) -> None:
    assert bar.met(metric, value, ratio) is met


def test_bars_in_words() -> None:
    assert Bar(8).text(RATE) == "8 x"
    assert Bar(10, limit=0.5).text(TIME) == "10 x, < 0.5 s"
    assert Bar(limit=3).text(RATE) == "> 3 /s"


# --- the report -------------------------------------------------------------------------------------


def answer(value: float, spread: float = 0.0, key: str = "tasks_sync") -> dict[str, Any]:
    return {"row": key, "metrics": {key: {"value": value, "spread": spread, "count": 1}}}


def test_a_line_compares_and_judges() -> None:
    (result,) = report.results(catalogue.ROWS["tasks_sync"], [answer(9000, 100)], [answer(450)])
    assert (result.ratio, result.met) == (20, True)
    table = report.Table("minray 1", "ray 2")
    line = table.line(result)
    assert "9,000 ± 100/s" in line
    assert "450/s" in line
    assert "20 x" in line
    assert line.split("8 x")[1].split()[0] == "yes"
    assert "ratio" in table.head()


def test_rounds_are_merged_by_the_median() -> None:
    rounds = [answer(1.0), answer(100.0), answer(3.0)]
    (result,) = report.results(catalogue.ROWS["tasks_sync"], rounds, None)
    assert result.ours.value == 3.0
    assert (result.ratio, result.met) == (None, None)


def test_a_failure_is_told_in_the_table_and_a_skip_is_no_failure() -> None:
    row = catalogue.ROWS["tasks_sync"]
    (failed,) = report.results(row, [{"row": "tasks_sync", "error": "ValueError: oh\nmore"}], [answer(1)])
    (skipped,) = report.results(row, [{"row": "tasks_sync", "skip": "no sockets"}], None)
    assert failed.ours.failed
    assert not skipped.ours.failed
    assert "ValueError: oh" in report.Table("a", "b").line(failed)
    assert "skipped: no sockets" in report.Table("a", None).line(skipped)
    assert failed.met is None


def test_rows_of_ours_alone_have_no_other_side() -> None:
    row = catalogue.ROWS["many"]
    answers = [{"metrics": {m.key: {"value": 1.0, "spread": 0, "count": 1} for m in row.metrics}}]
    assert all(line.theirs is None for line in report.results(row, answers, []))


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.01234, "0.0123"), (4.561, "4.56"), (99.94, "99.9"), (12345.6, "12,346")]
)
def test_numbers(value: float, text: str) -> None:
    assert report.number(value) == text


def test_remarks_count_the_bars_and_measure_against_the_floors() -> None:
    ours = report.results(catalogue.ROWS["tasks_sync"], [answer(9000)], [answer(4500)])
    put = answer(5.0, key="put_gigabytes")
    ours += report.results(catalogue.ROWS["put_gigabytes"], [put], None)
    floor_answers = {"unix_round_trip": 18000.0, "memcpy": 10.0}
    floors = [
        line
        for key, value in floor_answers.items()
        for line in report.results(catalogue.FLOORS[key], [answer(value, key=key)], None)
    ]
    said = report.remarks([*ours, *floors])
    assert said[0].startswith("one synchronous task costs 2 raw")
    assert said[1].startswith("put_gigabytes runs at 0.5 of")
    assert said[2] == "2 bars: 0 met, 1 missed, 1 not judged"
    assert said[3] == "missed: tasks, sync"


def test_a_line_as_json() -> None:
    (result,) = report.results(catalogue.ROWS["tasks_sync"], [answer(9000)], [answer(450)])
    made = result.as_dict()
    assert made["ours"]["value"] == 9000
    assert made["theirs"]["rounds"] == [450]
    assert (made["ratio"], made["met"], made["bar"]["ratio"]) == (20, True, 8)
