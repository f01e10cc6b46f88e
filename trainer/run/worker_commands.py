"""How this node's workers are started: their task, their environment and their log files."""

import os
import sys
from collections.abc import Sequence

from trainer.devices.runtime_env import EVENLY, openmp_threads, runtime_environment
from trainer.records.folder import console_log, evidence_folder
from trainer.run.attempt import Attempt
from trainer.shared.container import MOST_LOADERS, usable_processors
from trainer.shared.start import module_command
from trainer.supervisor import WorkerCommand
from trainer.topology import Topology, Worker
from trainer.worker.task import TASK_VARIABLE, WorkerTask


def worker_command(
    worker: Worker,
    topology: Topology,
    attempt: Attempt,
    *,
    device: str,
    command: Sequence[str],
    affinity: str = EVENLY,
    console: int | None = None,
    listener: int | None = None,
) -> WorkerCommand:
    """Return how to start one worker: unbuffered, so that a crash keeps its last words.

    Args:
        device: `npu`, `cuda` or `cpu`.
        command: The command line that started the run, for its provenance.
        affinity: CPU_AFFINITY_CONF on this node; empty for none.
        console: The attempt whose console file gets the lines, if it is an earlier one in the same container.
        listener: For rank 0, the descriptor of a socket that listens on the port; None if torch opens one.
    """
    run = attempt.run
    if worker.rank != 0:
        listener = None
    processors = max(1, usable_processors() // _processes(topology))
    workers = min(MOST_LOADERS, processors) if attempt.config.workers is None else attempt.config.workers
    config = attempt.config.model_copy(update={"workers": workers})
    task = WorkerTask(
        config=config,
        run=run,
        device=device,
        rank=worker.rank,
        local_rank=worker.local_rank,
        world_size=topology.world_size,
        local_world_size=_processes(topology),
        master_port=topology.master_port,
        listener=listener,
        command=tuple(command),
        attempt=attempt.number,
        checkpoint=attempt.checkpoint,
        memory=attempt.memory,
        snapshots=attempt.snapshots,
        lock_token=attempt.lease.token,
    )
    evidence = evidence_folder(run, attempt.number, topology.node_rank)
    runtime = runtime_environment(
        device, config, run, os.environ, evidence=evidence, rank=worker.rank, affinity=affinity
    )
    return WorkerCommand(
        rank=worker.rank,
        device=f"{device}:{worker.local_rank}",
        argv=module_command("trainer.worker.__main__", "-u"),
        env={
            **os.environ,
            **runtime,
            **_rendezvous(worker, topology),
            "OMP_NUM_THREADS": str(config.threads or openmp_threads(os.environ) or processors),
            TASK_VARIABLE: task.to_json(),
        },
        log=console_log(run, worker.rank, attempt=console or attempt.number),
        check_owner=attempt.lease.check,
        stops_later=attempt.steps_before_stop,
        pass_fds=() if listener is None else (listener,),
    )


def _processes(topology: Topology) -> int:
    """Return the number of this node's worker processes; under torchrun each has its own trainer."""
    return -(-topology.world_size // topology.nodes)


def _rendezvous(worker: Worker, topology: Topology) -> dict[str, str]:
    """Return the environment that torch and HCCL read; the administrator's own values stay where they can."""
    environment = {
        "RANK": str(worker.rank),
        "LOCAL_RANK": str(worker.local_rank),
        "WORLD_SIZE": str(topology.world_size),
        "MASTER_ADDR": topology.master_addr,
        "MASTER_PORT": str(topology.master_port),
    }
    if topology.nodes == 1 and sys.platform == "linux":
        # gloo would otherwise look for the interface of this machine's name, which a laptop off the network lacks.
        environment["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    if topology.rank_table is not None:
        environment["RANK_TABLE_FILE"] = str(topology.rank_table)
    return environment
