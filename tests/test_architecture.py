"""The architecture, executable: who may import whom, how long things may be, what is exported.

The rules are those of ``docs/architecture.md``. Everything is read from the source with ``ast``, imports
inside functions included; only what stands under ``if TYPE_CHECKING:`` does not count: it never runs.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "minray"
FILES = sorted(PACKAGE.rglob("*.py"))

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60

BASE = {"_base"}
LEAVES = {"exceptions", "object_ref", "awaiting"}  # public, but they import only _base and each other
SHARED = {"_base", "wire", "store"}
# room → what its files may import of minray besides the room itself
LAW: dict[str, set[str]] = {
    "_base": set(),
    "wire": BASE,
    "store": BASE | {"wire", "exceptions"},
    "gcs": SHARED | LEAVES,
    "node": SHARED | LEAVES,
    "worker": SHARED | LEAVES,
    "daemon": SHARED | LEAVES | {"gcs", "node"},
}
ROOMS = {"_base", "wire", "store", "gcs", "node", "worker", "daemon"}
# Built on the public names, as a user would.
LIBRARIES = {"util", "serve", "tune", "train", "rllib", "dashboard", "cli"}
LATER = {"daemon"}  # what cli may import, but only inside functions: `minray start` runs it

# Decisions: state in, effects out. They get `now` and messages, and touch nothing of the outside.
PURE = (
    "_base/node_index.py",
    "store/arena.py",
    "store/extents.py",
    "wire/election.py",
    "node/leases.py",
    "node/transfers/lending.py",
    "node/transfers/pulls.py",
    "node/worker_pool.py",
    "node/book.py",
    "node/bundles.py",
    "node/actor_placement.py",
    "node/deaths.py",
    "node/view.py",
    "gcs/actors.py",
    "gcs/bundle_ledger.py",
    "gcs/placement_groups.py",
    "gcs/deaths.py",
    "gcs/jobs.py",
    "gcs/nodes.py",
    "gcs/kv.py",
    "gcs/answers.py",
    "gcs/view.py",
    "worker/owner.py",
    "worker/references.py",
)
OUTSIDE = {
    "asyncio", "multiprocessing", "os", "pathlib", "psutil", "random", "secrets", "select", "selectors",
    "signal", "socket", "sqlite3", "subprocess", "tempfile", "threading", "time", "uuid",
}  # fmt: skip

PUBLIC = {
    "init", "shutdown", "is_initialized", "remote", "method", "get", "put", "wait", "cancel", "kill",
    "get_actor", "nodes", "cluster_resources", "available_resources", "timeline", "get_gpu_ids",
    "get_runtime_context", "error_info", "LoggingConfig", "ObjectRef", "ObjectRefGenerator",
    "DynamicObjectRefGenerator", "ActorClassID", "ActorID", "FunctionID", "JobID", "NodeID",
    "PlacementGroupID", "TaskID", "UniqueID", "WorkerID", "exceptions", "util", "actor",
}  # fmt: skip


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """``(module, line, inside a function)`` for each import of the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ["minray", *path.relative_to(PACKAGE).parts[:-1]]

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, int, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for other in node.orelse:
                yield from walk(other, inside)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, inside
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno, inside
        inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    yield from walk(tree, False)


def minray_imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """The same for imports of minray, as the first name below the package ("" for the package itself)."""
    for module, line, inside in imports(path):
        parts = module.split(".")
        if parts[0] == "minray":
            yield parts[1] if len(parts) > 1 else "", line, inside


def allowed(room: str, target: str, inside: bool) -> bool:
    if target == room:
        return True
    if target == "testing":
        return False
    if room in LAW:
        return target in LAW[room]
    if room in LIBRARIES:
        return target not in ROOMS or (room == "cli" and inside and target in LATER)
    if room in LEAVES:
        return target in BASE | LEAVES
    # The rest is the public face.
    return target not in {"gcs", "node", "daemon"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_import_law(path: Path) -> None:
    room = room_of(path)
    if room == "testing":
        return
    broken = [
        f"{name_of(path)}:{line}: {room} may not import minray.{target}"
        for target, line, inside in minray_imports(path)
        if not allowed(room, target, inside)
    ]
    assert not broken, "\n".join(broken)


def test_the_law_itself() -> None:
    assert allowed("wire", "_base", False)
    assert not allowed("_base", "wire", True)
    assert not allowed("gcs", "node", True)
    assert not allowed("node", "worker", True)
    assert not allowed("worker", "gcs", True)
    assert allowed("daemon", "gcs", False)
    assert allowed("remote_function", "worker", False)
    assert not allowed("remote_function", "node", True)
    assert not allowed("object_ref", "worker", False)
    assert not allowed("util", "worker", True)
    assert allowed("util", "", False)
    assert allowed("cli", "daemon", True)
    assert not allowed("cli", "daemon", False)
    assert not allowed("remote_function", "testing", True)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_size(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    assert lines <= MAX_FILE_LINES, f"{name_of(path)} has {lines} lines: divide it"
    long = [
        f"{name_of(path)}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_says_what_it_owns(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{name_of(path)} has no docstring"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_config_reads_the_environment(path: Path) -> None:
    if name_of(path) == "_base/config.py":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    written = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del))
    }
    written |= {
        id(node.func.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("update", "pop")
    }
    reads = [
        f"{name_of(path)}:{node.lineno}: use minray._base.config (Config, child_environ, apply_env_vars)"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in ("environ", "environb", "getenv", "getenvb")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        and id(node) not in written
    ]
    imported = [f"{name_of(path)}:{line}" for module, line, _ in imports(path) if module.startswith("os.env")]
    assert not reads + imported, "\n".join(reads + imported)


@pytest.mark.parametrize("name", PURE)
def test_pure_machines_touch_nothing_outside(name: str) -> None:
    path = PACKAGE / name
    touched = [
        f"{name}:{line}: imports {module}"
        for module, line, _ in imports(path)
        if module.split(".")[0] in OUTSIDE
    ]
    assert not touched, "\n".join(touched)
    methods = {
        node.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert "check_invariants" in methods, f"{name} has no check_invariants()"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_error_is_swallowed_unseen(path: Path) -> None:
    bare = [
        f"{name_of(path)}:{node.lineno}: bare except, or an Exception passed over in silence"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler)
        and (
            node.type is None
            or (
                isinstance(node.type, ast.Name)
                and node.type.id in ("Exception", "BaseException")
                and all(isinstance(statement, ast.Pass) for statement in node.body)
            )
        )
    ]
    assert not bare, "\n".join(bare)


def test_exported_names() -> None:
    import minray

    exported = set(minray.__all__)
    missing = sorted(PUBLIC - exported)
    assert not missing, f"minray.__all__ lacks {missing}"
    for name in sorted(exported):
        assert getattr(minray, name) is not None, name
    assert exported <= set(dir(minray))
    assert not [name for name in exported if name.startswith("_") and name != "__version__"]


HEAVY = (
    "numpy", "cloudpickle", "psutil", "sqlite3", "asyncio", "minray.dashboard", "minray.tune", "minray.serve",
    "minray.gcs", "minray.node", "minray.testing",
)  # fmt: skip


def test_importing_minray_loads_little() -> None:
    code = f"import sys, minray; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
