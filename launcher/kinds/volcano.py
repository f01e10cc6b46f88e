"""Volcano Jobs (`batch.volcano.sh/v1alpha1`): scheduled as a gang, from a queue.

The rules are measured (Volcano v1.12.1's types and a development snapshot of August 2026): its counts vanish when a
job has ended, so only the phase tells, and without its scheduler a job has neither pods nor events.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from launcher.jobs import DEFAULT_QUEUE, NOT_CHECKED, Phase, PreflightFinding
from launcher.kinds import CANCELLED, JOB_VERBS, Kind, ObjectEvents, last_warning, pod_template
from launcher.kinds.needs import JobNeeds, PodNeeds, amount_text, amounts
from launcher.kinds.objects import annotations, is_young, owner_reference, timestamp_now, unix_time
from launcher.kube.api import Api, Json, if_allowed
from launcher.kube.resources import Resource

if TYPE_CHECKING:
    from launcher.settings.options import ClusterOptions

VOLCANO_JOBS = Resource("batch.volcano.sh", "v1alpha1", "jobs")
POD_GROUPS = Resource("scheduling.volcano.sh", "v1beta1", "podgroups")
QUEUES = Resource("scheduling.volcano.sh", "v1beta1", "queues", namespaced=False)
VOLCANO_COMMANDS = Resource("bus.volcano.sh", "v1alpha1", "commands")

_PHASES: Mapping[str, tuple[Phase, str]] = {
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


class VolcanoKind:
    """`batch.volcano.sh/v1alpha1` Job with one task, `worker`."""

    name = "volcano"
    title = "Volcano"
    resource = VOLCANO_JOBS
    template = "volcano-job"
    pod_template: tuple[str | int, ...] = ("spec", "tasks", 0, "template")
    index_annotation = "metadata.annotations['volcano.sh/task-index']"
    # The PodGroup's name, which ends with the job's uid.
    uid_field = "metadata.annotations['scheduling.k8s.io/group-name']"
    master_address = "{name}-worker-0.{name}"
    needs_service = False  # Volcano's svc plugin makes one, and sets the pods' subdomain.
    rank_table = True
    pod_label = "volcano.sh/job-name"
    queue_label = ""
    # A job created within milliseconds of the end of the last one's pods was seen to hang, without pods or events.
    settle_s = 3.0
    rights: Mapping[Resource, tuple[str, ...]] = {
        VOLCANO_JOBS: JOB_VERBS,
        POD_GROUPS: ("get",),
        VOLCANO_COMMANDS: ("create",),
    }
    cluster_rights: Mapping[Resource, tuple[str, ...]] = {QUEUES: ("get",)}

    def refusal(self, options: "ClusterOptions", origins: Mapping[str, str]) -> str | None:
        """Refuse a deadline: a Volcano Job has no such field."""
        if options.deadline is None:
            return None
        return f"--deadline {options.deadline}: Volcano Jobs have no deadline; leave it out, or use --backend batch"

    def check(self, api: Api, needs: JobNeeds) -> Iterator[PreflightFinding]:
        """Check the queue: without Volcano's webhook a job in a missing or closed queue would wait for ever."""
        name = needs.options.queue
        queue, hidden = if_allowed(lambda: api.find(QUEUES, name))
        yield check_queue(name, queue, needs, hidden=hidden, origin=api.origin)

    def phase(self, job: Json, pods: Sequence[Json]) -> tuple[Phase, str]:
        """Judge by the phase only: the counts are gone when the job has ended."""
        volcano_phase = _phase_word(job)
        phase, reason = _PHASES.get(volcano_phase, (Phase.PENDING, volcano_phase))
        if volcano_phase in ("Aborted", "Terminated", "Failed") and _is_cancelled(job):
            resumable = volcano_phase == "Aborted"
            return Phase.CANCELLED, "stopped; it can go on" if resumable else "stopped before it was done"
        if phase is Phase.PENDING and any(pod.get("status", {}).get("phase") == "Running" for pod in pods):
            return Phase.RUNNING, reason
        return phase, reason

    def started(self, job: Json) -> float | None:
        """Return when the job was seen running; of several times the last."""
        return next((unix_time(item["lastTransitionTime"]) for item in _history(job, "Running")), None)

    def ended(self, job: Json) -> float | None:
        """Return when the job entered its phase."""
        return next((unix_time(item["lastTransitionTime"]) for item in _history(job, _phase_word(job))), None)

    def retries(self, job: Json) -> int:
        """Return Volcano's own count, less the restart that it counts but does not do when no retry remains."""
        counted = int((job.get("status") or {}).get("retryCount", 0))
        return max(0, counted - (_phase_word(job) == "Failed"))

    def gang(self, job: Json) -> tuple[Resource, str]:
        """Return the PodGroup."""
        return POD_GROUPS, f"{job['metadata']['name']}-{job['metadata']['uid']}"

    def queue_finding(self, api: Api, job: Json) -> PreflightFinding:
        """Check Volcano's queue for the pods that start together."""
        name = str(job["spec"].get("queue") or DEFAULT_QUEUE)
        queue, hidden = if_allowed(lambda: api.find(QUEUES, name))
        pod = pod_template(self, job)["spec"]
        needs = PodNeeds(pod, int(job["spec"].get("minAvailable") or 1), "")
        return check_queue(name, queue, needs, hidden=hidden, origin=api.origin)

    def reason_without_pods(self, job: Json, gang: Json | None, events: ObjectEvents, now: float) -> str:
        """Return what Volcano says of the gang, or which part of Volcano does not work."""
        if gang is None:
            if job.get("status"):
                return last_warning(events(job))
            return "" if is_young(job, now) else "Volcano's controller has not looked at it; is it running?"
        phase = (gang.get("status") or {}).get("phase")
        if phase == "Pending":
            messages = [
                str(event["message"])
                for event in events(gang)
                if event.get("reason") == "Unschedulable" and event["type"] == "Normal"
            ]
            return f"queued: {messages[-1]}" if messages else "queued by Volcano"
        if is_young(gang, now):
            return ""
        if not phase:
            return "Volcano's scheduler has not looked at it; is it running?"
        return "Volcano has admitted it, and has made no pods; does the namespace refuse them (Pod Security, a quota)?"

    def pod_names(self, job: Json) -> re.Pattern[str]:
        """Return `NAME-worker-INDEX`."""
        return re.compile(f"{re.escape(job['metadata']['name'])}-worker-[0-9]+")

    def stop(self, api: Api, job: Json) -> None:
        """Abort it by a Command, as vcctl does: running pods get SIGTERM and their grace period; the job stays."""
        meta = job["metadata"]
        target = owner_reference(job)
        command = {
            "apiVersion": VOLCANO_COMMANDS.api_version,
            "kind": "Command",
            "metadata": {"generateName": f"{meta['name']}-abort-", "ownerReferences": [target]},
            "action": "AbortJob",
            "target": target,
        }
        # Try the stop first, so that a refused one annotates nothing.
        api.create(VOLCANO_COMMANDS, command, dry_run=True)
        api.patch(self.resource, meta["name"], {"metadata": {"annotations": {CANCELLED: timestamp_now()}}})
        api.create(VOLCANO_COMMANDS, command)


def check_queue(name: str, queue: Json | None, needs: PodNeeds, *, hidden: str, origin: str) -> PreflightFinding:
    """Check whether a queue takes the job, and can ever give it what it asks for.

    Args:
        queue: None if there is no such queue, or if the user cannot see it.
        hidden: why the user cannot see it; then only Volcano's webhook decides.
    """
    about, flag = f"queue {name}", f"--queue {name}"
    if hidden:
        return PreflightFinding(about, "unknown", f"{NOT_CHECKED}whether it is open and large enough: {hidden}")
    if queue is None:
        text = f"{flag}: there is no such queue in {origin}; see `kubectl get queues`"
        return PreflightFinding(about, "missing", text)
    state = (queue.get("status") or {}).get("state") or "Open"
    if state != "Open":
        remedy = "choose another, or ask the administrator to open it"
        return PreflightFinding(about, "missing", f"{flag}: it is {state} and takes no jobs; {remedy}")
    wanted = needs.of_job()
    for resource, limit in amounts((queue.get("spec") or {}).get("capability")).items():
        if wanted.get(resource, 0) > limit:
            asked = f"the job asks for {amount_text(wanted[resource])} {resource}"
            text = f"{flag}: {asked}, and the queue's capability is {amount_text(limit)}: it would wait for ever"
            return PreflightFinding(about, "later", f"{text}; ask for less, or choose another queue")
    return PreflightFinding(about, "ok", "open, and large enough for the job")


def _is_cancelled(job: Json) -> bool:
    """Return whether a user cancelled it. The annotation survives a ResumeJob, before which the job was Aborted."""
    return CANCELLED in annotations(job) and (_phase_word(job) == "Aborted" or not _history(job, "Aborted"))


def _phase_word(job: Json) -> str:
    return str(((job.get("status") or {}).get("state") or {}).get("phase") or "")


def _history(job: Json, phase: str) -> list[Json]:
    return [item for item in (job.get("status") or {}).get("conditions", ()) if item.get("status") == phase]


KIND: Kind = VolcanoKind()
