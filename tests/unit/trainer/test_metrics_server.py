"""Prometheus gets progress and hardware: parsed here by its own client's parser."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from trainer.environment.sampler import HardwareSampler
from trainer.records.lease import Lease
from trainer.records.run_records import Records, SavedExtent
from trainer.run.attempt import Attempt
from trainer.run.metrics_server import RunCollector, serving
from trainer.shared.config import TrainConfig
from trainer.shared.errors import UsageError
from trainer.topology import Topology, Worker
from trainer.topology.ports import free_port

TIME = "2026-11-30T07:19:07Z"
NPU = {"time": TIME, "node": 1, "device": "npu:0", "rank": 8, "health": "Alarm", "use_percent": 93.0}
NPU |= {"memory_used_mib": 3, "memory_mib": 4, "temperature_c": 71.0, "power_w": 251.4, "ecc_uncorrected": 1}
HOST = {"time": TIME, "node": 1, "device": "cpu", "use_percent": 12.5}


class _Sampler(HardwareSampler):
    """The latest samples of a node with one NPU."""

    def __init__(self) -> None:
        super().__init__({}, ranks={})

    @property
    def latest(self) -> list[Mapping[str, Any]]:
        return [NPU, HOST]


def _values(text: str) -> dict[tuple[str, str], float]:
    """Return the value of each sample by its name and its device."""
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    assert all(family.documentation for family in families)
    return {
        (sample.name, sample.labels.get("device", "")): sample.value for family in families for sample in family.samples
    }


def _scrape(run: Path, *, with_progress: bool = True) -> dict[tuple[str, str], float]:
    registry = CollectorRegistry()
    registry.register(RunCollector(run, {"run": 'a"b\n'}, _Sampler(), with_progress=with_progress))
    return _values(generate_latest(registry).decode())


def _step(global_step: int, loss: float) -> dict[str, Any]:
    return {"epoch": 2, "step": global_step, "global_step": global_step, "loss": loss, "lr": 0.5}


def test_a_scrape_over_http_has_the_latest_progress_and_each_device(tmp_path: Path) -> None:
    port = free_port()
    config = TrainConfig(metrics_port=port)
    topology = Topology(1, 1, 0, (Worker(0, 0, 0),), "127.0.0.1", 1, None, "options")
    with Records(tmp_path, config, rank=0, world_size=1) as records:
        records.write_steps([_step(6, 3.5), _step(7, float("nan"))], fps=353.0, top1=40.0, left={"left_s": 90})
        records.write_evaluation({"epoch": 1, "top1": 41.0, "top5": 80.0, "loss": 2.5, "images": 360}, steps=7)
        with serving(Attempt(config, tmp_path, 1, None, Lease(tmp_path, "")), topology, _Sampler(), port=port):
            url = f"http://127.0.0.1:{port}/metrics"
            with urllib.request.urlopen(url) as answer:
                text = answer.read().decode()
            records.write_steps([_step(8, 3.0)], fps=354.0)
            with urllib.request.urlopen(url) as answer:
                later = _values(answer.read().decode())
            with (
                pytest.raises(UsageError, match=rf"--metrics-port {port}: .*in use: choose another port"),
                serving(Attempt(config, tmp_path, 1, None, Lease(tmp_path, "")), topology, _Sampler(), port=port),
            ):
                pass
    values = _values(text)
    assert f'pnas_run_info{{mode="full",model="pnasnet5large",run="{tmp_path.name}"}} 1.0' in text
    assert {name.removeprefix("pnas_"): value for (name, device), value in values.items() if not device} == {
        **{"run_info": 1, "step": 7, "epoch": 2, "learning_rate": 0.5, "images_per_second": 353},
        **{"train_top1_percent": 40, "left_seconds": 90, "eval_top1_percent": 41, "eval_top5_percent": 80},
        **{"eval_loss": 2.5, "eval_epoch": 1},
        "progress_timestamp_seconds": values["pnas_progress_timestamp_seconds", ""],
    }
    assert {
        name.removeprefix("pnas_device_"): value for (name, device), value in values.items() if device == "npu:0"
    } == {
        **{"use_percent": 93, "memory_used_bytes": 3 << 20, "memory_bytes": 4 << 20, "temperature_celsius": 71},
        **{"power_watts": 251.4, "ecc_uncorrected": 1, "healthy": 0},
    }
    assert values["pnas_device_use_percent", "cpu"] == 12.5
    assert (later["pnas_step", ""], later["pnas_loss", ""], later["pnas_images_per_second", ""]) == (8, 3.0, 354)


def test_a_run_that_goes_back_a_damaged_file_and_no_file_are_served(tmp_path: Path) -> None:
    devices = {name for name in _scrape(tmp_path) if name[1]}
    assert set(_scrape(tmp_path)) == devices | {("pnas_run_info", "")}
    registry = CollectorRegistry()
    registry.register(RunCollector(tmp_path, {"run": "r"}, _Sampler()))
    with Records(tmp_path, TrainConfig(), rank=0, world_size=1) as records:
        for step in range(9):
            records.write_steps([_step(step, 1.0)])
        assert _values(generate_latest(registry).decode())["pnas_step", ""] == 8
        records.rewind(SavedExtent(steps=3, epochs=2))
        assert _values(generate_latest(registry).decode())["pnas_step", ""] == 2
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(
            b'{"kind": "eval", "top1": \xff}\n{"kind": "progress", "fps": "fast", "time": 3}\n' + b'{"kind": "step"'
        )
    values = _values(generate_latest(registry).decode())
    assert values["pnas_step", ""] == 2
    assert ("pnas_images_per_second", "") not in values
    (tmp_path / "metrics.jsonl").write_text(json.dumps(["kind"]) + "\n")
    assert set(_scrape(tmp_path)) == devices | {("pnas_run_info", "")}


def test_only_the_node_of_rank_0_serves_the_progress(tmp_path: Path) -> None:
    with Records(tmp_path, TrainConfig(), rank=0, world_size=1) as records:
        records.write_steps([_step(0, 1.0)])
    assert ("pnas_step", "") in _scrape(tmp_path)
    assert ("pnas_step", "") not in _scrape(tmp_path, with_progress=False)


def test_a_run_that_serves_no_figures_imports_no_web_server(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "trainer", "--data-path", str(tmp_path / "absent")]
    imports = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert "trainer.run.attempt" in imports
    assert "prometheus_client" not in imports
