"""The job's size, this node's place in it and the master's address: from a rank table, torchrun, AscendJob or options.

Every way of starting the trainer ends in the same value, so later code does not ask how it was started. Sources that
contradict each other are refused: a job that trains with the wrong world size wastes days.
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.ranktable.fields import is_ip
from trainer.ranktable.identity import Identity, find_me
from trainer.ranktable.table import RankTable, Server
from trainer.ranktable.wait import wait_until_completed, write_regular
from trainer.shared.config import TrainConfig
from trainer.shared.config.layers import flag_name
from trainer.shared.errors import UsageError
from trainer.topology.addresses import LOOPBACKS, loopback
from trainer.topology.ports import check_port_is_free
from trainer.topology.visible import Visible

MOUNTED_RANK_TABLE = Path("/user/serverid/devindex/config/hccl.json")  # MindCluster's convention
DEFAULT_PORT = 29500  # torch.distributed's


@dataclass(frozen=True)
class Worker:
    """One process. torch's device is `<kind>:<local_rank>`; `device_id` is the physical one, for the user."""

    rank: int
    local_rank: int
    device_id: int


@dataclass(frozen=True)
class Topology:
    """The job as this node sees it; `workers` are the processes that this node must start."""

    world_size: int
    nodes: int
    node_rank: int
    workers: tuple[Worker, ...]
    master_addr: str
    master_port: int
    """0 on a single node to which none is given: a free one is chosen when workers start."""
    rank_table: Path | None
    """A regular file for RANK_TABLE_FILE: HCCL does not read the symlink that a ConfigMap volume holds."""
    source: Literal["rank table", "torchrun", "AscendJob", "options"]


def discover(
    config: TrainConfig,
    environ: Mapping[str, str],
    *,
    visible: Visible,
    mounted: Path = MOUNTED_RANK_TABLE,
    scratch: Path | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    on_status: Callable[[str], None] = lambda status: None,
) -> Topology:
    """Decide this node's place in the job.

    torchrun's own processes come first: each of them is one worker, and a table only says on which device. Next come a
    rank table (`--rank-table`, RANK_TABLE_FILE or the mounted one), an AscendJob's environment, and the options. Four
    variables from `fieldRef` find this pod in a table: POD_UID, POD_IP, POD_NAME or HOST_IP (also NODE_IP, XDL_IP).

    Args:
        visible: The devices of this machine.
        mounted: A rank table that is used if it exists, even if the user did not name it.
        scratch: Folder for the copy of the rank table; the system's temporary folder if None.
        on_status: Called with the reason to wait.

    Raises:
        UsageError: Fewer devices than asked, sources that contradict each other, a bad rank table, or a taken port.
        TrainerError: No rank table of this pod in time.
    """
    path = _rank_table_path(config, environ, mounted)
    ascend_job = _is_ascend_job(environ)
    table, server = None, None
    if path is not None:
        # This node's position in a table without names; on one node, 0 is only the default of --node-rank.
        position = _integer(environ, "RANK") if ascend_job else config.node_rank if config.nodes > 1 else None
        identity = Identity.from_environ(environ, node_rank=position)
        table, content = wait_until_completed(
            path,
            expected_devices=_expected_devices(config, environ),
            identity=identity,
            timeout_s=config.rank_table_timeout_s,
            clock=clock,
            sleep=sleep,
            on_status=on_status,
        )
        server = find_me(table, identity)
        path = write_regular(content, (scratch or Path(tempfile.gettempdir())) / f"hccl-{os.getpid()}.json")
    if not ascend_job and _is_torchrun(environ):
        return _from_torchrun(config, environ, visible, server, path)
    if table is not None and server is not None:
        return _from_table(config, environ, visible, table=table, server=server, path=path)
    if ascend_job:
        return _from_ascend_job(config, environ, visible)
    return _from_options(config, visible)


def follows_options(config: TrainConfig, environ: Mapping[str, str], mounted: Path = MOUNTED_RANK_TABLE) -> bool:
    """Return whether the options say how many devices there are: not a rank table, torchrun or an AscendJob."""
    table = _rank_table_path(config, environ, mounted)
    return table is None and not _is_ascend_job(environ) and not _is_torchrun(environ)


def _rank_table_path(config: TrainConfig, environ: Mapping[str, str], mounted: Path) -> Path | None:
    if named := config.rank_table or environ.get("RANK_TABLE_FILE"):
        return Path(named)
    if "RANK_TABLE_FILE" in environ:  # empty: the mounted table is of another job, around this run
        return None
    try:
        return mounted if mounted.exists() else None
    except PermissionError:  # the operator gives a `ranktable` volume's folder mode 0744: the table may be there
        return mounted


def _is_ascend_job(environ: Mapping[str, str]) -> bool:
    """Return whether the operator started it: LOCAL_RANK is a list ("0,1,2,3", "0" for one device), RANK the node's."""
    return "LOCAL_RANK" in environ and ("MINDX_TASK_ID" in environ or "," in environ["LOCAL_RANK"])


def _is_torchrun(environ: Mapping[str, str]) -> bool:
    if {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= environ.keys():
        return True
    if "LOCAL_RANK" not in environ and environ.get("WORLD_SIZE", "1") != "1" and "RANK" in environ:
        raise UsageError(
            f"RANK={environ['RANK']} and WORLD_SIZE={environ['WORLD_SIZE']} are set but LOCAL_RANK is not: "
            "start through torchrun, or unset them and use --nodes and --node-rank"
        )
    return False


def _expected_devices(config: TrainConfig, environ: Mapping[str, str]) -> int | None:
    """Return the number of devices of the whole job from sources other than the table, or None."""
    if "LOCAL_RANK" in environ and "WORLD_SIZE" in environ:
        return _integer(environ, "WORLD_SIZE")
    return config.nodes * config.npus if config.nodes > 1 and config.npus is not None else None


def _from_torchrun(
    config: TrainConfig, environ: Mapping[str, str], visible: Visible, server: Server | None, path: Path | None
) -> Topology:
    """Describe this process as one worker; torchrun has started the others and can hold the store, and so its port."""
    rank, local_rank, world_size = (_integer(environ, name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    local_size = _integer(environ, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environ else None
    address, port = _required(environ, "MASTER_ADDR"), _integer(environ, "MASTER_PORT")
    if rank >= world_size:
        raise UsageError(f"RANK={rank} is not below WORLD_SIZE={world_size}: one of torchrun's variables is wrong")
    node_rank = _integer(environ, "GROUP_RANK") if "GROUP_RANK" in environ else rank // (local_size or world_size)
    nodes = max(-(-world_size // (local_size or world_size)), node_rank + 1)
    here = {"npus": local_size or 1, "nodes": nodes, "node_rank": node_rank}
    _check_agreement(config, "torchrun", **here, master_addr=address, master_port=port)
    if server is not None:
        worker = _own_worker(rank, local_size, server, visible)
        _check_count("the rank table", worker.local_rank + 1, visible)
    else:
        _check_count("LOCAL_RANK", local_rank + 1, visible)
        worker = Worker(rank, local_rank, visible.ids[local_rank] if visible.ids else local_rank)
    return Topology(world_size, nodes, node_rank, (worker,), address, port, path, "torchrun")


def _own_worker(rank: int, local_size: int | None, server: Server, visible: Visible) -> Worker:
    """Return the worker on the table's device, as HCCL expects, not on LOCAL_RANK's: torchrun knows no devices."""
    workers = {worker.rank: worker for worker in _table_workers(server, visible)}
    if local_size not in {None, len(workers)}:
        raise UsageError(
            f"LOCAL_WORLD_SIZE={local_size} from torchrun contradicts the rank table, in which this node has "
            f"{len(workers)} devices: start torchrun with --nproc-per-node {len(workers)}, or without the table"
        )
    if rank not in workers:
        raise UsageError(f"RANK={rank} from torchrun is not one of this node's ranks in the rank table, {[*workers]}")
    return workers[rank]


def _from_table(
    config: TrainConfig,
    environ: Mapping[str, str],
    visible: Visible,
    *,
    table: RankTable,
    server: Server,
    path: Path | None,
) -> Topology:
    _check_agreement(config, "the rank table", npus=len(server.devices), nodes=len(table.servers))
    _check_count("the rank table", len(server.devices), visible)
    node_rank = table.servers.index(server)
    workers = _table_workers(server, visible)
    address = _table_address(config, environ, table)
    port = _port(config, address, nodes=len(table.servers), hosts_rank_0=node_rank == 0)
    return Topology(table.world_size, len(table.servers), node_rank, workers, address, port, path, "rank table")


def _table_workers(server: Server, visible: Visible) -> tuple[Worker, ...]:
    """Put the process of rank r on the table's device of rank r.

    Inside a pod the driver numbers the pod's devices from 0 in the order of their physical ids. On a host that shows
    more devices than the table names, a device's number is its position among all of them.
    """
    device_ids = sorted(device.device_id for device in server.devices)
    numbered: Sequence[int] = visible.ids if set(device_ids) <= set(visible.ids) else device_ids
    return tuple(
        Worker(device.rank, numbered.index(device.device_id), device.device_id)
        for device in sorted(server.devices, key=lambda device: device.rank)
    )


def _table_address(config: TrainConfig, environ: Mapping[str, str], table: RankTable) -> str:
    """Return the address on which rank 0 listens: its pod's, which others can reach without a Service."""
    if config.master_addr is not None:
        return config.master_addr
    if len(table.servers) == 1:
        return _own_address(table.world_size)
    first = table.servers[0]
    address = first.container_ip or first.host_ip or environ.get("MASTER_ADDR")
    if address is None and is_ip(first.server_id):  # the host's address: hccl-controller writes it, as most users do
        address = first.server_id
    if address is None:
        raise UsageError("the rank table does not say where rank 0 is: add --master-addr")
    return address


def _from_ascend_job(config: TrainConfig, environ: Mapping[str, str], visible: Visible) -> Topology:
    """Read an AscendJob's variables: LOCAL_RANK lists this pod's processes, RANK is the pod's, WORLD_SIZE the job's."""
    local_ranks = [part.strip() for part in environ["LOCAL_RANK"].split(",")]
    local, world_size, node_rank = len(local_ranks), _integer(environ, "WORLD_SIZE"), _integer(environ, "RANK")
    if local_ranks != [str(i) for i in range(local)]:
        raise UsageError(
            f"LOCAL_RANK={environ['LOCAL_RANK']} does not count from 0: the AscendJob's environment is wrong"
        )
    if "LOCAL_WORLD_SIZE" in environ and _integer(environ, "LOCAL_WORLD_SIZE") != local:
        raise UsageError(f"LOCAL_WORLD_SIZE={environ['LOCAL_WORLD_SIZE']} but LOCAL_RANK={environ['LOCAL_RANK']}")
    if world_size % local or node_rank >= world_size // local:
        raise UsageError(
            f"WORLD_SIZE={world_size}, RANK={node_rank} and {local} devices in this pod do not fit together: "
            "every replica of the AscendJob needs the same number of devices"
        )
    nodes = world_size // local
    _check_agreement(config, "the AscendJob", npus=local, nodes=nodes, node_rank=node_rank)
    _check_count("the AscendJob", local, visible)
    address = config.master_addr or _required(environ, "MASTER_ADDR")
    port = config.master_port or _integer(environ, "MASTER_PORT")
    if node_rank == 0:
        check_port_is_free(port, address)
    return Topology(
        world_size, nodes, node_rank, _consecutive(node_rank, local, visible), address, port, None, "AscendJob"
    )


def _from_options(config: TrainConfig, visible: Visible) -> Topology:
    local = config.npus or (1 if visible.kind == "cpu" else len(visible.ids))
    _check_count("--npus", max(local, 1), visible)
    if config.nodes > 1 and config.master_addr is None:
        raise UsageError(f"--nodes {config.nodes} needs --master-addr, the address of node 0")
    address = config.master_addr or _own_address(local)
    return Topology(
        world_size=config.nodes * local,
        nodes=config.nodes,
        node_rank=config.node_rank,
        workers=_consecutive(config.node_rank, local, visible),
        master_addr=address,
        master_port=_port(config, address, nodes=config.nodes, hosts_rank_0=config.node_rank == 0),
        rank_table=None,
        source="options",
    )


def _consecutive(node_rank: int, local: int, visible: Visible) -> tuple[Worker, ...]:
    ids = visible.ids or tuple(range(local))
    return tuple(Worker(node_rank * local + i, i, ids[i]) for i in range(local))


def _port(config: TrainConfig, address: str, *, nodes: int, hosts_rank_0: bool) -> int:
    if config.master_port is None and nodes == 1:
        return 0
    port = config.master_port or DEFAULT_PORT
    if hosts_rank_0:
        check_port_is_free(port, address)
    return port


def _own_address(processes: int) -> str:
    """Return this machine's address for itself; a single process needs none."""
    address = loopback()
    if address is None and processes > 1:
        raise UsageError(
            f"this machine has no address for itself ({' or '.join(LOOPBACKS)}), and its {processes} processes need "
            "one: bring its interface lo up, or use one device"
        )
    return address or next(iter(LOOPBACKS))


def _check_count(source: str, asked: int, visible: Visible) -> None:
    if visible.kind != "cpu" and asked > len(visible.ids):
        raise UsageError(
            f"{source} asks for {asked} {visible.kind} devices, but {len(visible.ids)} are visible "
            f"({visible.found_in}): ask for fewer, or use --device cpu"
        )


def _check_agreement(config: TrainConfig, source: str, **values: object) -> None:
    """Refuse options that contradict `source`; one node and node 0 are also the defaults."""
    defaults = {"nodes": 1, "node_rank": 0}
    for field, value in values.items():
        option = getattr(config, field)
        if option not in {None, defaults.get(field), value}:
            flag = flag_name(field)
            raise UsageError(f"{flag} {option} contradicts {source}, which says {value}: leave {flag} out")


def _required(environ: Mapping[str, str], name: str) -> str:
    if not environ.get(name):
        raise UsageError(f"{name} is not set, but RANK, LOCAL_RANK and WORLD_SIZE are: set it, or unset those")
    return environ[name]


def _integer(environ: Mapping[str, str], name: str) -> int:
    text = _required(environ, name)
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"{name}={text} is not a number: correct it, or unset RANK, LOCAL_RANK and WORLD_SIZE")
    return int(text)
