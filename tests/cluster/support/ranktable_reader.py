"""What a pod of a replayed job runs, by this text: the supervisor's own look for its place, for each of its tables.

ROLES says which; what each look comes to, and what it waits for meanwhile, is a line of JSON.
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
_SPEAKING = threading.Lock()


def look(role: str, spec: dict[str, Any]) -> None:
    """Find out who this pod is in a table."""
    files = SCRATCH / role / "dev"
    files.mkdir(parents=True)
    for chip in spec["chips"]:
        (files / f"davinci{chip}").touch()
    table = TABLES / spec["volume"] / "hccl.json"
    environ = {**os.environ, "POD_NAME": spec["pod_name"], "PNAS_DEVICE_FILES": str(files)}
    config = TrainConfig(device="npu", rank_table=table, rank_table_timeout_s=WAITS_S, master_port=spec["port"])
    visible = visible_devices("npu", environ)
    try:
        found = discover(
            config,
            environ,
            visible=visible,
            scratch=files.parent,
            on_status=lambda status: say(role, waits=status.partition("hccl.json: ")[2]),
        )
    except TrainerError as error:
        say(role, refused=str(error))
        return
    copied = found.rank_table
    assert copied is not None
    place = {
        "workers": [[worker.rank, worker.local_rank, worker.device_id] for worker in found.workers],
        "world_size": found.world_size,
        "node_rank": found.node_rank,
        "master": found.master_addr,
    }
    say(
        role,
        found=place,
        mounted_is_link=table.is_symlink(),
        copy_is_regular=copied.is_file() and not copied.is_symlink(),
    )


def say(role: str, **what: object) -> None:
    """A line."""
    with _SPEAKING:
        sys.stdout.write(json.dumps({"role": role, **what}) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Look into all of them at once, and stay."""
    for role, spec in json.loads(os.environ["ROLES"]).items():
        threading.Thread(target=look, args=(role, spec)).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
