"""``init``, ``shutdown`` and what the package loads."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import minray
from minray.worker.init_options import InitOptions


def options(address: str | None = None, **given: Any) -> InitOptions:
    return InitOptions.from_keywords(address, given)


def test_all_keywords_of_ray_are_taken() -> None:
    made = options(
        num_cpus=2,
        num_gpus=1,
        resources={"a": 0.5},
        labels={"zone": "x"},
        object_store_memory=10**8,
        namespace="n",
        runtime_env={"env_vars": {"A": "b"}},
        include_dashboard=False,
        dashboard_host="127.0.0.1",
        dashboard_port=1,
        configure_logging=True,
        logging_level="info",
        logging_format="",
        log_to_driver=False,
        job_config=None,
        _node_ip_address="127.0.0.1",
        _memory=10**9,
        _metrics_export_port=1,
        _system_config={"infeasible_grace_s": 3.0, "of_ray_alone": 1},
        _node_name="me",
        _enable_object_reconstruction=True,
        object_spilling_directory="x",
    )
    assert made.config.infeasible_grace_s == 3.0 and made.config.log_to_driver is False
    assert (made.num_cpus, made.num_gpus, made.memory, made.object_store_memory) == (2, 1, 10**9, 10**8)
    assert (made.namespace, made.env_vars, made.node_name) == ("n", {"A": "b"}, "me")


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"zz": 1}, RuntimeError, "zz"),
        ({"num_cpus": -1}, ValueError, "num_cpus"),
        ({"num_cpus": "2"}, TypeError, "num_cpus"),
        ({"resources": {"CPU": 1}}, ValueError, "num_cpus"),
        ({"resources": [1]}, TypeError, "resources"),
        ({"object_store_memory": 1}, ValueError, "at least"),
        ({"namespace": ""}, ValueError, "namespace"),
        ({"namespace": 5}, TypeError, "namespace"),
        ({"labels": {"a": 1}}, TypeError, "labels"),
        ({"runtime_env": {"pip": ["x"]}}, NotImplementedError, "pip"),
    ],
)
def test_wrong_keywords(given: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        options(**given)


@pytest.mark.parametrize("given", [{"num_cpus": 1}, {"resources": {"a": 1}}, {"_node_name": "x"}])
def test_resources_and_the_address_of_a_cluster_exclude_each_other(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="existing cluster"):
        options("10.0.0.1:6379", **given)
    assert options("local", **given).local


def test_a_job_config_is_a_dict_or_an_object() -> None:
    class JobConfig:
        runtime_env = None
        ray_namespace = "from-object"
        metadata: Any = None

    assert options(job_config={"ray_namespace": "from-dict"}).namespace == "from-dict"
    assert options(job_config=JobConfig()).namespace == "from-object"
    assert options(job_config=JobConfig(), namespace="said").namespace == "said"


def test_the_context_is_a_mapping_and_ends_the_session() -> None:
    with minray.init(local_mode=True) as context:
        assert minray.is_initialized()
        assert set(context) >= {"node_ip_address", "session_dir", "gcs_address", "node_id", "address"}
        assert context["node_id"] == context.address_info["node_id"] == minray.nodes()[0]["NodeID"]
        assert context.ray_version == minray.__version__ and context.python_version in sys.version
    assert not minray.is_initialized()
    minray.shutdown()


def test_a_second_init_is_an_error_unless_it_is_allowed(local: Any) -> None:
    with pytest.raises(RuntimeError, match="by accident"):
        minray.init()
    assert minray.init(ignore_reinit_error=True)["node_id"] == local.node_id.hex()


def test_a_logging_config_must_be_one() -> None:
    with pytest.raises(TypeError, match="LoggingConfig"):
        minray.init(local_mode=True, logging_config="INFO")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="encoding"):
        minray.LoggingConfig(encoding="XML")
    with pytest.raises(ValueError, match="LOUD"):
        minray.LoggingConfig(log_level="LOUD")


def test_before_init_the_state_of_the_cluster_is_an_error() -> None:
    for ask in (minray.nodes, minray.cluster_resources, minray.available_resources):
        with pytest.raises(minray.exceptions.RaySystemError, match="init"):
            ask()
    with pytest.raises(RuntimeError, match="init"):
        minray.timeline()


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_importing_loads_little() -> None:
    said = run(
        "import sys, minray; minray.remote; minray.init; minray.get\n"
        "print([m for m in ('numpy', 'cloudpickle', 'asyncio', 'sqlite3', 'psutil') if m in sys.modules])"
    )
    assert said == "[]\n"


def test_all_public_names_exist_and_are_listed() -> None:
    said = run(
        "import minray\n"
        "missing = [n for n in minray.__all__ if not hasattr(minray, n)]\n"
        "hidden = [n for n in (*minray._HOME, *minray._MODULES) if n not in minray.__all__]\n"
        "print(missing, hidden, sorted(minray.__all__) == minray.__all__ or sorted(minray.__all__, key=str))"
    )
    assert said.startswith("[] []")


def test_exit_handlers_may_still_use_the_session_and_cannot_start_another() -> None:
    said = run(
        "import atexit\n"
        "def late():\n"
        "    try: minray.put(1)\n"
        "    except RuntimeError as error: print(error)\n"
        "atexit.register(late)\n"  # before the import: runs after minray has ended
        "import minray\n"
        "minray.init(local_mode=True)\n"
        "ref = minray.put('still here')\n"
        "atexit.register(lambda: print(minray.get(ref)))\n"
    )
    assert said.splitlines()[0] == "still here"
    assert "exiting" in said.splitlines()[1]
