"""The chart and the launcher give the same job, to the last field of its pods: over devices, nodes, kinds, options.

The plain manifests of k8s/manifests are the launcher's own output, and compared with it in tests/unit.
"""

import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.chart import CHART
from launcher.manifests import manifests
from tests.cluster.testbed import binaries

Settings = dict[str, Any]

PLAIN: Settings = {"image": "r/pnas:1"}
EVERYTHING: Settings = {
    **PLAIN,
    "priority_class": "high",
    "node_selector": ["accelerator=huawei-Ascend910", "host-arch="],
    "toleration": ["npu", "host=busy", "disk=slow:NoSchedule", "spot:NoExecute"],
    "retries": 0,
    "ttl": "1d12h",
    "image_pull_policy": "Always",
    "image_pull_secret": ["registry", "other"],
    "resource": "huawei.com/Ascend910B",
    "cpu": "1500m",
    "memory": "64Gi",
    "shm": "1Gi",
    "scratch": "2Gi",
    "user": 1234,
    "group": 4321,
    "env": ["A=$HOME/x", "B=c=d", "EMPTY="],
    "env_from_secret": ["keys"],
    "mode": "finetune",
    "weights": "/output/a/checkpoints/best.safetensors",
    "lr": 0.05,
    "weight_decay": 0.00001,
    "label_smoothing": 0.1,
    "epochs": 3,
    "batch_size": 64,
    "nesterov": True,
    "decay_all": False,
    "grace_s": 44.5,
    "stall_timeout_s": 600,
    "checkpoint_every": "500",
    "output": "/output/team",
}
OF_A_KIND: dict[str, Settings] = {
    "batch": {"deadline": "90m"},
    "volcano": {"queue": "research", "mindcluster": "off"},
}
ON_CPUS: Settings = {**PLAIN, "device": "cpu", "ttl": "none", "steps": "none", "resume": "/output/old", "workers": 0}
CASES = list(itertools.product(("batch", "volcano"), (1, 2, 4, 8), (1, 2), ("plain", "everything", "cpu")))


def settings(backend: str, npus: int, nodes: int, options: str) -> Settings:
    """What is typed, or written as values."""
    chosen = {"plain": PLAIN, "everything": {**EVERYTHING, **OF_A_KIND[backend]}, "cpu": ON_CPUS}[options]
    more = {"nodes": nodes} if nodes > 1 else {}
    return {"backend": backend, "npus": npus, "name": "same", **more, **chosen}


def of_the_chart(values: Settings, folder: Path) -> list[Any]:
    """The job's objects in the release, in the order in which they are written."""
    file = folder / "values.json"
    file.write_text(json.dumps({"job": {"enabled": True, **values}}))
    command = [str(binaries.helm4()), "template", "pnas", str(CHART), "--values", str(file)]
    done = subprocess.run(
        [*command, "--show-only", "templates/job.yaml"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def normalised(item: Any) -> Any:
    """All but who manages it: labels and annotations of the objects around the pods are each one's own."""
    metadata = {"name": item["metadata"]["name"]}
    pods = [item["spec"]["template"]] if item.get("kind") == "Job" and "template" in item["spec"] else []
    pods += [task["template"] for task in item.get("spec", {}).get("tasks", ())]
    for pod in pods:
        assert pod["metadata"]["labels"].pop("app.kubernetes.io/managed-by")
    return {**item, "metadata": metadata}


@pytest.mark.parametrize(("backend", "npus", "nodes", "options"), CASES)
def test_the_chart_and_the_launcher_give_the_same_job(
    backend: str, npus: int, nodes: int, options: str, tmp_path: Path
) -> None:
    values = settings(backend, npus, nodes, options)
    ours = [normalised(item) for item in manifests(values, None)]
    theirs = [normalised(item) for item in of_the_chart(values, tmp_path)]
    assert theirs == ours


def test_a_setting_may_be_the_namespaces_or_the_modes(tmp_path: Path) -> None:
    file = tmp_path / "values.json"
    values = {
        "defaults": {"image": "r/pnas:1", "lr": 0.1, "epochs": 1},
        "modes": {"full": {"lr": 0.2}, "eval": {"lr": 0.3}},
        "job": {"enabled": True, "npus": 8, "epochs": 2},
    }
    file.write_text(json.dumps(values))
    command = [str(binaries.helm3()), "template", "pnas", str(CHART), "--values", str(file)]
    said = subprocess.run([*command, "--show-only", "templates/job.yaml"], capture_output=True, text=True, check=True)
    job = yaml.safe_load(said.stdout)
    python, module, trainer, *args = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert (python, module, trainer) == ("python", "-m", "trainer")
    assert dict(zip(args[::2], args[1::2], strict=True)).items() >= {"--lr": "0.2", "--epochs": "2"}.items()
    assert job["metadata"]["name"].startswith("pnas-")
