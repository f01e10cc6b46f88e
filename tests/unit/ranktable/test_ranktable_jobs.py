"""In each job and with each writer's table, every pod gets its ranks on its devices, and all pods the same master."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.ranktable.test_ranktable import FORMATS
from trainer.shared.config import TrainConfig
from trainer.shared.errors import TrainerError
from trainer.topology import Topology, Visible, discover

Json = dict[str, Any]

FIXED = settings(deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
CHIPS = 16  # in an A3 or an A2 box
MASTER = "10.96.0.7"
"""The address of a Service, in MASTER_ADDR, for tables that do not name the master."""


@dataclass(frozen=True)
class Pod:
    """One pod of a job, in the order of ranks: `ranks[i]` belongs on the device `chips[i]`."""

    index: int
    node: int
    chips: tuple[int, ...]
    ranks: tuple[int, ...]

    @property
    def uid(self) -> str:
        return f"{self.index:08x}-1111-4222-8333-{self.node:012x}"

    @property
    def ip(self) -> str:
        return f"10.244.{self.node}.{self.index + 1}"

    @property
    def host(self) -> str:
        return f"10.123.0.{self.node + 1}"

    @property
    def name(self) -> str:
        return f"job-worker-{self.index}"

    @property
    def expected(self) -> set[tuple[int, int, int]]:
        """Return each worker's rank, its device's number within the pod, and its device's number on the host."""
        return {(rank, sorted(self.chips).index(chip), chip) for rank, chip in zip(self.ranks, self.chips, strict=True)}

    def environ(self, *names: str) -> dict[str, str]:
        variables = {"POD_UID": self.uid, "POD_IP": self.ip, "POD_NAME": self.name, "HOST_IP": self.host}
        return {name: variables[name] for name in names or variables}


@st.composite
def jobs(draw: st.DrawFn, *, sorted_chips: bool = False) -> list[Pod]:
    """Draw pods in the order of ranks, with 1 to 4 devices each. Some share a node; no two share a device."""
    nodes = draw(
        st.lists(st.integers(0, 3), min_size=1, max_size=6).filter(lambda nodes: max(map(nodes.count, nodes)) <= 4)
    )
    free = {node: draw(st.permutations(range(CHIPS))) for node in sorted(set(nodes))}
    pods: list[Pod] = []
    rank = 0
    for index, node in enumerate(nodes):
        count = draw(st.integers(1, 4))
        chips, free[node] = free[node][:count], free[node][count:]
        pods.append(Pod(index, node, tuple(sorted(chips) if sorted_chips else chips), tuple(range(rank, rank + count))))
        rank += count
    return pods


def device(pod: Pod, position: int, address: str | None, **more: str) -> Json:
    entry = {"device_id": str(pod.chips[position]), **more}
    return entry if address is None else {**entry, "device_ip": address}


def address_of(pod: Pod, position: int) -> str:
    return f"192.168.{pod.node}.{pod.chips[position] + 1}"


@dataclass(frozen=True)
class Written:
    """A table, and the sets of variables by which a pod must find itself in it."""

    table: Json
    finds: tuple[tuple[str, ...], ...]
    master: str | None
    """None if only MASTER_ADDR names the master."""


@st.composite
def server_lists(draw: st.DrawFn, pods: list[Pod], version: str) -> Written:
    """Draw tables of version 1.0 and 1.2 as MindCluster's operators, its hccl-controller and users write them."""
    shared = len({pod.node for pod in pods}) < len(pods)
    # HEAD's operator and 7.3's write the host's address unless pods share a node; 7.2's and hccl-controller always do.
    server_id = draw(st.sampled_from(["uid", "host"])) if version == "1.0" or not shared else "uid"
    container_ip = draw(st.booleans()) or (shared and server_id == "host")
    host_ip = draw(st.sampled_from(["written", "empty", "missing"]))
    virtual = draw(st.booleans())
    servers = []
    for pod in pods:
        more = {"super_device_id": "0"} if version == "1.2" else {}
        addresses = (
            [None if draw(st.booleans()) else "-1" for _ in pod.chips]
            if version == "1.2"
            else ["127.0.0.1" if virtual else address_of(pod, i) for i in range(len(pod.chips))]
        )
        devices = [device(pod, i, addresses[i], rank_id=str(rank), **more) for i, rank in enumerate(pod.ranks)]
        server: Json = {"device": devices, "server_id": pod.uid if server_id == "uid" else pod.host}
        if host_ip != "missing":
            server["host_ip"] = pod.host if host_ip == "written" else ""
        if container_ip:
            server["container_ip"] = pod.ip
        servers.append(server)
    table: Json = {"status": "completed", "server_count": str(len(servers)), "version": version}
    table["server_list"] = draw(st.permutations(servers))
    if version == "1.2":
        table["super_pod_list"] = [
            {"super_pod_id": "0", "server_list": [{"server_id": server["server_id"]} for server in servers]}
        ]
    finds: list[tuple[str, ...]] = [("POD_UID",)] if server_id == "uid" else []
    finds += [("POD_IP",), ("POD_IP", "HOST_IP")] if container_ip else []
    names_host = server_id == "host" or host_ip == "written"
    finds += [("HOST_IP",)] if names_host and not shared else []
    master = pods[0].ip if container_ip else pods[0].host if names_host else None
    return Written(table, tuple(finds), master)


@st.composite
def group_lists(draw: st.DrawFn, pods: list[Pod]) -> Written:
    """Draw tables of hccl-controller -json=v1: pods in any order, without ranks, identified by their names."""
    instances = [
        {
            "pod_name": pod.name,
            "server_id": pod.host,
            "devices": [device(pod, i, address_of(pod, i)) for i in range(len(pod.chips))],
        }
        for pod in pods
    ]
    group = {
        "group_name": "worker",
        "instance_count": str(len(pods)),
        "device_count": str(sum(len(pod.chips) for pod in pods)),
        "instance_list": draw(st.permutations(instances)),
    }
    table = {"status": "completed", "group_count": "1", "group_list": [group]}
    shared = len({pod.node for pod in pods}) < len(pods)
    finds = (("POD_NAME",), ("POD_NAME", "HOST_IP")) + (() if shared else (("HOST_IP",),))
    return Written(table, finds, pods[0].host)


@st.composite
def rank_lists(draw: st.DrawFn, pods: list[Pod]) -> Written:
    """Draw tables of version 2.0, which names no pods: a pod finds itself by its node rank."""
    ranks = [
        {
            "rank_id": rank,
            "local_id": i,
            "device_id": pod.chips[i],
            "level_list": draw(
                st.permutations(
                    [
                        {"net_layer": 0, "net_instance_id": f"rack{pod.node}"},
                        {"net_layer": 1, "net_instance_id": "az0"},
                    ]
                )
            ),
        }
        for pod in pods
        for i, rank in enumerate(pod.ranks)
    ]
    table = {
        "status": "completed",
        "version": "2.0",
        "rank_count": len(ranks),
        "rank_list": draw(st.permutations(ranks)),
    }
    return Written(table, (("POD_UID", "POD_IP", "POD_NAME", "HOST_IP"),), None)


@st.composite
def written_jobs(draw: st.DrawFn) -> tuple[list[Pod], Written]:
    """Draw a job, and its table by one of the writers."""
    version = draw(st.sampled_from(sorted(FORMATS)))
    if version == "group_list":
        pods = draw(jobs())
        return pods, draw(group_lists(pods))
    if version == "2.0":
        pods = draw(jobs(sorted_chips=True))
        return pods, draw(rank_lists(pods))
    pods = draw(jobs())
    written = draw(server_lists(pods, version).filter(lambda written: written.finds))
    return pods, written


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a ConfigMap volume, in which the file is a link."""
    folder = tmp_path_factory.mktemp("config")
    (folder / "..data").mkdir()
    (folder / "hccl.json").symlink_to(Path("..data") / "hccl.json")
    return folder


@contextmanager
def volume_with(volume: Path, content: bytes) -> Iterator[Path]:
    """Give the volume's file this content, and yield its path."""
    (volume / "..data" / "hccl.json").write_bytes(content)
    # Ports are not the subject of these tests, and another test may hold one.
    with mock.patch("trainer.topology.discover.check_port_is_free"):
        yield volume / "hccl.json"


def start(path: Path, environ: dict[str, str], visible: Visible, **options: Any) -> Topology:
    """Discover the topology as the supervisor does; the time to wait for a table is over at once."""
    times = iter((0.0, 1e9))
    config = TrainConfig(rank_table=path, rank_table_timeout_s=1, **options)
    return discover(config, environ, visible=visible, scratch=path.parent, clock=lambda: next(times))


@settings(FIXED, max_examples=250)
@given(job=written_jobs(), data=st.data())
def test_every_pod_of_a_job_gets_its_ranks_on_its_devices_and_the_master_is_rank_0s(
    volume: Path, job: tuple[list[Pod], Written], data: st.DataObject
) -> None:
    pods, written = job
    content = json.dumps(written.table).encode()
    ranks: list[int] = []
    with volume_with(volume, content) as path:
        for node_rank, pod in enumerate(pods):
            environ = pod.environ(*data.draw(st.sampled_from(written.finds)))
            environ |= {} if written.master else {"MASTER_ADDR": MASTER}
            whole_host = data.draw(st.booleans())
            visible = Visible("npu", tuple(range(CHIPS)) if whole_host else tuple(sorted(pod.chips)), "/dev")
            options = {} if len(pods) == 1 else {"nodes": len(pods), "node_rank": node_rank, "master_addr": None}
            topology = start(path, environ, visible, **options)
            expected = {(rank, chip if whole_host else place, chip) for rank, place, chip in pod.expected}
            assert {(worker.rank, worker.local_rank, worker.device_id) for worker in topology.workers} == expected
            assert (topology.world_size, topology.nodes) == (sum(len(item.chips) for item in pods), len(pods))
            assert topology.node_rank == node_rank
            assert topology.master_addr == ("127.0.0.1" if len(pods) == 1 else written.master or MASTER)
            assert topology.rank_table is not None
            assert topology.rank_table.is_file()
            assert not topology.rank_table.is_symlink()
            assert topology.rank_table.read_bytes() == content
            ranks += [worker.rank for worker in topology.workers]
    assert ranks == list(range(len(ranks)))


@settings(FIXED, max_examples=60)
@given(job=written_jobs().filter(lambda job: job[1].table.get("version") != "2.0"))  # 2.0 names no pods
def test_no_pod_of_another_job_accepts_the_table(volume: Path, job: tuple[list[Pod], Written]) -> None:
    pods, written = job
    foreign = {"POD_UID": f"{0xFFFF:08x}-1111-4222-8333-{0:012x}", "POD_IP": "10.244.9.99", "HOST_IP": "10.123.0.99"}
    with volume_with(volume, json.dumps(written.table).encode()) as path:
        for pod in pods:
            # The next job's pod has the same name, and may have the same host.
            environ = {**foreign, "POD_NAME": pod.name}
            if "container_ip" in json.dumps(written.table):
                environ["HOST_IP"] = pod.host
            with pytest.raises(TrainerError, match=r"does not contain this pod|cannot tell which"):
                start(path, environ, Visible("cpu", ()))
