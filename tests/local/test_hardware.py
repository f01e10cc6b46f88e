"""The rows about the hardware in metrics.jsonl come from every node, and rank 0 writes them."""

import json
import subprocess
import sys
from pathlib import Path

from tests.local.resumable_runs import recipe
from trainer.topology.ports import free_port

FAST = [sys.executable, "-m", "tests.local.fast_sampler"]


def test_each_nodes_samples_are_rows_of_the_runs_metrics(few_digits: Path, tmp_path: Path) -> None:
    place = ("--nodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port()))
    folders = ("--data-path", str(few_digits), "--output", str(tmp_path), "--run-name", "run")
    nodes = [
        subprocess.Popen([*FAST, *folders, *place, "--node-rank", str(node), *recipe()], stdout=subprocess.PIPE)
        for node in range(2)
    ]
    outputs = [node.communicate(timeout=600)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {(row["node"], row["device"]) for row in rows if row["kind"] == "hardware"} == {(0, "cpu"), (1, "cpu")}
    assert [row["global_step"] for row in rows if row["kind"] == "step"] == list(range(16))
