"""The process that runs rows for one side: minray, Ray, or (with no module) the raw floors.

It is asked over standard input, one JSON object per line, and answers on what was its standard output,
one line per request; whatever the module under test prints goes to standard error instead. It serves until
its input ends. Each row gets a session of its own (``init()`` before, ``shutdown()`` after), so that no
row inherits workers, actors or warm memory from the one before it, and the other side's turn is undisturbed.

    → {"row": …, "seconds": …, "scale": …, "init": {…}, "options": {…}}
    ← {"row": …, "metrics": {key: {"value", "spread", "count"}}, "took": s}
      or {"row": …, "skip": reason} or {"row": …, "error": text, "traceback": text}
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from typing import Any

from . import boot
from .catalogue import FLOORS, ROWS
from .row import Bench, Row, SkipRow


def main(arguments: list[str], started: float) -> None:
    """Serve until standard input ends. ``arguments``: the module's name ('' for floors), and its root."""
    name, root = arguments
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ray: Any = boot.import_under_test(name, root) if name else None
    hello = {
        "module": name,
        "version": getattr(ray, "__version__", ""),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
    }
    print(json.dumps(hello), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_serve(ray, name, root, json.loads(line))), file=answers, flush=True)


def _serve(ray: Any, name: str, root: str, request: dict[str, Any]) -> dict[str, Any]:
    row = (ROWS if name else FLOORS)[request["row"]]

    def fresh(probe: str, **options: Any) -> dict[str, Any]:
        return run_probe(probe, name, root, {"init": request["init"], **options})

    bench = Bench(ray, request["seconds"], request["scale"], request["options"], fresh)
    begin = time.perf_counter()
    try:
        metrics = _measure(row, bench, request["init"])
    except SkipRow as reason:
        return {"row": row.name, "skip": str(reason)}
    except Exception as error:  # whatever the module under test raises is this row's result
        text = f"{type(error).__name__}: {error}"
        return {"row": row.name, "error": text, "traceback": traceback.format_exc()}
    return {"row": row.name, "metrics": metrics, "took": time.perf_counter() - begin}


def _measure(row: Row, bench: Bench, init: dict[str, Any]) -> dict[str, Any]:
    if row.session:
        bench.ray.init(**init)
    try:
        samples = row.measure(bench)
    finally:
        if row.session:
            bench.ray.shutdown()
    return {key: asdict(sample) for key, sample in samples.items()}


def run_probe(probe: str, name: str, root: str, options: dict[str, Any]) -> dict[str, Any]:
    """Run a probe in a fresh process of this interpreter; its answer comes back in a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "answer")
        arguments = (probe, name, root, path, json.dumps(options))
        done = subprocess.run(boot.command(sys.executable, "probes", *arguments), stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise RuntimeError(f"the process of probe {probe!r} ended with status {done.returncode}")
        with open(path) as file:
            answer: dict[str, Any] = json.load(file)
        return answer
