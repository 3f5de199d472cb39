"""``minray microbenchmark``: the rows of Ray's own microbenchmark, in our words, on both sides.

    command (parses, prints) ── turns ──┬── peer process: ``import minray as ray``, rows
                                        ├── peer process: ``import ray``, the same rows
                                        └── peer process: raw floors, the standard library's pools
                                                 └── fresh process per probe (start-up, idle, many tasks)

* ``row``        what a row is, and how a rate is measured
* ``rows_*``     the rows; ``catalogue`` lists them in the order of the table
* ``probes``     what needs a process of its own: start-up, idle memory, a million tasks
* ``floors``     what the machine gives without any runtime
* ``boot``       starts a process of this package under any interpreter, without installing it there
* ``peer``       the process that runs rows; ``turns`` starts peers and asks them by turns
* ``bars``       DESIGN's first bars and goals; ``report`` the table and the JSON

A row is one function that is given the module under test as ``ray``: both sides run identical code. Peers
load this folder under the name ``microbenchmark``, so nothing in it imports minray absolutely.
"""
