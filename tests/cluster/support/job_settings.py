"""Settings of jobs with every option on, and with every option off, for tests that compare or validate jobs."""

from typing import Any

Settings = dict[str, Any]

PLAIN: Settings = {"image": "r/pnas:1"}
EVERYTHING: Settings = {
    **PLAIN,
    "priority_class": "high",
    "node_selector": ["accelerator=huawei-Ascend910", "host-arch="],
    "toleration": ["npu", "host=busy", "disk=slow:NoSchedule", "spot:NoExecute"],
    "job_label": ["team=a", "fault-scheduling=force"],
    "job_annotation": ["sp-block=16", "note="],
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
    "driver": "host",
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
ON_HARDWARE: Settings = {**PLAIN, "node_selector": {"zone": "a", "host-arch": "own"}, "driver": "host"}
ON_CPUS: Settings = {**PLAIN, "device": "cpu", "ttl": "none", "steps": "none", "resume": "/output/old", "workers": 0}


def settings(backend: str, npus: int, nodes: int, options: str) -> Settings:
    """Return the options of one job, as the launcher and the chart's values have them."""
    chosen = {"plain": PLAIN, "everything": {**EVERYTHING, **OF_A_KIND[backend]}, "cpu": ON_CPUS}[options]
    more = {"nodes": nodes} if nodes > 1 else {}
    return {"backend": backend, "npus": npus, "name": "same", **more, **chosen}
