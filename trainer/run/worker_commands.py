"""How this node's workers are started: their task, their environment and their log files."""

import os
import sys
from collections.abc import Sequence

from trainer.devices.runtime_env import runtime_environment
from trainer.records.folder import console_log
from trainer.run.attempt import Attempt
from trainer.supervisor import WorkerCommand
from trainer.topology import Topology, Worker
from trainer.worker.task import TASK_VARIABLE, WorkerTask


def worker_command(
    worker: Worker, topology: Topology, attempt: Attempt, *, device: str, command: Sequence[str]
) -> WorkerCommand:
    """Return how to start one worker: unbuffered, so that a crash keeps its last words.

    Args:
        device: `npu`, `cuda` or `cpu`.
        command: The command line that started the run, for its provenance.
    """
    config, run = attempt.config, attempt.run
    task = WorkerTask(
        config=config,
        run=run,
        device=device,
        rank=worker.rank,
        local_rank=worker.local_rank,
        world_size=topology.world_size,
        local_world_size=-(-topology.world_size // topology.nodes),
        master_port=topology.master_port,
        command=tuple(command),
        attempt=attempt.number,
        checkpoint=attempt.checkpoint,
    )
    return WorkerCommand(
        rank=worker.rank,
        device=f"{device}:{worker.local_rank}",
        argv=(sys.executable, "-u", "-m", "trainer.worker.__main__"),
        env={
            **os.environ,
            **runtime_environment(device, config, run, os.environ),
            **_rendezvous(worker, topology, threads=config.threads),
            TASK_VARIABLE: task.to_json(),
        },
        log=console_log(run, worker.rank, attempt=attempt.number),
    )


def _rendezvous(worker: Worker, topology: Topology, *, threads: int | None) -> dict[str, str]:
    """Return the environment that torch and HCCL read; the administrator's own values stay where they can."""
    share = max(1, len(os.sched_getaffinity(0)) // len(topology.workers))
    environment = {
        "RANK": str(worker.rank),
        "LOCAL_RANK": str(worker.local_rank),
        "WORLD_SIZE": str(topology.world_size),
        "MASTER_ADDR": topology.master_addr,
        "MASTER_PORT": str(topology.master_port),
        "OMP_NUM_THREADS": str(threads or os.environ.get("OMP_NUM_THREADS", share)),
    }
    if topology.nodes == 1 and sys.platform == "linux":
        # gloo would otherwise look for the interface of this machine's name, which a laptop off the network lacks.
        environment["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    if topology.rank_table is not None:
        environment["RANK_TABLE_FILE"] = str(topology.rank_table)
    return environment
