"""Every way of starting the trainer gives the same kind of topology, and contradictions are refused."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import trainer
from tests.unit.ranktable.test_ranktable import server_list
from trainer.ranktable.identity import Identity, find_me
from trainer.ranktable.table import RankTable, Server, parse
from trainer.shared.config import TrainConfig
from trainer.shared.errors import TrainerError, UsageError
from trainer.topology import Topology, Visible, Worker, addresses, check_addresses, discover, ports, visible_devices
from trainer.topology.addresses import loopback

CPU = Visible("cpu", ())
RECORDED = Path(__file__).parents[2] / "data" / "ranktables"

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29511",
}
ASCEND_JOB = {
    "MINDX_TASK_ID": "9fa246e9-b0e6-4fa4-b62d-ce941e717b7c",
    "LOCAL_RANK": "0,1,2,3",
    "LOCAL_WORLD_SIZE": "4",
    "WORLD_SIZE": "8",
    "RANK": "1",
    "MASTER_ADDR": "10.96.205.153",
    "MASTER_PORT": "2222",
}


def npus(*ids: int) -> Visible:
    return Visible("npu", ids, "/dev/davinci*")


def topology(tmp_path: Path, environ: dict[str, str] | None = None, visible: Visible = CPU, **options: Any) -> Topology:
    return discover(
        TrainConfig(**options), environ or {}, visible=visible, mounted=tmp_path / "absent", scratch=tmp_path
    )


def recorded(tmp_path: Path, name: str, index: int) -> Path:
    """Return a controller's table, behind a symlink as in a ConfigMap volume."""
    history = json.loads((RECORDED / f"{name}.json").read_text())["configmap_history"]
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "hccl.json").write_text(history[index]["data"]["hccl.json"])
    path = tmp_path / "hccl.json"
    path.symlink_to(Path("..data") / "hccl.json")
    return path


def test_without_options_there_is_one_worker_on_this_machine(tmp_path: Path) -> None:
    node = topology(tmp_path)
    assert (node.world_size, node.nodes, node.node_rank) == (1, 1, 0)
    assert node.workers == (Worker(0, 0, 0),)
    assert (node.master_addr, node.rank_table, node.source) == ("127.0.0.1", None, "options")


def test_without_options_every_visible_device_is_used(tmp_path: Path) -> None:
    node = topology(tmp_path, visible=npus(4, 5, 6, 7))
    assert node.workers == tuple(Worker(i, i, 4 + i) for i in range(4))


def test_options_place_a_node_among_others(tmp_path: Path) -> None:
    node = topology(tmp_path, npus=2, nodes=3, node_rank=1, master_addr="10.0.0.9")
    assert (node.world_size, node.nodes, node.node_rank) == (6, 3, 1)
    assert [(worker.rank, worker.local_rank) for worker in node.workers] == [(2, 0), (3, 1)]
    assert (node.master_addr, node.master_port) == ("10.0.0.9", 29500)


def test_several_nodes_need_an_address(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--nodes 2 needs --master-addr"):
        topology(tmp_path, npus=1, nodes=2)


@pytest.mark.parametrize(("npu_count", "ids"), [(2, (0,)), (1, ())])
def test_fewer_devices_than_requested_are_refused_with_both_numbers(
    tmp_path: Path, npu_count: int, ids: tuple[int, ...]
) -> None:
    with pytest.raises(UsageError, match=rf"--npus asks for {npu_count} npu devices, but {len(ids)} are visible"):
        topology(tmp_path, visible=npus(*ids), npus=npu_count)


def test_a_machine_without_npus_is_refused_even_if_no_number_is_requested(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 are visible"):
        topology(tmp_path, visible=npus())


def test_torchruns_process_supervises_exactly_one_worker(tmp_path: Path) -> None:
    node = topology(tmp_path, TORCHRUN, npus(0, 1, 2, 3))
    assert node == Topology(8, 2, 1, (Worker(5, 1, 1),), "10.0.0.1", 29511, None, "torchrun")


@pytest.mark.parametrize(
    ("outgoing", "chosen"),
    [
        ("32768\t60999\n", range(10_000, 30_000)),
        ("10001 60999", [10_000]),
        ("1024 65535", range(1024, 65_536)),
        ("", range(10_000, 30_000)),
    ],
)
def test_a_free_port_is_never_one_that_an_outgoing_connection_can_take(
    tmp_path: Path, outgoing: str, chosen: Sequence[int]
) -> None:
    ephemeral = tmp_path / "ip_local_port_range"
    ephemeral.write_text(outgoing)
    assert {ports.free_port(ephemeral=ephemeral) for _ in range(50)} <= set(chosen)


def test_a_free_port_is_never_one_on_which_a_process_listens(tmp_path: Path) -> None:
    taken = ports.free_port()
    ephemeral = tmp_path / "ip_local_port_range"
    ephemeral.write_text(f"{taken + 1} 60999")
    with socket.create_server(("", taken)):
        assert ports.free_port(lowest=taken, ephemeral=ephemeral) != taken


def test_a_held_port_cannot_be_taken_before_its_process_answers() -> None:
    with ports.listen_on_free_port() as listener:
        port = ports.port_of(listener)
        for address in ("", "127.0.0.1"):
            with pytest.raises(OSError, match="in use"):
                socket.create_server((address, port))
        with socket.create_connection(("127.0.0.1", port)) as early:
            early.sendall(b"hello")
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(5) == b"hello"


def test_torchruns_port_is_not_checked_because_its_agent_may_hold_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as agent:
        port = str(agent.getsockname()[1])
        environ = {**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0", "MASTER_PORT": port}
        assert topology(tmp_path, environ).master_port == int(port)


def test_real_torchrun_variables_are_understood(tmp_path: Path) -> None:
    script = tmp_path / "discover.py"
    script.write_text(
        "import os, pathlib, sys\n"
        "from trainer.shared.config import TrainConfig\n"
        "from trainer.topology import Visible, discover\n"
        "topology = discover(TrainConfig(), os.environ, visible=Visible('cpu', ()))\n"
        "(pathlib.Path(sys.argv[1]) / str(topology.workers[0].rank)).write_text(repr(topology))\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(trainer.__file__).parent.parent)}
    subprocess.run(
        [*torchrun, "--standalone", str(script), str(tmp_path)], check=True, env=environ, capture_output=True
    )
    for rank in range(2):
        text = (tmp_path / str(rank)).read_text()
        assert f"world_size=2, nodes=1, node_rank=0, workers=(Worker(rank={rank}, local_rank={rank}" in text
        assert "source='torchrun'" in text


def test_an_ascend_jobs_list_of_local_ranks_becomes_workers(tmp_path: Path) -> None:
    node = topology(tmp_path, ASCEND_JOB, npus(4, 5, 6, 7))
    workers = tuple(Worker(4 + i, i, 4 + i) for i in range(4))
    assert node == Topology(8, 2, 1, workers, "10.96.205.153", 2222, None, "AscendJob")


def test_an_ascend_job_with_one_device_per_pod_is_not_taken_for_torchrun(tmp_path: Path) -> None:
    environ = {**ASCEND_JOB, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "WORLD_SIZE": "2"}
    assert topology(tmp_path, environ).source == "AscendJob"


def test_the_rank_table_decides_the_ranks_and_hccl_gets_a_regular_copy(tmp_path: Path) -> None:
    path = recorded(tmp_path, "op-HEAD-vc-2x4", 1)
    environ = {"POD_UID": "0a895a9b-f17f-4824-a3f0-346c0a7804ea", "POD_IP": "10.244.0.201", "HOST_IP": "10.123.0.1"}
    node = topology(tmp_path, environ, npus(0, 1, 2, 3), rank_table=path)
    assert (node.world_size, node.nodes, node.node_rank, node.source) == (8, 2, 1, "rank table")
    assert node.workers == tuple(Worker(4 + i, i, i) for i in range(4))
    assert (node.master_addr, node.master_port) == ("10.244.0.202", 29500)
    assert node.rank_table is not None
    assert not node.rank_table.is_symlink()
    assert parse(node.rank_table.read_text()) == parse(path.read_text())


def test_hccl_gets_the_checked_table_even_if_the_controller_begins_another(tmp_path: Path) -> None:
    path = recorded(tmp_path, "op-HEAD-vc-1x8", 1)
    checked = path.read_bytes()

    def replace_then_find(table: RankTable, identity: Identity) -> Server:
        path.write_text('{"status":"initializing"}')
        return find_me(table, identity)

    with mock.patch("trainer.topology.discover.find_me", replace_then_find):
        node = topology(tmp_path, {"POD_IP": "10.244.0.199"}, rank_table=path)
    assert node.rank_table is not None
    assert node.rank_table.read_bytes() == checked


@pytest.mark.parametrize("source", ["variable", "mounted"])
def test_the_rank_table_is_found_without_an_option(tmp_path: Path, source: str) -> None:
    path = recorded(tmp_path, "op-HEAD-vc-1x8", 1)
    environ = {"POD_IP": "10.244.0.199"} | ({"RANK_TABLE_FILE": str(path)} if source == "variable" else {})
    mounted = path if source == "mounted" else tmp_path / "absent"
    node = discover(TrainConfig(), environ, visible=CPU, mounted=mounted, scratch=tmp_path)
    assert (node.source, node.world_size, node.master_addr) == ("rank table", 8, "127.0.0.1")


def test_an_empty_variable_keeps_a_run_out_of_the_mounted_table(tmp_path: Path) -> None:
    """A check in a pod starts runs on some of its devices, which are not the job of the table."""
    mounted = recorded(tmp_path, "op-HEAD-vc-1x8", 1)
    node = discover(TrainConfig(), {"RANK_TABLE_FILE": ""}, visible=CPU, mounted=mounted, scratch=tmp_path)
    assert (node.source, node.world_size) == ("options", 1)


def test_a_rank_keeps_its_device_on_a_host_with_more_devices_than_the_table(tmp_path: Path) -> None:
    path = recorded(tmp_path, "op-HEAD-vc-2x4", 1)
    node = topology(tmp_path, {"POD_IP": "10.244.0.202"}, npus(*range(8)), rank_table=path)
    assert node.workers == tuple(Worker(i, 4 + i, 4 + i) for i in range(4))


def test_an_ascend_job_with_a_table_waits_for_all_its_devices(tmp_path: Path) -> None:
    path = recorded(tmp_path, "op-HEAD-acjob-2x4", 3)
    environ = {**ASCEND_JOB, "POD_IP": "10.244.0.231"}
    assert topology(tmp_path, environ, rank_table=path).node_rank == 1
    with pytest.raises(TrainerError, match=r"it has 8 devices, not 16 \(WORLD_SIZE, or "):
        topology(tmp_path, {**environ, "WORLD_SIZE": "16"}, rank_table=path, rank_table_timeout_s=0.01)


def recorded_pods(name: str) -> list[tuple[dict[str, str], tuple[int, ...]]]:
    """Return the environment that the operator gave to each pod of an AscendJob, and the pod's devices."""
    pods = json.loads((RECORDED / f"{name}.json").read_text())["pods_full"]
    return [
        (
            {"POD_UID": pod["uid"], "POD_IP": pod["podIP"]}
            | {item["name"]: item["value"] for item in pod["container"]["env"] if "value" in item},
            tuple(int(word.rpartition("-")[2]) for word in pod["annotations"]["huawei.com/Ascend910"].split(",")),
        )
        for pod in pods
    ]


@pytest.mark.parametrize("name", ["op-HEAD-acjob-1x8", "op-HEAD-acjob-2x4", "op-HEAD-acjob-worker-fails"])
def test_a_recorded_ascend_job_gets_the_same_ranks_from_its_environment_and_from_its_table(
    tmp_path: Path, name: str
) -> None:
    path = recorded(tmp_path, name, -1 if name != "op-HEAD-acjob-2x4" else 1)
    pods = recorded_pods(name)
    for node_rank, (environ, chips) in enumerate(pods):
        with mock.patch("trainer.topology.discover.check_port_is_free"):  # 2222 may be taken where this runs
            by_environment = topology(tmp_path, environ, npus(*chips))
            by_table = topology(tmp_path, environ, npus(*chips), rank_table=path)
        assert (by_environment.source, by_table.source) == ("AscendJob", "rank table")
        assert by_environment.workers == by_table.workers
        assert [worker.device_id for worker in by_environment.workers] == list(chips)
        assert (by_environment.world_size, by_environment.nodes, by_environment.node_rank) == (8, len(pods), node_rank)
        assert (by_environment.master_addr, by_environment.master_port) == (environ["MASTER_ADDR"], 2222)
        assert by_table.master_addr == ("127.0.0.1" if len(pods) == 1 else pods[0][0]["POD_IP"])


def test_an_ascend_job_that_only_limits_its_devices_gets_its_ranks_from_the_table(tmp_path: Path) -> None:
    """The operator injects neither ranks nor a master, but completes the table."""
    ((environ, chips),) = recorded_pods("op-HEAD-acjob-limits-only")
    assert "RANK" not in environ
    node = topology(tmp_path, environ, npus(*chips), rank_table=recorded(tmp_path, "op-HEAD-acjob-limits-only", 1))
    assert (node.source, node.world_size) == ("rank table", 8)


def test_a_pod_without_an_identity_needs_its_node_rank_to_use_a_table(tmp_path: Path) -> None:
    """On ModelArts, RANK_TABLE_FILE names a `group_list` table, and each pod knows only its index."""
    path = recorded(tmp_path, "hccl-controller-6.0.RC3-v1-vc-2x4", 1)
    environ = {"RANK_TABLE_FILE": str(path)}
    with pytest.raises(TrainerError, match="cannot tell which of the table's 2 servers this is"):
        topology(tmp_path, environ, rank_table_timeout_s=0.01)
    node = topology(tmp_path, environ, npus(*range(8)), nodes=2, npus=4, node_rank=1)
    assert (node.source, node.world_size, node.node_rank) == ("rank table", 8, 1)
    servers = parse(path.read_text()).servers
    assert [(worker.rank, worker.device_id) for worker in node.workers] == [
        (device.rank, device.device_id) for device in servers[1].devices
    ]
    assert node.master_addr == servers[0].server_id


def test_a_table_that_names_only_hosts_gives_the_masters_address(tmp_path: Path) -> None:
    """Hand-written tables have neither container_ip nor host_ip, but each server_id is an address."""
    path = tmp_path / "hccl.json"
    table = server_list(2, 2)
    for server in table["server_list"]:
        del server["host_ip"], server["container_ip"]
    path.write_text(json.dumps(table))
    assert topology(tmp_path, {"HOST_IP": "10.0.0.2"}, rank_table=path).master_addr == "10.0.0.1"
    path.write_text(json.dumps(table).replace('"10.0.0.1"', '"node-a"'))
    with pytest.raises(UsageError, match="does not say where rank 0 is: add --master-addr"):
        topology(tmp_path, {"HOST_IP": "10.0.0.2"}, rank_table=path)


def test_torchrun_with_a_table_checks_that_they_agree(tmp_path: Path) -> None:
    path = recorded(tmp_path, "op-HEAD-vc-2x4", 1)
    environ = {**TORCHRUN, "POD_IP": "10.244.0.201", "RANK_TABLE_FILE": str(path)}
    node = topology(tmp_path, environ)
    assert node.source == "torchrun"
    assert node.rank_table is not None
    with pytest.raises(UsageError, match=r"RANK=1 from torchrun is not one of this node's ranks .*, \[4, 5, 6, 7\]$"):
        topology(tmp_path, {**environ, "RANK": "1"})
    with pytest.raises(UsageError, match=r"LOCAL_WORLD_SIZE=2 from torchrun contradicts the rank table, .* 4 devices"):
        topology(tmp_path, {**environ, "LOCAL_WORLD_SIZE": "2"})
    with pytest.raises(UsageError, match="the rank table asks for 2 npu devices, but 1 are visible"):
        topology(tmp_path, environ, npus(9))


@pytest.mark.parametrize(
    ("devices", "visible", "expected"),
    [
        (("1", "0"), npus(0, 1), ((1, 1), (0, 0))),
        (("6", "5"), npus(*range(8)), ((6, 6), (5, 5))),
        (("6", "5"), npus(0, 1), ((1, 6), (0, 5))),
    ],
)
def test_torchruns_process_gets_the_device_of_its_rank_in_the_table(
    tmp_path: Path, devices: tuple[str, str], visible: Visible, expected: tuple[tuple[int, int], ...]
) -> None:
    table = server_list(2)
    for entry, written in zip(table["server_list"][0]["device"], devices, strict=True):
        entry["device_id"] = written
    path = tmp_path / "hccl.json"
    path.write_text(json.dumps(table))
    pod = {"POD_IP": "10.244.0.1", "RANK_TABLE_FILE": str(path)}
    by_table = topology(tmp_path, pod, visible)
    for rank, (number, device_id) in enumerate(expected):
        environ = {**TORCHRUN, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", **pod}
        node = topology(tmp_path, {**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}, visible)
        assert node.workers == (Worker(rank, number, device_id),) == by_table.workers[rank : rank + 1]


@pytest.mark.parametrize(
    ("environ", "options", "message"),
    [
        (TORCHRUN, {"npus": 2}, "--npus 2 contradicts torchrun, which says 4"),
        (TORCHRUN, {"nodes": 3, "master_addr": "10.0.0.1"}, "--nodes 3 contradicts torchrun, which says 2"),
        (TORCHRUN, {"master_addr": "10.0.0.2"}, "--master-addr 10.0.0.2 contradicts torchrun"),
        (TORCHRUN | {"RANK": "8"}, {}, "RANK=8 is not below WORLD_SIZE=8"),
        (TORCHRUN | {"RANK": "one"}, {}, "RANK=one is not a number"),
        (TORCHRUN | {"MASTER_ADDR": ""}, {}, "MASTER_ADDR is not set"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, {}, "LOCAL_RANK is not: start through torchrun"),
        (ASCEND_JOB, {"npus": 8}, "--npus 8 contradicts the AscendJob, which says 4"),
        (ASCEND_JOB | {"WORLD_SIZE": "6"}, {}, "every replica of the AscendJob needs the same number of devices"),
        (ASCEND_JOB | {"RANK": "2"}, {}, "do not fit together"),
        (ASCEND_JOB | {"LOCAL_RANK": "0,2"}, {}, "LOCAL_RANK=0,2 does not count from 0"),
        (ASCEND_JOB | {"LOCAL_WORLD_SIZE": "8"}, {}, "LOCAL_WORLD_SIZE=8 but LOCAL_RANK=0,1,2,3"),
    ],
)
def test_contradictions_are_refused(
    tmp_path: Path, environ: dict[str, str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        topology(tmp_path, environ, **options)


def test_a_table_with_another_count_than_requested_is_refused(tmp_path: Path) -> None:
    path = recorded(tmp_path, "op-HEAD-vc-1x8", 1)
    with pytest.raises(UsageError, match="--npus 4 contradicts the rank table, which says 8"):
        topology(tmp_path, {"POD_IP": "10.244.0.199"}, rank_table=path, npus=4)
    with pytest.raises(UsageError, match="the rank table asks for 8 npu devices, but 4 are visible"):
        topology(tmp_path, {"POD_IP": "10.244.0.199"}, npus(0, 1, 2, 3), rank_table=path)


@pytest.mark.parametrize("npus", [1, 2])
def test_processes_meet_at_an_address_that_the_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, npus: int
) -> None:
    monkeypatch.setattr("trainer.topology.addresses._has_route", lambda address, _family: address == "::1")
    assert topology(tmp_path, npus=npus).master_addr == "::1"
    monkeypatch.setattr("trainer.topology.addresses._has_route", lambda _address, _family: False)
    assert topology(tmp_path, npus=npus, master_addr="10.0.0.9").master_addr == "10.0.0.9"
    if npus == 1:
        assert topology(tmp_path).master_addr == "127.0.0.1", "it is not used"
    else:
        with pytest.raises(UsageError, match="bring its interface lo up, or use one device"):
            topology(tmp_path, npus=npus)


NAMES = {
    "node0": ["192.0.2.7"],
    "localhost": ["::1", "127.0.0.1"],
    "debian": ["127.0.1.1"],
    "node1": ["192.0.2.8"],
    "mine": ["192.0.2.7", "::1"],
}
"""The machine has its loopback addresses and, in these tests, 192.0.2.8."""


def resolve(name: str, port: object, **_options: object) -> list[tuple[object, ...]]:
    if name not in NAMES:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in NAMES[name]]


@pytest.mark.parametrize(
    ("master", "nodes", "own_name", "environ", "message"),
    [
        ("localhost", 1, "unknown", {}, None),
        ("node0", 1, "unknown", {}, None),
        (
            "nowhere",
            1,
            "node0",
            {},
            "the address of rank 0, nowhere, cannot be found: Name or service not known; check",
        ),
        ("nowhere", 2, "node0", {}, "the address of rank 0, nowhere, cannot be found"),
        ("job-0.job", 1, "node0", {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, None),
        ("job-0.job", 2, "node1", {"POD_NAME": "job-1"}, None),
        ("job-0.job", 2, "debian", {"POD_NAME": "job-1"}, "this machine's name debian resolves to"),
        ("localhost", 2, "unknown", {}, None),
        ("node0", 2, "unknown", {}, "this machine's name unknown does not resolve to one of its addresses, so other"),
        ("node0", 2, "node0", {}, "this machine's name node0 does not resolve to one of its addresses"),
        ("node0", 2, "debian", {}, r"this machine's name debian resolves to 127\.0\.1\.1, its address for itself"),
        ("node0", 2, "mine", {}, "this machine's name mine resolves to ::1, its address for itself"),
        ("node0", 2, "debian", {"GLOO_SOCKET_IFNAME": "eth0"}, None),
    ],
)
def test_addresses_that_cannot_connect_the_nodes_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    *,
    master: str,
    nodes: int,
    own_name: str,
    environ: dict[str, str],
    message: str | None,
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", resolve)
    monkeypatch.setattr("socket.gethostname", lambda: own_name)
    binds = addresses._is_own
    monkeypatch.setattr(addresses, "_is_own", lambda address: address == "192.0.2.8" or binds(address))
    with nullcontext() if message is None else pytest.raises(UsageError, match=message):
        check_addresses(master, nodes=nodes, environ=environ)


def test_this_machine_has_an_address_for_itself_and_names_its_own() -> None:
    assert loopback() in {"127.0.0.1", "::1"}
    check_addresses("127.0.0.1", nodes=2, environ={})


def test_a_taken_port_is_refused_only_where_rank_0_will_listen(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            UsageError, match=rf"^port {port} on 127\.0\.0\.1 is taken: choose another with --master-port$"
        ):
            topology(tmp_path, master_port=port)
        other_node = topology(tmp_path, npus=1, nodes=2, node_rank=1, master_addr="10.0.0.9", master_port=port)
        assert other_node.master_port == port
    assert topology(tmp_path, master_port=port).master_port == port


def test_a_single_node_leaves_the_choice_of_a_port_to_the_start_of_its_workers(tmp_path: Path) -> None:
    assert topology(tmp_path).master_port == 0


def fake_dev(tmp_path: Path, *names: str) -> Path:
    dev = tmp_path / "dev"
    dev.mkdir()
    for name in (*names, "davinci_manager", "nvidiactl", "null"):
        (dev / name).touch()
    return dev


@pytest.mark.parametrize(
    ("names", "environ", "expected"),
    [
        (["davinci10", "davinci2", "nvidia0"], {}, ("npu", (2, 10))),
        (["nvidia1", "nvidia0"], {}, ("cuda", (0, 1))),
        ([], {}, ("cpu", ())),
        (["davinci4", "davinci5", "davinci6"], {"ASCEND_RT_VISIBLE_DEVICES": "0,2"}, ("npu", (4, 6))),
        (["davinci4", "davinci5"], {"ASCEND_RT_VISIBLE_DEVICES": "1,7"}, ("npu", (5,))),
        (["nvidia0", "nvidia1"], {"CUDA_VISIBLE_DEVICES": "1"}, ("cuda", (1,))),
        (["nvidia0", "nvidia1"], {"CUDA_VISIBLE_DEVICES": ""}, ("cuda", ())),
        (["nvidia0", "nvidia1"], {"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}, ("cuda", (0,))),
    ],
)
def test_the_environment_selects_among_the_devices_of_dev(
    tmp_path: Path, names: list[str], environ: dict[str, str], expected: tuple[str, tuple[int, ...]]
) -> None:
    visible = visible_devices("auto", environ, fake_dev(tmp_path, *names))
    assert (visible.kind, visible.ids) == expected


def test_a_requested_kind_of_device_is_not_replaced_by_another(tmp_path: Path) -> None:
    dev = fake_dev(tmp_path, "davinci0")
    assert visible_devices("cpu", {}, dev).kind == "cpu"
    assert visible_devices("cuda", {}, dev).ids == ()


def test_a_device_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ASCEND_RT_VISIBLE_DEVICES=0,0 names a device twice"):
        visible_devices("npu", {"ASCEND_RT_VISIBLE_DEVICES": "0,0"}, fake_dev(tmp_path, "davinci0"))


@pytest.mark.parametrize("value", ["1,0", " 2 ,0,1", "0,2,1,x"])
def test_npus_in_an_order_in_which_torch_npu_sees_none_are_refused(tmp_path: Path, value: str) -> None:
    dev = fake_dev(tmp_path, *(f"davinci{number}" for number in range(3)), *(f"nvidia{number}" for number in range(3)))
    with pytest.raises(UsageError, match=f"ASCEND_RT_VISIBLE_DEVICES={value}: .* sort them"):
        visible_devices("npu", {"ASCEND_RT_VISIBLE_DEVICES": value}, dev)
    assert visible_devices("cuda", {"CUDA_VISIBLE_DEVICES": "1,0"}, dev).ids == (1, 0)


def test_finding_the_topology_never_imports_torch() -> None:
    script = (
        "import sys; import trainer.ranktable, trainer.supervisor, trainer.topology; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
