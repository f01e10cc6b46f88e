"""Jobs on a cluster: Kubernetes Jobs and Volcano Jobs, which differ only by their `Kind`.

All that is known of a job is in its object (its spec is an annotation) and its pods; this backend keeps nothing, so
any launcher, now or next week, sees the same.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher import PROGRAM
from launcher.cluster import saved_attempt as handover
from launcher.cluster.events import Events
from launcher.cluster.kinds import BatchKind, Kind, VolcanoKind, attempt_of, pods_of, seconds, spec_of
from launcher.cluster.pending import container_failure, is_young, why_pending
from launcher.errors import ConflictError, LauncherError, NotFoundError, WaitTimeoutError
from launcher.jobs import TRAINING, JobEvent, JobRef, JobState, LogItem, Phase, Submitted
from launcher.kube.api import Api, ApiError, Json
from launcher.kube.connection import connect
from launcher.kube.place import Place
from launcher.kube.resources import POD_GROUPS, PODS
from launcher.kube.retry import wait_until
from launcher.manifests.labels import CONTAINER, OURS

if TYPE_CHECKING:
    from launcher.output.progress import Progress
    from launcher.settings.spec import JobSpec

_KINDS: Mapping[str, Kind] = {"batch": BatchKind(), "volcano": VolcanoKind()}
_POLL_S = 0.5
# On top of the pods' own grace period.
_EXTRA_GRACE_S = 30.0
_TAIL_LINES = "400"
_OUT_OF_TIME = "DeadlineExceeded"


class ClusterBackend:
    """Backends `batch` and `volcano`. See `launcher.jobs.Backend` for what each method promises."""

    poll_s = 2.0

    def __init__(self, kind: str, api: Api) -> None:
        self.name = kind
        self.api = api
        self.kind = _KINDS[kind]

    @classmethod
    def at(cls, kind: str, place: Place) -> "ClusterBackend":
        """The backend on the cluster that `place` names."""
        return cls(kind, connect(place))

    @property
    def where(self) -> str:
        """The cluster and the namespace, for messages."""
        return f"{self.api.origin}, namespace {self.api.namespace}"

    def served(self) -> bool:
        """Whether the cluster knows this kind of job.

        Raises:
            UnreachableError: it cannot be asked.
        """
        resource = self.kind.resource
        try:
            self.api.request("GET", f"/apis/{resource.group}/{resource.version}", what=f"look for {resource}")
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def submit(self, spec: "JobSpec", *, again: bool = False) -> Submitted:
        """Create the job and what belongs to it."""
        from launcher.cluster.submit import create  # noqa: PLC0415  # pydantic and jinja2: only a submit pays

        return create(self, spec, again=again)

    def get(self, ref: JobRef) -> JobState:
        """The job's state, from its object and its pods."""
        job = self.job(ref.name)
        return self.state_of(job, self.pods(ref.name))

    def kept(self, name: str) -> handover.Kept | None:
        """The job's last attempt, if it was removed for one that could not be created."""
        return handover.kept(self.api, self.name, name)

    def _kept_still(self, name: str) -> str:
        if self.kept(name) is None:
            return ""
        there = f"--namespace {self.api.namespace}"
        forget = f"kubectl delete configmap {handover.name_of(self.name, name)} {there}"
        # Left to itself, submit would choose by what there is now.
        again = f"{PROGRAM} submit --name {name} --resume auto --backend {self.name} {there}"
        return f". It was removed for an attempt that could not be created: `{again}` goes on, `{forget}` forgets it"

    def job(self, name: str) -> Json:
        """Its object.

        Raises:
            NotFoundError: there is none.
        """
        job = self.api.find(self.kind.resource, name)
        if job is None:
            raise NotFoundError(
                f"there is no {self.name} job `{name}` in {self.where}; see `{PROGRAM} list`{self._kept_still(name)}"
            )
        return job

    def pods(self, name: str) -> list[Json]:
        """Its pods, in the order of their names."""
        found, _ = self.api.list(PODS, labels=pods_of(self.kind, name))
        return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))

    def state_of(self, job: Json, pods: list[Json]) -> JobState:
        """What the objects add up to."""
        phase, reason = self.kind.phase(job, pods)
        if phase is Phase.PENDING:
            reason = self._why_pending(job, pods) or reason
        elif phase is Phase.FAILED:
            reason = self._why_failed(job, pods, reason)
        return self._state(job, pods, phase, reason)

    def _state(self, job: Json, pods: list[Json], phase: Phase, reason: str) -> JobState:
        meta, spec = job["metadata"], spec_of(job)
        name = str(meta["name"])
        train, claim = spec.get("train", {}), spec.get("pods", {}).get("output_claim")
        output = Path(str(train["output"])) / name if "output" in train else None
        trains = train.get("mode") in TRAINING
        return JobState(
            ref=JobRef(self.name, name),
            phase=phase,
            reason=reason,
            created=seconds(meta.get("creationTimestamp")),
            started=min(filter(None, map(_began, pods)), default=self.kind.started(job)),
            ended=self.kind.ended(job) if phase.ended else None,
            spec=spec,
            output=output,
            files=f"{output} on claim {claim}" if output and claim else "",
            attempt=attempt_of(job),
            restarts=self.kind.retries(job),
            resumable=trains and phase.ended and phase is not Phase.SUCCEEDED,
            details={
                "cluster": self.api.origin,
                "namespace": self.api.namespace,
                "uid": meta["uid"],
                "pods": [_pod_facts(pod) for pod in pods],
            },
        )

    def _why_pending(self, job: Json, pods: list[Json]) -> str:
        now, events = time.time(), Events(self.api)
        why = why_pending(job, pods, self._group(job, events), events.about, now=now)
        return why or (f"why is hidden from you: {events.hidden}" if events.hidden and not is_young(job, now) else "")

    def _why_failed(self, job: Json, pods: list[Json], reason: str) -> str:
        if reason.startswith(_OUT_OF_TIME):
            # Its pods were stopped for it, and ended as they do when they are stopped.
            return reason
        failed = _last_tries([pod for pod in pods if container_failure(pod)])
        # The others have lost a peer, and say so as if that were the cause.
        others = [pod for pod in pods if pod not in failed]
        cause = next(filter(None, (self._progress([pod]).cause for pod in (*failed, *others))), "")
        of_pod = f"pod {failed[0]['metadata']['name']}: {container_failure(failed[0])}" if failed else reason
        return f"{cause} ({of_pod})" if cause else of_pod

    def progress(self, ref: JobRef) -> "Progress":
        """The job's latest news, from the end of its pods' logs."""
        return self._progress(self.pods(ref.name))

    def _progress(self, pods: Sequence[Json]) -> "Progress":
        from launcher.output.lines import Demultiplexer, Line  # noqa: PLC0415  # a submit does without
        from launcher.output.progress import Progress  # noqa: PLC0415

        progress = Progress()
        for pod in pods:
            items = Demultiplexer(from_start=False).feed(self._tail(pod))
            progress.update_all(item for item in items if isinstance(item, Line))
        return progress

    def glance(self, _state: JobState) -> "Progress":
        """None: each would be a request of its own."""
        from launcher.output.progress import Progress  # noqa: PLC0415  # as above

        return Progress()

    def _tail(self, pod: Json) -> bytes:
        """The last lines of a pod; nothing of one that has not started."""
        path = PODS.path(self.api.namespace, pod["metadata"]["name"], "log")
        query = {"tailLines": _TAIL_LINES, "container": CONTAINER}
        try:
            return self.api.read(path, query, what=f"get {PODS}/log")
        except LauncherError:
            # Not begun, gone, on a node that is away, or none of this person's business: of all that, `logs` will tell.
            return b""

    def events(self, ref: JobRef) -> list[JobEvent]:
        """What happened to the job, its pods and its gang."""
        job, events = self.job(ref.name), Events(self.api)
        # Its events can be seen or not, whether it can be or not.
        group = self._group(job, Events(self.api))
        found = events.of_job(job, [*self.pods(ref.name), *filter(None, [group])])
        return [JobEvent(time.time(), f"hidden from you: {events.hidden}")] if events.hidden else found

    def logs(
        self, ref: JobRef, *, follow: bool = False, since_s: float | None = None, attempt: int | None = None
    ) -> Iterator[LogItem]:
        """The lines of all its pods, each once."""
        from launcher.cluster.follow import lines_of  # noqa: PLC0415  # pycurl: only who reads a log pays

        self.job(ref.name)
        return lines_of(self, ref.name, follow=follow, since_s=since_s, attempt=attempt)

    def cancel(self, ref: JobRef) -> None:
        """Have the cluster stop its pods, which save their state, and keep the job."""
        state = self.get(ref)
        if state.phase.ended:
            return
        self.kind.stop(self.api, self.job(ref.name))
        grace_s = float(state.setting("grace_s") or 0) + _EXTRA_GRACE_S
        self._until(lambda: self.get(ref).phase.ended, grace_s, f"job {ref.name} has not stopped after {grace_s:g} s")

    def delete(self, ref: JobRef) -> None:
        """Remove the job's objects; the output claim is not touched."""
        state = self.get(ref)
        if not state.phase.ended:
            raise ConflictError(
                f"job {ref.name} is {state.phase.value}: `python -m launcher cancel {ref.name}` first, or delete with "
                "--force"
            )
        self.remove(ref.name, uid=str(state.details["uid"]))
        handover.drop(self.api, self.name, ref.name)

    def remove(self, name: str, *, uid: str) -> None:
        """Delete this very job, and wait until it and its pods are gone: their names may be used again at once.

        Raises:
            ConflictError: somebody has started another one under its name meanwhile.
        """
        job = self.api.find(self.kind.resource, name)
        if job is not None and job["metadata"]["uid"] != uid:
            raise ConflictError(f"job {name} was started anew meanwhile; see `{PROGRAM} status {name}`")
        if job is not None:
            self.api.delete(self.kind.resource, name, uid=uid)
        gone = f"job {name} is deleted, but its pods are not gone yet"
        self._until(lambda: self.api.find(self.kind.resource, name) is None and not self.pods(name), 90, gone)

    def _group(self, job: Json, events: Events) -> Json | None:
        """Volcano's PodGroup of the job; who may run jobs need not be allowed to look at it."""
        if self.name != "volcano":
            return None
        try:
            return self.api.find(POD_GROUPS, f"{job['metadata']['name']}-{job['metadata']['uid']}")
        except ApiError as error:
            if not error.of_rights:
                raise
            events.hidden = str(error)
            return None

    @staticmethod
    def _until(true: Callable[[], bool], within_s: float, failed: str) -> None:
        if not wait_until(true, within_s=within_s, every_s=_POLL_S):
            raise WaitTimeoutError(f"{failed}; see `kubectl get pods`")

    def list(self) -> "list[JobState]":
        """All jobs of the namespace that a launcher or the chart made, oldest first."""
        jobs, _ = self.api.list(self.kind.resource, labels=OURS)
        pods, _ = self.api.list(PODS, labels=OURS)
        states = []
        for job in jobs:
            own = [pod for pod in pods if pod["metadata"]["labels"].get(self.kind.pod_label) == job["metadata"]["name"]]
            phase, reason = self.kind.phase(job, own)
            states.append(self._state(job, own, phase, reason))
        return sorted(states, key=lambda state: (state.created or 0, state.ref.name))


def _pod_facts(pod: Json) -> dict[str, Any]:
    status = pod.get("status", {})
    ended = container_failure(pod)
    facts = {"name": pod["metadata"]["name"], "node": pod["spec"].get("nodeName"), "phase": status.get("phase")}
    return {**facts, "ended": ended} if ended else facts


def _began(pod: Json) -> float | None:
    """When its container began."""
    for one in pod.get("status", {}).get("containerStatuses") or ():
        state = one.get("state") or {}
        return seconds((state.get("running") or state.get("terminated") or {}).get("startedAt"))
    return None


def _last_tries(failed: Sequence[Json]) -> list[Json]:
    """Of pods that have failed each node's last one, as others are of earlier tries; the first to end first."""
    of_node = {pod["spec"].get("hostname", ""): pod for pod in sorted(failed, key=_ended_at)}
    return sorted(of_node.values(), key=_ended_at)


def _ended_at(pod: Json) -> str:
    ended = [
        ((one.get("state") or {}).get("terminated") or {}).get("finishedAt") or "~"
        for one in pod.get("status", {}).get("containerStatuses") or ()
    ]
    return min(ended, default="~")
