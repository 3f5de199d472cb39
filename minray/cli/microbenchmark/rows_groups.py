"""A row about placement groups: made, waited for and removed, a hundred at a time."""

from __future__ import annotations

from .row import Bench, RowList, Sample

rows = RowList()


@rows.add("groups", "placement group create and remove")
def groups(bench: Bench) -> Sample:
    """A hundred groups of one small bundle: create all, wait for each, remove all; per group."""
    util, count = bench.ray.util, bench.size(100)

    def create_and_remove() -> None:
        made = [util.placement_group(bundles=[{"CPU": 0.001}]) for _ in range(count)]
        for group in made:
            if not group.wait(timeout_seconds=30):
                raise RuntimeError(f"{group} was not there within 30 s")
        for group in made:
            util.remove_placement_group(group)

    return bench.rate(create_and_remove, count)
