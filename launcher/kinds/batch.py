"""Kubernetes Jobs (`batch/v1`): no gang, and a queue only with Kueue; every cluster serves them."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from launcher.jobs import DEFAULT_QUEUE, Phase, PreflightFinding
from launcher.kinds import CANCELLED, JOB_VERBS, Kind, ObjectEvents, kueue, last_warning
from launcher.kinds.labels import KUEUE_QUEUE
from launcher.kinds.needs import JobNeeds
from launcher.kinds.objects import annotations, timestamp_now, unix_time
from launcher.kube.api import Api, Json
from launcher.kube.resources import Resource

if TYPE_CHECKING:
    from launcher.settings.options import ClusterOptions

BATCH_JOBS = Resource("batch", "v1", "jobs")
_TRACKING = "batch.kubernetes.io/job-tracking"


class BatchKind:
    """`batch/v1` Job."""

    name = "batch"
    title = "Kubernetes Jobs"
    resource = BATCH_JOBS
    template = "job"
    pod_template: tuple[str | int, ...] = ("spec", "template")
    index_annotation = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    uid_field = "metadata.labels['batch.kubernetes.io/controller-uid']"
    master_address = "{name}-0.{name}"
    needs_service = True
    rank_table = False
    pod_label = "batch.kubernetes.io/job-name"
    queue_label = KUEUE_QUEUE
    settle_s = 0.0
    rights: Mapping[Resource, tuple[str, ...]] = {BATCH_JOBS: JOB_VERBS}
    cluster_rights: Mapping[Resource, tuple[str, ...]] = {}

    def refusal(self, options: "ClusterOptions", origins: Mapping[str, str]) -> str | None:
        """Refuse two queues, and a rank table: MindCluster writes none for these jobs."""
        label = f"{KUEUE_QUEUE}={kueue.asked_queue(options)}"
        if options.queue != DEFAULT_QUEUE and label in options.job_label and not label.endswith(f"={options.queue}"):
            return f"--queue {options.queue}: --job-label {label} names another queue; leave one of them out"
        if options.mindcluster == "on":
            return (
                "--mindcluster on: MindCluster writes no rank table for a Kubernetes Job; leave it out, or use "
                "--backend volcano"
            )
        return None

    def check(self, api: Api, needs: JobNeeds) -> Iterator[PreflightFinding]:
        """Check Kueue's queue, if the job has one: in a missing queue it would wait for ever."""
        if queue := kueue.asked_queue(needs.options):
            yield kueue.check_local_queue(api, queue)

    def phase(self, job: Json, pods: Sequence[Json]) -> tuple[Phase, str]:
        """Judge by conditions: the counts run ahead of them."""
        status = job.get("status", {})
        conditions = {item["type"]: item for item in status.get("conditions", ()) if item.get("status") == "True"}
        if "Complete" in conditions:
            return Phase.SUCCEEDED, ""
        if failed := conditions.get("Failed"):
            # The annotation stays after a user has taken the cancel back.
            if CANCELLED in annotations(job) and job["spec"].get("suspend"):
                return Phase.CANCELLED, "stopped before it was done"
            return Phase.FAILED, f"{failed.get('reason', '')}: {failed.get('message', '')}".strip(": ")
        if job["spec"].get("suspend"):
            return self._suspended(job, pods)
        if "FailureTarget" in conditions:
            return Phase.RUNNING, "ending"
        # A user who cannot see the pods still has the job's count.
        return (Phase.RUNNING, "") if not pods and status.get("ready") else self._active(pods)

    @staticmethod
    def _active(pods: Sequence[Json]) -> tuple[Phase, str]:
        phases = {"Running" if _is_unjudged(pod) else pod.get("status", {}).get("phase") for pod in pods}
        if "Running" in phases or ("Succeeded" in phases and "Pending" not in phases):
            return Phase.RUNNING, ""
        return Phase.PENDING, "waiting for the next try" if "Failed" in phases else ""

    @staticmethod
    def _suspended(job: Json, pods: Sequence[Json]) -> tuple[Phase, str]:
        alive = (pod for pod in pods if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"))
        if job.get("status", {}).get("active") or any(alive):
            return Phase.RUNNING, "stopping"
        if CANCELLED in annotations(job):
            return Phase.CANCELLED, "stopped; it can go on"
        return (Phase.PENDING, "queued by Kueue") if kueue.queue_of(job) else (Phase.SUSPENDED, "suspended")

    def started(self, job: Json) -> float | None:
        """Return its start time, which the controller sets when it makes the first pods."""
        return unix_time(job.get("status", {}).get("startTime"))

    def ended(self, job: Json) -> float | None:
        """Return its completion time, or the time of the last condition that ended it."""
        status = job.get("status", {})
        ends = [item for item in status.get("conditions", ()) if item["type"] in ("Complete", "Failed", "Suspended")]
        times = [item["lastTransitionTime"] for item in ends if item.get("status") == "True"]
        return unix_time(status.get("completionTime") or (times[-1] if times else None))

    def retries(self, job: Json) -> int:
        """Count by failed pods: a failed try costs one pod of each node, and the last try has no successor."""
        status = job.get("status", {})
        tries = math.ceil(int(status.get("failed", 0)) / int(job["spec"].get("completions") or 1))
        conditions = {item["type"] for item in status.get("conditions", ()) if item.get("status") == "True"}
        return max(0, tries - bool(conditions & {"FailureTarget", "Failed"}))

    def gang(self, job: Json) -> None:
        """Return None: the scheduler places each pod by itself."""

    def queue_finding(self, api: Api, job: Json) -> PreflightFinding | None:
        """Check Kueue's queue, as long as Kueue holds the job."""
        queue = kueue.queue_of(job)
        return kueue.check_local_queue(api, queue) if queue and job["spec"].get("suspend") else None

    def reason_without_pods(self, job: Json, gang: Json | None, events: ObjectEvents, now: float) -> str:
        """Return the last warning of the job's controller."""
        return last_warning(events(job))

    def pod_names(self, job: Json) -> re.Pattern[str]:
        """Return `NAME-xxxxx`, or `NAME-INDEX-xxxxx` for several nodes."""
        index = "-[0-9]+" if job.get("spec", {}).get("completionMode") == "Indexed" else ""
        return re.compile(f"{re.escape(job['metadata']['name'])}{index}-[a-z0-9]{{5}}")

    def stop(self, api: Api, job: Json) -> None:
        """Suspend it: its pods get SIGTERM and their grace period; the job stays and can go on.

        A job in a queue is suspended by Kueue.
        """
        body: Json = {"metadata": {"annotations": {CANCELLED: timestamp_now()}}}
        if not kueue.queue_of(job) or not kueue.deactivate(api, job):
            body["spec"] = {"suspend": True}
        api.patch(self.resource, job["metadata"]["name"], body)


def _is_unjudged(pod: Json) -> bool:
    """Return whether the job controller has not yet counted a failed pod: its finalizer is still there."""
    return pod.get("status", {}).get("phase") == "Failed" and _TRACKING in pod["metadata"].get("finalizers", ())


KIND: Kind = BatchKind()
