"""Settings: where they come from, what is refused."""

from __future__ import annotations

import dataclasses
import os
import pickle
import tempfile
import warnings

import pytest

from minray._base import config as config_module
from minray._base.config import Config


def test_defaults() -> None:
    config = Config.from_env({})
    assert config == Config()
    assert config.inline_limit == 100 * 1024
    assert config.transport == config.launcher == config.segments == "auto"
    assert config.log_to_driver is True
    assert config.debug is False


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("MINRAY_SPIN_US", "0", "spin_us", 0),
        ("MINRAY_SPIN_US", " 70 ", "spin_us", 70),
        ("MINRAY_STORE_MEMORY", "64M", "store_memory", 64 * 1024**2),
        ("MINRAY_STORE_MEMORY", "1g", "store_memory", 1024**3),
        ("MINRAY_INLINE_LIMIT", "4K", "inline_limit", 4096),
        ("MINRAY_LEASE_IDLE_S", "1.5", "lease_idle_s", 1.5),
        ("MINRAY_INFEASIBLE_GRACE_S", "0", "infeasible_grace_s", 0.0),
        ("MINRAY_DEBUG", "1", "debug", True),
        ("MINRAY_LOG_TO_DRIVER", "off", "log_to_driver", False),
        ("MINRAY_LAUNCHER", "spawn", "launcher", "spawn"),
        ("MINRAY_ADDRESS", "10.0.0.1:7000", "address", "10.0.0.1:7000"),
    ],
)
def test_a_variable_sets_its_field(variable: str, text: str, field: str, value: object) -> None:
    config = Config.from_env({variable: text, "PATH": "/bin"})
    assert getattr(config, field) == value
    assert type(getattr(config, field)) is type(value)
    assert dataclasses.replace(config, **{field: getattr(Config(), field)}) == Config()


@pytest.mark.parametrize(
    ("variable", "text", "problem"),
    [
        ("MINRAY_SPIN_US", "fast", "whole number"),
        ("MINRAY_SPIN_US", "", "whole number"),
        ("MINRAY_SPIN_US", "-1", "not be negative"),
        ("MINRAY_STORE_MEMORY", "1.5G", "whole number"),
        ("MINRAY_STORE_MEMORY", "0", "greater than 0"),
        ("MINRAY_LEASE_IDLE_S", "soon", "a number"),
        ("MINRAY_LEASE_IDLE_S", "nan", "not be negative"),
        ("MINRAY_DEBUG", "perhaps", "1 or 0"),
        ("MINRAY_TRANSPORT", "carrier-pigeon", "one of auto, unix, tcp"),
        ("MINRAY_SEGMENTS", "", "one of auto, shm, file"),
    ],
)
def test_a_bad_value_is_an_error_that_names_variable_and_value(
    variable: str, text: str, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem) as raised:
        Config.from_env({variable: text})
    assert variable in str(raised.value)
    if text:
        assert text in str(raised.value)


def test_unknown_variables_only_warn() -> None:
    with pytest.warns(RuntimeWarning, match=r"MINRAY_SPINN_US is not a setting.*MINRAY_SPIN_US"):
        assert Config.from_env({"MINRAY_SPINN_US": "1"}) == Config()


def test_the_test_suites_variables_are_not_settings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Config.from_env({"MINRAY_TEST_KILLS": "3"}) == Config()


def test_overrides_beat_the_environment() -> None:
    environ = {"MINRAY_SPIN_US": "70", "MINRAY_DEBUG": "1"}
    config = Config.from_env(environ, spin_us=5, debug=None)
    assert config.spin_us == 5
    assert config.debug is True


def test_bad_overrides() -> None:
    with pytest.raises(ValueError, match=r"unknown setting spin=3"):
        Config.from_env({}, spin=3)
    with pytest.raises(ValueError, match=r"MINRAY_SPIN_US \(setting 'spin_us'\) must be int, got '3'"):
        Config.from_env({}, spin_us="3")
    with pytest.raises(ValueError, match="must be bool, got 1"):
        Config.from_env({}, debug=1)
    with pytest.raises(ValueError, match="must be int, got True"):
        Config.from_env({}, spin_us=True)
    with pytest.raises(ValueError, match="at most max_workers_hard=2"):
        Config.from_env({}, max_workers_soft=3, max_workers_hard=2)


def test_it_travels_as_builtins() -> None:
    config = Config.from_env({"MINRAY_SPIN_US": "3", "CUDA_VISIBLE_DEVICES": "0,1", "MINRAY_TOKEN": "x"})
    travelled = config.to_dict()
    assert all(value is None or type(value) in (int, float, str, bool) for value in travelled.values())
    assert Config.from_dict(travelled) == config == pickle.loads(pickle.dumps(config))


def test_foreign_variables_are_captured() -> None:
    config = Config.from_env({"CUDA_VISIBLE_DEVICES": "", "SLURM_CPUS_PER_TASK": "3"})
    assert config.cuda_visible_devices == ""
    assert config.slurm_cpus == 3
    assert Config.from_env({"SLURM_CPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "3"}).slurm_cpus == 3
    assert Config.from_env({"SLURM_CPUS_ON_NODE": "many"}).slurm_cpus is None
    assert Config.from_env({}).cuda_visible_devices is None


def test_temp_root() -> None:
    assert Config(temp_dir="/somewhere").temp_root() == "/somewhere"
    root = Config().temp_root()
    assert os.path.dirname(root) == tempfile.gettempdir()
    assert os.path.basename(root) == f"minray-{os.getuid()}"


def test_frozen_and_replace() -> None:
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.spin_us = 1  # type: ignore[misc]
    assert config.replace(spin_us=1).spin_us == 1
    with pytest.raises(ValueError, match="spin_us"):
        config.replace(spin_us=-1)


def test_child_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GONE", "1")
    monkeypatch.setenv("KEPT", "1")
    child = config_module.child_environ({"GONE": None, "NEVER_THERE": None, "NEW": "2"})
    assert "GONE" not in child
    assert (child["KEPT"], child["NEW"]) == ("1", "2")
    assert os.environ["GONE"] == "1"
    assert "NEW" not in os.environ


def test_apply_env_vars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "1")
    monkeypatch.setenv("YOURS", "1")
    config_module.apply_env_vars({"MINE": "2", "YOURS": None, "NEVER_THERE": None})
    assert os.environ["MINE"] == "2"
    assert "YOURS" not in os.environ


def test_blas_threads_leave_the_users_settings_alone() -> None:
    limits = config_module.blas_thread_vars(2, {"MKL_NUM_THREADS": "3", "HOME": "/"})
    assert limits["MKL_NUM_THREADS"] == "3"
    assert limits["OMP_NUM_THREADS"] == limits["OPENBLAS_NUM_THREADS"] == "2"
    assert "HOME" not in limits
    assert set(config_module.blas_thread_vars(2, {"OMP_NUM_THREADS": "4"}).values()) == {"4"}
    assert set(config_module.blas_thread_vars(0, {}).values()) == {"1"}


def test_an_empty_token_is_no_token() -> None:
    with pytest.raises(ValueError, match=r"MINRAY_TOKEN .* is empty"):
        Config.from_env({"MINRAY_TOKEN": ""})


def test_a_token_is_shown_nowhere() -> None:
    config = Config.from_env({"MINRAY_TOKEN": "sesame open"})
    assert "sesame" not in repr(config)
    with pytest.raises(ValueError) as raised:
        config.replace(token=b"sesame open")
    assert "sesame" not in str(raised.value)


def test_a_token_in_two_places_is_one_too_many() -> None:
    both = {"MINRAY_TOKEN": "a token of some length", "MINRAY_TOKEN_FILE": "/file"}
    with pytest.raises(ValueError, match=r"MINRAY_TOKEN and MINRAY_TOKEN_FILE='/file' are both set"):
        Config.from_env(both)
    # What the program says itself beats the environment, in either form.
    assert Config.from_env({"MINRAY_TOKEN": "from the environment"}, token_file="/file").token is None
    assert Config.from_env({"MINRAY_TOKEN_FILE": "/file"}, token="from the program").token_file is None


def test_tls_takes_three_files_or_none() -> None:
    some = {"MINRAY_TLS_CERT": "/c.pem", "MINRAY_TLS_CA": "/ca.pem"}
    with pytest.raises(ValueError, match=r"MINRAY_TLS_KEY is missing beside MINRAY_TLS_CERT='/c.pem'"):
        Config.from_env(some)
    config = Config.from_env({**some, "MINRAY_TLS_KEY": "/k.pem"})
    assert config.tls == ("/c.pem", "/k.pem", "/ca.pem")
    assert Config().tls is None
    assert config.with_tls(None) == Config() and Config().with_tls(config.tls) == config


def test_files_are_found_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    config = Config.from_env({"MINRAY_TOKEN_FILE": "token"})
    assert config.token_file == os.path.join(tmp_path, "token")
    assert Config.from_env({}, token_file="~/token").token_file == "/home/somebody/token"
    assert Config().replace(token_file="token").token_file == os.path.join(tmp_path, "token")
