"""What differs between a Kubernetes Job and a Volcano Job: where it is kept, how it says how it is, how it is stopped.

Pure but for `stop`: objects as the API server gives them go in, phases come out. The Volcano rules are measured
(Volcano v1.12.1's types and a development snapshot of August 2026): its counts vanish when a job has ended, so that
only the phase tells, and without its scheduler a job has neither pods nor events.
"""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Protocol

from launcher.jobs import Phase
from launcher.kube.api import Api, Json
from launcher.kube.resources import BATCH_JOBS, COMMANDS, VOLCANO_JOBS, Resource
from launcher.manifests.labels import ATTEMPT, JOB, MANAGED, SPEC

CANCELLED = "pnas/cancelled"
"""The annotation that says when a person had the job stopped."""

_TRACKING = "batch.kubernetes.io/job-tracking"


class Kind(Protocol):
    """One kind of job on a cluster."""

    name: str
    resource: Resource
    settle_s: float
    """How long its controllers need to forget a job that is gone, before one of the same name is made."""
    pod_label: str
    """The label by which its controller says whose a pod is: a job of the other kind may have the same name."""

    def phase(self, job: Json, pods: Sequence[Json]) -> tuple[Phase, str]:
        """Where the job is in its life, and why if it says so itself."""

    def started(self, job: Json) -> float | None:
        """When it first had pods, in seconds since 1970."""

    def ended(self, job: Json) -> float | None:
        """When it ended."""

    def retries(self, job: Json) -> int:
        """How often it has been tried again."""

    def stop(self, api: Api, job: Json) -> None:
        """Ask the cluster to end its pods and to keep the job."""


def pods_of(kind: Kind, job: str) -> str:
    """The selector of a job's pods."""
    return f"{kind.pod_label}={job}"


class BatchKind:
    """`batch/v1` Job. See `Kind`."""

    name = "batch"
    resource = BATCH_JOBS
    settle_s = 0.0
    pod_label = "batch.kubernetes.io/job-name"

    def phase(self, job: Json, pods: Sequence[Json]) -> tuple[Phase, str]:
        """By its conditions; its counts run ahead of them."""
        status = job.get("status", {})
        conditions = {one["type"]: one for one in status.get("conditions", ()) if one.get("status") == "True"}
        if "Complete" in conditions:
            return Phase.SUCCEEDED, ""
        if failed := conditions.get("Failed"):
            # The annotation outlives a cancel that somebody has taken back.
            if CANCELLED in annotations(job) and job["spec"].get("suspend"):
                return Phase.CANCELLED, "stopped before it was done"
            return Phase.FAILED, f"{failed.get('reason', '')}: {failed.get('message', '')}".strip(": ")
        if job["spec"].get("suspend"):
            return self._suspended(job, pods)
        return (Phase.RUNNING, "ending") if "FailureTarget" in conditions else self._going(pods)

    @staticmethod
    def _going(pods: Sequence[Json]) -> tuple[Phase, str]:
        phases = {"Running" if _unjudged(pod) else pod.get("status", {}).get("phase") for pod in pods}
        if "Running" in phases or ("Succeeded" in phases and "Pending" not in phases):
            return Phase.RUNNING, ""
        return Phase.PENDING, "to be tried again" if "Failed" in phases else ""

    @staticmethod
    def _suspended(job: Json, pods: Sequence[Json]) -> tuple[Phase, str]:
        if job.get("status", {}).get("active") or any(_alive(pod) for pod in pods):
            return Phase.RUNNING, "stopping"
        stopped = CANCELLED in annotations(job)
        return (Phase.CANCELLED, "stopped; it can go on") if stopped else (Phase.SUSPENDED, "suspended")

    def started(self, job: Json) -> float | None:
        """Its start time, which the controller sets when it makes the first pods."""
        return seconds(job.get("status", {}).get("startTime"))

    def ended(self, job: Json) -> float | None:
        """Its completion, or the moment it was given up."""
        status = job.get("status", {})
        ends = [one for one in status.get("conditions", ()) if one["type"] in ("Complete", "Failed", "Suspended")]
        true = [one["lastTransitionTime"] for one in ends if one.get("status") == "True"]
        return seconds(status.get("completionTime") or (true[-1] if true else None))

    def retries(self, job: Json) -> int:
        """By its failed pods: each of its nodes loses one where a try fails, and nothing follows the last."""
        status = job.get("status", {})
        tries = math.ceil(int(status.get("failed", 0)) / int(job["spec"].get("completions") or 1))
        over = {one["type"] for one in status.get("conditions", ()) if one.get("status") == "True"}
        return max(0, tries - bool(over & {"FailureTarget", "Failed"}))

    def stop(self, api: Api, job: Json) -> None:
        """Suspend it: its pods get SIGTERM and their grace; the job stays, and can go on."""
        body: Json = {"metadata": {"annotations": {CANCELLED: now()}}, "spec": {"suspend": True}}
        api.patch(self.resource, job["metadata"]["name"], body)


class VolcanoKind:
    """`batch.volcano.sh/v1alpha1` Job. See `Kind`."""

    name = "volcano"
    resource = VOLCANO_JOBS
    # One that was made within milliseconds of the end of the last one's pods was seen to hang, without pods or events.
    settle_s = 3.0
    pod_label = "volcano.sh/job-name"
    _phases: Mapping[str, tuple[Phase, str]] = {
        "": (Phase.PENDING, ""),
        "Pending": (Phase.PENDING, ""),
        "Running": (Phase.RUNNING, ""),
        "Restarting": (Phase.PENDING, "restarting"),
        "Aborting": (Phase.RUNNING, "stopping"),
        "Terminating": (Phase.RUNNING, "stopping"),
        "Completing": (Phase.RUNNING, "ending"),
        "Aborted": (Phase.SUSPENDED, "aborted; ResumeJob makes it go on"),
        "Completed": (Phase.SUCCEEDED, ""),
        "Terminated": (Phase.FAILED, "terminated"),
        "Failed": (Phase.FAILED, "no more retries"),
    }

    def phase(self, job: Json, pods: Sequence[Json]) -> tuple[Phase, str]:
        """By its phase alone: its counts are gone when it has ended."""
        own = self._own(job)
        phase, reason = self._phases.get(own, (Phase.PENDING, own))
        if own in ("Aborted", "Terminated", "Failed") and self._is_cancelled(job):
            return Phase.CANCELLED, "stopped; it can go on" if own == "Aborted" else "stopped before it was done"
        if phase is Phase.PENDING and any(pod.get("status", {}).get("phase") == "Running" for pod in pods):
            return Phase.RUNNING, reason
        return phase, reason

    def started(self, job: Json) -> float | None:
        """When it was seen running; of several times the last."""
        return next((seconds(one["lastTransitionTime"]) for one in self._history(job, "Running")), None)

    def ended(self, job: Json) -> float | None:
        """When it got the phase that it has now."""
        return next((seconds(one["lastTransitionTime"]) for one in self._history(job, self._own(job))), None)

    def retries(self, job: Json) -> int:
        """Restarts that it counts itself; where none are left, it counts one that it did not do."""
        counted = int((job.get("status") or {}).get("retryCount", 0))
        return max(0, counted - (self._own(job) == "Failed"))

    def stop(self, api: Api, job: Json) -> None:
        """Abort it by a Command, as vcctl does: its running pods get SIGTERM and their grace; the job stays."""
        meta = job["metadata"]
        target = owner(job)
        command = {
            "apiVersion": COMMANDS.api_version,
            "kind": "Command",
            "metadata": {"generateName": f"{meta['name']}-abort-", "ownerReferences": [target]},
            "action": "AbortJob",
            "target": target,
        }
        # Whoever may not stop it leaves no mark of it.
        api.create(COMMANDS, command, dry_run=True)
        api.patch(self.resource, meta["name"], {"metadata": {"annotations": {CANCELLED: now()}}})
        api.create(COMMANDS, command)

    def _is_cancelled(self, job: Json) -> bool:
        """Whether a person had it stopped; the annotation outlives a ResumeJob, before which the job was Aborted."""
        return CANCELLED in annotations(job) and (self._own(job) == "Aborted" or not self._history(job, "Aborted"))

    @staticmethod
    def _own(job: Json) -> str:
        return str(((job.get("status") or {}).get("state") or {}).get("phase") or "")

    @staticmethod
    def _history(job: Json, phase: str) -> list[Json]:
        return [one for one in (job.get("status") or {}).get("conditions", ()) if one.get("status") == phase]


def annotations(item: Json) -> Mapping[str, str]:
    """An object's annotations; it may have none."""
    return item["metadata"].get("annotations") or {}


def is_part_of(item: Json, job: str) -> bool:
    """Whether a launcher made it for the job of this name."""
    return (item["metadata"].get("labels") or {}).items() >= {**MANAGED, JOB: job}.items()


def attempt_of(job: Json) -> int:
    """How often the job was submitted."""
    return int(annotations(job).get(ATTEMPT, "1"))


def spec_of(job: Json) -> dict[str, Any]:
    """The recorded JobSpec as plain values; nothing of a job that no launcher made."""
    try:
        spec = json.loads(annotations(job).get(SPEC, "{}"))
    except ValueError:
        spec = {}
    return spec if isinstance(spec, dict) else {}


def owner(job: Json, *, controller: bool = True) -> dict[str, Any]:
    """The reference that makes an object go when the job goes."""
    meta = job["metadata"]
    reference = {"apiVersion": job["apiVersion"], "kind": job["kind"], "name": meta["name"], "uid": meta["uid"]}
    return {**reference, "controller": True} if controller else reference


def seconds(stamp: str | None) -> float | None:
    """Seconds since 1970 of a time as Kubernetes writes it (RFC 3339)."""
    return None if stamp is None else datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()


def now() -> str:
    """This moment as Kubernetes writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _unjudged(pod: Json) -> bool:
    """It has failed, and the job controller has not said yet what comes of it: its finalizer is still there."""
    return pod.get("status", {}).get("phase") == "Failed" and _TRACKING in pod["metadata"].get("finalizers", ())


def _alive(pod: Json) -> bool:
    return pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")
