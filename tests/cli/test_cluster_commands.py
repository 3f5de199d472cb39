"""start, stop, status and health-check without processes: their arguments, and what they say."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minray.cli import start, status, stop
from minray.cli.main import main
from minray.worker.session_folder import SessionInfo


def parsed(command: Any, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(words)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    return capsys.readouterr().err


# --- start --------------------------------------------------------------------------------------------


def test_what_start_takes() -> None:
    words = (
        "--head --host=10.0.0.1 --port=6379 --num-cpus=2 --num-gpus=0.5 --labels=rack=a,disk=ssd --node-name=n "
        "--object-store-memory=2G --memory=1024 --temp-dir=/t --token-file=/f --block "
        "--tls-cert=/c --tls-key=/k --tls-ca=/a --min-worker-port=20000 --max-worker-port=20999 "
        "--object-spilling-directory=/s"
    )
    said = vars(parsed(start, *words.split(), "--resources", '{"license": 2}'))
    assert said == {
        "head": True, "address": None, "host": "10.0.0.1", "port": 6379, "num_cpus": 2, "num_gpus": 0.5,
        "labels": {"rack": "a", "disk": "ssd"}, "resources": {"license": 2}, "node_name": "n",
        "object_store_memory": 2 << 30, "memory": 1024, "temp_dir": "/t", "token_file": "/f", "block": True,
        "tls_cert": "/c", "tls_key": "/k", "tls_ca": "/a", "min_worker_port": 20000, "max_worker_port": 20999,
        "spill_dirs": "/s", "resume": False,
    }  # fmt: skip


def test_nothing_said_is_nothing_but_the_loopback() -> None:
    said = parsed(start, "--head")
    assert said.host is None and said.port == 0 and not said.block
    assert all(getattr(said, name) is None for name in start.OFFERS)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["start"], "--head --address"),
        (["start", "--head", "--address=a:1"], "not allowed with"),
        (["start", "--head", "--port=70000"], "'70000'"),
        (["start", "--head", "--port=x"], "'x'"),
        (["start", "--head", "--num-cpus=many"], "'many'"),
        (["start", "--head", "--resources={license: 2}"], "{license: 2}"),
        (["start", "--head", "--resources=[1]"], "[1]"),
        (["start", "--head", "--labels=a"], "'a'"),
        (["start", "--head", "--labels=a=1,=2"], "'=2'"),
        (["start", "--head", "--object-store-memory=2X"], "'2X'"),
        (["stop", "--grace-period=-1"], "'-1'"),
        (["stop", "--grace-period=nan"], "'nan'"),
    ],
    ids=" ".join,
)
def test_wrong_words_are_named(capsys: pytest.CaptureFixture[str], words: list[str], named: str) -> None:
    assert named in refused(capsys, *words)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--head", "--num-cpus=-1"], "-1"),
        (["--head", '--resources={"CPU": 1}'], "CPU"),
        (["--head", "--object-store-memory=1"], "got 1"),
        (["--head", "--host=auto"], "--host=auto"),
        (["--head", "--host=0.0.0.0"], "--host=0.0.0.0"),
        (["--head", "--token-file=/there/is/none"], "/there/is/none"),
        (["--address=nowhere"], "'nowhere'"),
        (["--address=ray://127.0.0.1:1"], "'ray://127.0.0.1:1'"),
        (["--address=127.0.0.1:0"], "'127.0.0.1:0'"),
        (["--address=127.0.0.1:1"], "MINRAY_TOKEN_FILE"),
        (["--address=192.0.2.1:1", "--token-file=TOKEN", "--host=127.0.0.1"], "leave --host out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_started_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    named: str,
) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    monkeypatch.setenv("MINRAY_TEMP_DIR", str(tmp_path / "sessions"))
    assert main(["start", *(word.replace("TOKEN", str(token)) for word in words)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("minray start: ") and named in line
    assert not [path for path in (tmp_path / "sessions").glob("*")]


def lines(*words: str, is_head: bool = True, gcs: str = "tcp:127.0.0.1:5", tls: Any = None) -> str:
    endpoint = "unix:/t/s_abc/sock tcp:10.0.0.9:7"
    info = SessionInfo("/t/s_abc", endpoint, "", 0.0, gcs=gcs, is_head=is_head, node_id="ab" * 28, tls=tls)
    started: Any = SimpleNamespace(info=info, endpoint=info.endpoint)
    return "\n".join(start.told(parsed(start, *words), started))


def test_a_head_on_the_loopback_says_so() -> None:
    text = lines("--head")
    assert "Only this machine can reach it" in text and "--host=ADDRESS" in text
    assert "\n  MINRAY_TOKEN_FILE=/t/s_abc/token minray start --address=127.0.0.1:5\n" in text
    for line in ("  minray status", "  minray stop", '  python: minray.init(address="auto")'):
        assert line in text.splitlines()


def test_a_head_in_a_network_says_how_the_token_gets_there() -> None:
    text = lines("--head", "--host=10.0.0.9", gcs="tcp:10.0.0.9:7")
    assert "\n  scp 10.0.0.9:/t/s_abc/token minray.token\n" in text
    assert "\n  MINRAY_TOKEN_FILE=minray.token minray start --address=10.0.0.9:7\n" in text
    assert "Only this machine" not in text


def test_a_head_with_tls_says_what_the_others_need() -> None:
    text = lines("--head", "--host=10.0.0.9", gcs="tcp:10.0.0.9:7", tls=("/c", "/k", "/a b"))
    assert "--address=10.0.0.9:7 --tls-cert=FILE --tls-key=FILE --tls-ca=FILE\n" in text
    assert "of the authority in /a b" in text
    assert "tls" not in lines("--head", tls=("/c", "/k", "/a"))  # another node here takes this one's


def test_a_folder_of_ones_own_is_in_the_next_commands() -> None:
    assert "start --address=127.0.0.1:5 --temp-dir=/x\n" in lines("--head", "--temp-dir=/x")
    text = lines("--address=10.0.0.1:7", "--temp-dir=/my folder", "--block", is_head=False, gcs="tcp:10.0.0.1:7")
    assert "joined the cluster at 10.0.0.1:7" in text and "at 10.0.0.9:7" in text
    assert "  minray stop --temp-dir='/my folder'" in text
    assert 'minray.init(address="auto", _temp_dir="/my folder")' in text
    assert "Ctrl-C" in text


# --- status -------------------------------------------------------------------------------------------


def node(name: str, totals: dict[str, float], available: dict[str, float] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "node_id": name * 28, "node_name": "", "address": "10.0.0.1", "hostname": f"host-{name}", "alive": True,
        "death_reason": "", "labels": {}, "totals": totals, "load": 0, "waiting": [], "store": {},
        "available": totals if available is None else available, **more,
    }  # fmt: skip


def test_nodes_in_columns() -> None:
    head = node("ab", {"CPU": 4, "node:__internal_head__": 1, "memory": 2 * status.GIB}, {"CPU": 1.5, "memory": 0.0})
    other = node("cd", {"CPU": 2, "GPU": 1, "license": 2, "CPU_group_0_ff": 1}, labels={"rack": "a", "ray.io/x": "y"})
    assert status.report("h:1", [head, other]) == [
        "Cluster at h:1: 2 alive",
        "",
        "NODE      ADDRESS   NAME            CPU    GPU  MEMORY    OTHER        LABELS",
        "abababab  10.0.0.1  host-ab (head)  2.5/4  -    2.0/2.0G",
        "cdcdcdcd  10.0.0.1  host-cd         0/2    0/1  -         license 0/2  rack=a",
        "all                                 2.5/6  0/1  2.0/2.0G  license 0/2",
        "",
        "Nothing waits.",
    ]


def test_what_is_on_disk() -> None:
    store = {"on_disk": 512 << 20, "spilled_bytes": 3 << 30, "restored_bytes": 1 << 30}
    text = status.report("h:1", [node("ab", {"CPU": 1}, store=store), node("cd", {"CPU": 1})])
    assert text[2:5] == [
        "NODE      ADDRESS   NAME     CPU  ON DISK",
        "abababab  10.0.0.1  host-ab  0/1  0.5G (out 3.0G, back 1.0G)",
        "cdcdcdcd  10.0.0.1  host-cd  0/1",
    ]
    small = {"on_disk": 0, "spilled_bytes": 3 << 20, "restored_bytes": 1 << 20}
    assert "0.0M (out 3.0M, back 1.0M)" in status.report("h:1", [node("ab", {"CPU": 1}, store=small)])[3]


def test_the_dead_are_told_with_their_reasons() -> None:
    text = status.report("h:1", [node("ab", {"CPU": 1}), node("cd", {}, alive=False, death_reason="silent for 10 s")])
    assert text[0] == "Cluster at h:1: 1 alive, 1 dead"
    assert "  cdcdcdcd  10.0.0.1  silent for 10 s" in text


def test_what_waits_is_added_up_over_the_nodes() -> None:
    waits = [("task f", {"CPU": 2.0}, 3)]
    nodes = [
        node("ab", {"CPU": 4}, {"CPU": 1.0}, waiting=waits),
        node("cd", {"CPU": 4}, {"CPU": 0.0}, waiting=[*waits, ("actor A", {"GPU": 1.0}, 1)]),
    ]
    text = status.report("h:1", nodes)
    assert text[-3:] == [
        "COUNT  WHAT     NEEDS  WHY",
        "6      task f   CPU 2  CPU in use on the 2 nodes that could hold it",
        "1      actor A  GPU 1  no node can ever hold it: GPU 1 (the most that one has: 0)",
    ]


def test_what_waits_in_placement_groups_and_which_groups_wait() -> None:
    here, elsewhere = "ab" * 18, "cd" * 18
    names = {"CPU": 1.0, "license": 2.0, "bundle": 0.001}

    def inside(group: str, index: int | None) -> dict[str, float]:
        part = "" if index is None else f"{index}_"
        return {f"{name}_group_{p}{group}": n for name, n in names.items() for p in {"", part}}

    offered = {**{name: 1000.0 for name in inside(here, 0)}, "CPU": 4}
    waits = [("task f", inside(here, 0), 3), ("task g", inside(elsewhere, None), 2)]
    taken = {**offered, f"CPU_group_0_{here}": 0.0, f"CPU_group_{here}": 0.0}
    group = (f"placement group {elsewhere}", "STRICT_SPREAD 2 × (CPU: 3)", "the nodes that there are can never hold it")
    text = status.report("h:1", [node("ab", offered, taken, waiting=waits)], [group])
    assert [line.split("  ", 1)[1].strip() for line in text[-3:]] == [
        f"{'task f':52}  CPU 1, license 2 in bundle 0 of placement group abababab  CPU in use in its placement group",
        f"{'task g':52}  {'CPU 1, license 2 in placement group cdcdcdcd':56}  its placement group is not there yet",
        f"{group[0]}  {group[1]:56}  {group[2]}",
    ]


def test_reasons() -> None:
    nodes = [node("ab", {"CPU": 4, "a": 1}, {"CPU": 4, "a": 0}), node("cd", {"CPU": 1, "b": 1})]
    assert status.why({"CPU": 1.0}, nodes) == "a worker for it starts"
    assert status.why({"a": 1.0}, nodes) == "a in use on the 1 node that could hold it"
    assert status.why({"a": 1.0, "b": 1.0}, nodes) == "no node can ever hold it: none has all of it together"
    assert "CPU 8 (the most that one has: 4)" in status.why({"CPU": 8.0}, nodes)


def test_stop_defaults() -> None:
    assert vars(parsed(stop)) == {"address": None, "temp_dir": None, "force": False, "grace_period": 10.0}
