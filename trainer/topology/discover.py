"""Who am I, how many are we, and where is the master: from a rank table, torchrun, an AscendJob, or the options.

Every way of starting the trainer ends in the same value, so that nothing after this module asks how it was started.
Sources that contradict each other are refused: a job that trains with the wrong world size wastes days.
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.ranktable import Identity, RankTable, Server, find_me, is_ip, wait_until_completed, write_regular
from trainer.shared.config import TrainConfig
from trainer.shared.errors import UsageError
from trainer.topology.ports import check_port_is_free, free_port
from trainer.topology.visible import Visible

MOUNTED_RANK_TABLE = Path("/user/serverid/devindex/config/hccl.json")  # MindCluster's convention
DEFAULT_PORT = 29500  # torch.distributed's
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Worker:
    """One process. torch's device is `<kind>:<local_rank>`; `device_id` is the physical one, for people."""

    rank: int
    local_rank: int
    device_id: int


@dataclass(frozen=True)
class Topology:
    """The job as this node sees it; `workers` are the processes that this node has to start."""

    world_size: int
    nodes: int
    node_rank: int
    workers: tuple[Worker, ...]
    master_addr: str
    master_port: int
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
    """Decide who this node is.

    torchrun's own processes come first, since each of them is one worker whatever else is there (a table still says on
    which device); then a rank table (`--rank-table`, RANK_TABLE_FILE or the mounted one), an AscendJob's environment,
    and the options. This pod is found in a table by POD_UID, POD_IP, POD_NAME or HOST_IP (also NODE_IP, XDL_IP), all
    from `fieldRef`.

    Args:
        visible: the devices of this machine.
        mounted: a rank table that is used if it exists, without being asked for.
        scratch: folder for the copy of the rank table; the system's temporary folder if None.
        on_status: told what is being waited for.

    Raises:
        UsageError: fewer devices than asked, sources that contradict each other, a bad rank table, a taken port.
        TrainerError: no rank table of this pod's in time.
    """
    path = _rank_table_path(config, environ, mounted)
    ascend_job = _is_ascend_job(environ)
    table, me = None, None
    if path is not None:
        identity = Identity.from_environ(environ, node_rank=_table_position(config, environ, ascend_job=ascend_job))
        table, content = wait_until_completed(
            path,
            expected_devices=_expected_devices(config, environ),
            identity=identity,
            timeout_s=config.rank_table_timeout_s,
            clock=clock,
            sleep=sleep,
            on_status=on_status,
        )
        me = find_me(table, identity)
        path = write_regular(content, (scratch or Path(tempfile.gettempdir())) / f"hccl-{os.getpid()}.json")
    if not ascend_job and _is_torchrun(environ):
        return _from_torchrun(config, environ, visible, me, path)
    if table is not None and me is not None:
        return _from_table(config, environ, visible, table=table, me=me, path=path)
    if ascend_job:
        return _from_ascend_job(config, environ, visible)
    return _from_options(config, visible)


def _rank_table_path(config: TrainConfig, environ: Mapping[str, str], mounted: Path) -> Path | None:
    if config.rank_table is not None:
        return config.rank_table
    if environ.get("RANK_TABLE_FILE"):
        return Path(environ["RANK_TABLE_FILE"])
    try:
        return mounted if mounted.exists() else None
    except PermissionError:  # the operator makes the folder of a `ranktable` volume 0744: it is there, but not for us
        return mounted


def _is_ascend_job(environ: Mapping[str, str]) -> bool:
    """The operator injects LOCAL_RANK as a list ("0,1,2,3", "0" for one device), RANK as the node's."""
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
    """Devices of the whole job as far as anything but the table says."""
    if "LOCAL_RANK" in environ and "WORLD_SIZE" in environ:
        return _integer(environ, "WORLD_SIZE")
    return config.nodes * config.npus if config.nodes > 1 and config.npus is not None else None


def _table_position(config: TrainConfig, environ: Mapping[str, str], *, ascend_job: bool) -> int | None:
    """Which server of a table that names no pod is this one; 0 is also what --node-rank says when it says nothing."""
    if ascend_job:
        return _integer(environ, "RANK")
    return config.node_rank if config.nodes > 1 else None


def _from_torchrun(
    config: TrainConfig, environ: Mapping[str, str], visible: Visible, me: Server | None, path: Path | None
) -> Topology:
    """This process is one worker; torchrun has started the others and may hold the store, so its port is in use."""
    rank, local_rank, world_size = (_integer(environ, name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    local_size = _integer(environ, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environ else None
    address, port = _required(environ, "MASTER_ADDR"), _integer(environ, "MASTER_PORT")
    if rank >= world_size:
        raise UsageError(f"RANK={rank} is not below WORLD_SIZE={world_size}: one of torchrun's variables is wrong")
    node_rank = _integer(environ, "GROUP_RANK") if "GROUP_RANK" in environ else rank // (local_size or world_size)
    nodes = max(-(-world_size // (local_size or world_size)), node_rank + 1)
    _agree("--npus", config.npus, "torchrun", local_size or 1)
    _agree("--nodes", config.nodes if config.nodes > 1 else None, "torchrun", nodes)
    _agree("--node-rank", config.node_rank or None, "torchrun", node_rank)
    _agree("--master-addr", config.master_addr, "torchrun", address)
    _agree("--master-port", config.master_port, "torchrun", port)
    if me is not None:
        worker = _own_worker(rank, local_size, me, visible)
        _check_count("the rank table", worker.local_rank + 1, visible)
    else:
        _check_count("LOCAL_RANK", local_rank + 1, visible)
        worker = Worker(rank, local_rank, visible.ids[local_rank] if visible.ids else local_rank)
    return Topology(world_size, nodes, node_rank, (worker,), address, port, path, "torchrun")


def _own_worker(rank: int, local_size: int | None, me: Server, visible: Visible) -> Worker:
    """The table's, not LOCAL_RANK's: torchrun knows no devices, and HCCL expects rank r on that of rank r."""
    workers = {worker.rank: worker for worker in _table_workers(me, visible)}
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
    me: Server,
    path: Path | None,
) -> Topology:
    _agree("--npus", config.npus, "the rank table", len(me.devices))
    _agree("--nodes", config.nodes if config.nodes > 1 else None, "the rank table", len(table.servers))
    _check_count("the rank table", len(me.devices), visible)
    node_rank = table.servers.index(me)
    workers = _table_workers(me, visible)
    address = _table_address(config, environ, table)
    port = _port(config, nodes=len(table.servers), hosts_rank_0=node_rank == 0)
    return Topology(table.world_size, len(table.servers), node_rank, workers, address, port, path, "rank table")


def _table_workers(me: Server, visible: Visible) -> tuple[Worker, ...]:
    """The process of rank r has to sit on the table's device of rank r.

    Inside a pod the driver numbers the pod's devices from 0 in the order of their physical ids; on a host where more
    devices are visible than the table names, a device's number is its place among all of them.
    """
    own = sorted(device.device_id for device in me.devices)
    numbered: Sequence[int] = visible.ids if set(own) <= set(visible.ids) else own
    return tuple(
        Worker(device.rank, numbered.index(device.device_id), device.device_id)
        for device in sorted(me.devices, key=lambda device: device.rank)
    )


def _table_address(config: TrainConfig, environ: Mapping[str, str], table: RankTable) -> str:
    """Where rank 0 listens: its pod's address, which is reachable without a Service."""
    if config.master_addr is not None:
        return config.master_addr
    if len(table.servers) == 1:
        return LOOPBACK
    first = table.servers[0]
    known = first.container_ip or first.host_ip or environ.get("MASTER_ADDR")
    if known is None and is_ip(first.server_id):  # the host's: hccl-controller takes nothing else, nor do most people
        known = first.server_id
    if known is None:
        raise UsageError("the rank table does not say where rank 0 is: add --master-addr")
    return known


def _from_ascend_job(config: TrainConfig, environ: Mapping[str, str], visible: Visible) -> Topology:
    """An AscendJob: LOCAL_RANK lists this pod's processes, RANK is the pod's, WORLD_SIZE counts all devices."""
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
    _agree("--npus", config.npus, "the AscendJob", local)
    _agree("--nodes", config.nodes if config.nodes > 1 else None, "the AscendJob", nodes)
    _agree("--node-rank", config.node_rank or None, "the AscendJob", node_rank)
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
    return Topology(
        world_size=config.nodes * local,
        nodes=config.nodes,
        node_rank=config.node_rank,
        workers=_consecutive(config.node_rank, local, visible),
        master_addr=config.master_addr or LOOPBACK,
        master_port=_port(config, nodes=config.nodes, hosts_rank_0=config.node_rank == 0),
        rank_table=None,
        source="options",
    )


def _consecutive(node_rank: int, local: int, visible: Visible) -> tuple[Worker, ...]:
    ids = visible.ids or tuple(range(local))
    return tuple(Worker(node_rank * local + i, i, ids[i]) for i in range(local))


def _port(config: TrainConfig, *, nodes: int, hosts_rank_0: bool) -> int:
    if config.master_port is None and nodes == 1:
        return free_port()
    port = config.master_port or DEFAULT_PORT
    if hosts_rank_0:
        check_port_is_free(port, config.master_addr or LOOPBACK)
    return port


def _check_count(source: str, asked: int, visible: Visible) -> None:
    if visible.kind != "cpu" and asked > len(visible.ids):
        raise _too_few(source, asked, visible)


def _too_few(source: str, asked: int, visible: Visible) -> UsageError:
    return UsageError(
        f"{source} asks for {asked} {visible.kind} devices, but {len(visible.ids)} are visible ({visible.found_in}): "
        "ask for fewer, or use --device cpu"
    )


def _agree(option: str, given: object, source: str, value: object) -> None:
    if given is not None and given != value:
        raise UsageError(f"{option} {given} contradicts {source}, which says {value}: leave {option} out")


def _required(environ: Mapping[str, str], name: str) -> str:
    if not environ.get(name):
        raise UsageError(f"{name} is not set, but RANK, LOCAL_RANK and WORLD_SIZE are: set it, or unset those")
    return environ[name]


def _integer(environ: Mapping[str, str], name: str) -> int:
    text = _required(environ, name)
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"{name}={text} is not a number: correct it, or unset RANK, LOCAL_RANK and WORLD_SIZE")
    return int(text)
