"""The program of a pod in a replayed job: it looks up its place in each of its rank tables, as the supervisor does.

The text of this file is the pod's command. ROLES names the tables. The program prints the result of each look-up as
a line of JSON, and before that what the look-up waits for.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from trainer.shared.config import TrainConfig
from trainer.shared.errors import TrainerError
from trainer.topology import discover, visible_devices

TABLES = Path("/tables")
SCRATCH = Path("/tmp")
WAITS_S = 3600
_PRINTING = threading.Lock()


def find_place(role: str, spec: dict[str, Any]) -> None:
    """Find the place of this pod in a table."""
    files = SCRATCH / role / "dev"
    files.mkdir(parents=True)
    for chip in spec["chips"]:
        (files / f"davinci{chip}").touch()
    table = TABLES / spec["volume"] / "hccl.json"
    environ = {**os.environ, "POD_NAME": spec["pod_name"], "PNAS_DEVICE_FILES": str(files)}
    config = TrainConfig(device="npu", rank_table=table, rank_table_timeout_s=WAITS_S, master_port=spec["port"])
    visible = visible_devices("npu", environ)
    try:
        topology = discover(
            config,
            environ,
            visible=visible,
            scratch=files.parent,
            on_status=lambda status: print_record(role, waits=status.partition("hccl.json: ")[2]),
        )
    except TrainerError as error:
        print_record(role, refused=str(error))
        return
    copied = topology.rank_table
    assert copied is not None
    place = {
        "workers": [[worker.rank, worker.local_rank, worker.device_id] for worker in topology.workers],
        "world_size": topology.world_size,
        "node_rank": topology.node_rank,
        "master": topology.master_addr,
    }
    print_record(
        role,
        found=place,
        mounted_is_link=table.is_symlink(),
        copy_is_regular=copied.is_file() and not copied.is_symlink(),
    )


def print_record(role: str, **what: object) -> None:
    """Print a record as a line of JSON."""
    with _PRINTING:
        sys.stdout.write(json.dumps({"role": role, **what}) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Look up the place in all tables at once, and keep running."""
    for role, spec in json.loads(os.environ["ROLES"]).items():
        threading.Thread(target=find_place, args=(role, spec)).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
