"""Rank 0 writes figures of every node to metrics.jsonl, and Prometheus can read the figures of a node."""

import json
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

from tests.local.resumable_runs import recipe
from trainer.topology.ports import free_port

FAST = [sys.executable, "-m", "tests.local.fast_sampler"]


def test_each_nodes_samples_are_rows_of_the_runs_metrics_and_a_node_serves_its_figures(
    few_digits: Path, tmp_path: Path
) -> None:
    place = ("--nodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port()))
    port = free_port()
    folders = ("--data-path", str(few_digits), "--output", str(tmp_path), "--run-name", "run")
    nodes = [
        subprocess.Popen([*FAST, *folders, *place, *own, "--node-rank", str(node), *recipe()], stdout=subprocess.PIPE)
        for node, own in enumerate([("--metrics-port", str(port)), ()])
    ]
    scrape, steps, use = "", 'pnas_step{run="run"}', 'pnas_device_use_percent{device="cpu",node="0",rank="",run="run"}'
    while not (steps in scrape and use in scrape):
        with suppress(subprocess.TimeoutExpired):
            nodes[0].wait(timeout=0.1)
            break
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            scrape = answer.read().decode()
    outputs = [node.communicate(timeout=600)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert steps in scrape
    assert use in scrape
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {(row["node"], row["device"]) for row in rows if row["kind"] == "hardware"} == {(0, "cpu"), (1, "cpu")}
    assert [row["global_step"] for row in rows if row["kind"] == "step"] == list(range(16))
