"""Volcano's objects for the tests of its stand-in: recorded objects, and small ones for one question."""

import json
from pathlib import Path
from typing import Any

Json = dict[str, Any]

SAMPLES = Path(__file__).parents[2] / "data" / "volcano" / "samples"
NAMES = sorted(path.stem for path in SAMPLES.glob("*.json"))


def read_sample(name: str) -> dict[str, list[Json]]:
    sample: dict[str, list[Json]] = json.loads((SAMPLES / f"{name}.json").read_text())
    return sample


def pods_of(job: Json, sample: dict[str, list[Json]]) -> list[Json]:
    uid = job["metadata"]["uid"]
    return [pod for pod in sample["pods"] if pod["metadata"]["ownerReferences"][0]["uid"] == uid]


def make_pod(index: int, phase: str, *, version: int = 0, uid: str = "", code: int = 0, restarts: int = 0) -> Json:
    terminated = {"state": {"terminated": {"exitCode": code}}} if code else {}
    annotations = {"volcano.sh/task-spec": "w", "volcano.sh/job-version": str(version)}
    identity = {"name": f"j-w-{index}", "uid": uid or f"p{index}"}
    metadata = {**identity, "annotations": annotations, "ownerReferences": [{"uid": "j"}]}
    return {
        "metadata": metadata,
        "spec": {"containers": []},
        "status": {"phase": phase, "containerStatuses": [{"restartCount": restarts, **terminated}]},
    }


def make_spec(replicas: int = 2, least: int = 2, **others: Any) -> Json:
    return {"minAvailable": least, "maxRetry": 3, "tasks": [{"name": "w", "replicas": replicas}], **others}
