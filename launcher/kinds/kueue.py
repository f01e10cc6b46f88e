"""Kueue: the queue that a Kubernetes Job belongs to by a label, and the Workload by which Kueue starts and stops it.

Kueue lets a job wait suspended until its queue has room, and suspends it again when another job preempts it. It undoes
a suspend that others set, so a job is stopped for good only if its Workload is deactivated. Rules read in Kueue 0.17.0.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from launcher.errors import ApiError
from launcher.jobs import DEFAULT_QUEUE, NOT_CHECKED, PreflightFinding
from launcher.kinds.labels import KUEUE_QUEUE
from launcher.kinds.objects import is_young
from launcher.kube.api import Api, Json, if_allowed
from launcher.kube.resources import Resource
from launcher.kube.retry import poll

if TYPE_CHECKING:
    from launcher.settings.options import ClusterOptions  # pydantic: reading jobs does without

# A right is on every version; a request names the version that the server prefers.
WORKLOADS = Resource("kueue.x-k8s.io", "v1beta2", "workloads")
LOCAL_QUEUES = Resource("kueue.x-k8s.io", "v1beta2", "localqueues")
RIGHTS: Mapping[Resource, tuple[str, ...]] = {WORKLOADS: ("list", "patch"), LOCAL_QUEUES: ("get",)}
"""The verbs that a launcher uses for jobs in a queue of Kueue."""

_JOB_UID = "kueue.x-k8s.io/job-uid"
_POLL_S = 0.2
# Kueue makes a Workload some milliseconds after the job.
_WORKLOAD_S = 10.0


def queue_of(job: Json) -> str:
    """Return the queue of a job; empty without one. Kueue's own webhook can have set it."""
    return str((job["metadata"].get("labels") or {}).get(KUEUE_QUEUE, ""))


def asked_queue(options: "ClusterOptions") -> str:
    """Return the queue that options name for a Kubernetes Job; empty without one."""
    labels = dict(text.split("=", 1) for text in options.job_label)
    return labels.get(KUEUE_QUEUE) or ("" if options.queue == DEFAULT_QUEUE else options.queue)


def check_local_queue(api: Api, name: str) -> PreflightFinding:
    """Check whether a queue exists, and whether it starts jobs now."""
    about, flag = f"queue {name}", f"--queue {name}"
    version = _version(api)
    if version is None:
        text = f"{flag}: {api.origin} has no Kueue, whose queues Kubernetes Jobs use; leave it out"
        return PreflightFinding(about, "missing", text)
    queue, hidden = if_allowed(lambda: api.find(LOCAL_QUEUES._replace(version=version), name))
    if hidden:
        return PreflightFinding(about, "unknown", f"{NOT_CHECKED}whether it is there and starts jobs: {hidden}")
    if queue is None:
        text = f"{flag}: there is no such queue in namespace {api.namespace}; see `kubectl get localqueues`"
        return PreflightFinding(about, "missing", text)
    policy = (queue.get("spec") or {}).get("stopPolicy") or "None"
    if policy != "None":
        text = f"{flag}: it is stopped ({policy}): a job waits until the administrator starts it again"
        return PreflightFinding(about, "later", text)
    active = _condition(queue, "Active")
    if active.get("status") == "False":
        cluster_queue = (queue.get("spec") or {}).get("clusterQueue")
        text = f"{flag}: its ClusterQueue {cluster_queue} starts no jobs: {active.get('message')}"
        return PreflightFinding(about, "later", f"{text}; ask the administrator")
    return PreflightFinding(about, "ok", f"Kueue's, open; its ClusterQueue is {queue['spec'].get('clusterQueue')}")


def deactivate(api: Api, job: Json) -> bool:
    """Stop a job for good; return False if the cluster has no Kueue, whatever the job's labels say.

    Raises:
        WaitTimeoutError: Kueue has not seen the job; it would start it later.
        ApiError: the user has no right to it. Nothing has changed.
    """
    version = _version(api)
    if version is None:
        return False
    uid, name = job["metadata"]["uid"], job["metadata"]["name"]
    workloads = WORKLOADS._replace(version=version)
    unseen = f"job {name}: Kueue has made no Workload of it, and could start it later: it is not cancelled"
    own = poll(
        lambda: api.list(workloads, labels=f"{_JOB_UID}={uid}")[0] or None,
        every_s=_POLL_S,
        deadline=time.monotonic() + _WORKLOAD_S,
        expired=lambda _error: f"{unseen}; is Kueue running? `kubectl delete job {name}` removes it",
    )
    for workload in own:
        api.patch(workloads, workload["metadata"]["name"], {"spec": {"active": False}})
    return True


def reasons(api: Api, jobs: Sequence[Json], now: float) -> dict[str, str]:
    """Return why jobs wait in their queues, by their uids; all answers come from one list of the Workloads.

    Args:
        now: seconds since 1970.

    Raises:
        ApiError: the user has no right to see Workloads.
    """
    waiting = [job for job in jobs if queue_of(job) and job["spec"].get("suspend")]
    version = _version(api) if waiting else None
    if version is None:
        return {}
    workloads, _ = api.list(WORKLOADS._replace(version=version))
    return dict(_reasons(waiting, workloads, now))


def _reasons(jobs: Sequence[Json], workloads: Sequence[Json], now: float) -> Iterator[tuple[str, str]]:
    for job in jobs:
        uid = job["metadata"]["uid"]
        own = next((item for item in workloads if (item["metadata"].get("labels") or {}).get(_JOB_UID) == uid), None)
        if own is not None:
            yield uid, _waiting_reason(own, workloads)
        elif not is_young(job, now):
            yield uid, "Kueue has not looked at it; is it running?"


def _waiting_reason(workload: Json, workloads: Sequence[Json]) -> str:
    """Return the queue's own reason, and the workload's place among all that wait in its LocalQueue."""
    if workload["spec"].get("active") is False:
        message = _condition(workload, "Evicted").get("message", "")
        return " ".join(f"Kueue does not start it, because its Workload is deactivated: {message}".rstrip(": ").split())
    queue, reserved = workload["spec"].get("queueName"), _condition(workload, "QuotaReserved")
    if reserved.get("status") == "True":
        checks = (workload.get("status") or {}).get("admissionChecks") or ()
        left = [f"{check['name']} {check['state']} {check.get('message', '')}".strip() for check in checks]
        return f"queue {queue} has room for it; it waits for {', '.join(left) or 'its start'}"
    in_line = (item for item in workloads if _is_in_line(item) and item["spec"].get("queueName") == queue)
    line = sorted(in_line, key=_rank)
    place = next((number for number, item in enumerate(line, 1) if item is workload), len(line))
    message = " ".join(str(reserved.get("message", "")).split())
    return f"queued in {queue}, {place} of {len(line)}" + (f": {message}" if message else "")


def _is_in_line(workload: Json) -> bool:
    """Return whether a workload waits for room."""
    done = any(_condition(workload, name).get("status") == "True" for name in ("QuotaReserved", "Finished"))
    return workload["spec"].get("active") is not False and not done


def _rank(workload: Json) -> tuple[int, str, str]:
    """Return the key of Kueue's order: the highest priority first, then the oldest."""
    meta = workload["metadata"]
    return -int(workload["spec"].get("priority") or 0), str(meta.get("creationTimestamp")), str(meta["name"])


def _condition(item: Json, name: str) -> Json:
    conditions = (item.get("status") or {}).get("conditions") or ()
    return next((condition for condition in conditions if condition["type"] == name), {})


def _version(api: Api) -> str | None:
    """Return the version of Kueue's objects that the server prefers; None without Kueue."""
    try:
        group = api.request("GET", f"/apis/{WORKLOADS.group}", action="look for Kueue")
    except ApiError as error:
        if error.status == 404:
            return None
        raise
    return str(group["preferredVersion"]["version"])
