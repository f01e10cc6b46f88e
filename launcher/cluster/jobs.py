"""Jobs on a cluster, of one `Kind`: find, read, stop.

All that is known of a job is in its object (its spec is an annotation) and its pods. Nothing is kept on this machine,
so every launcher, now or next week, sees the same.
"""

import base64
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from launcher import PROGRAM
from launcher.cluster import saved_attempt
from launcher.cluster.events import Surroundings, events_about, events_of_job
from launcher.cluster.failures import container_failure, first_words, is_refusal, last_tries
from launcher.cluster.log_end import log_end
from launcher.cluster.lost_nodes import delete_by_force, lost_reason
from launcher.cluster.pending import why_pending
from launcher.cluster.saved_attempt import SavedAttempt
from launcher.errors import ApiError, ConflictError, NotFoundError
from launcher.jobs import Channel, Explanation, JobEvent, JobRef, JobState, LogItem, Phase
from launcher.kinds import Kind, kind_named, kueue
from launcher.kinds.labels import OURS, rank_table_name
from launcher.kinds.objects import attempt_number, is_young, spec_of, unix_time
from launcher.kube.access import ClusterAccess
from launcher.kube.api import Api, Json, connect, if_allowed
from launcher.kube.resources import CONFIG_MAPS, NODES, PODS
from launcher.kube.retry import poll
from launcher.output.lines import parse_lines
from launcher.output.progress import JobProgress

_POLL_S = 0.5
# Seconds beyond the pods' own grace period.
_EXTRA_GRACE_S = 30.0
_DELETE_S = 90.0
_MOST_PODS = 4
"""Pods of a job that a list asks for its progress. Rank 0 tells it, which a rank table can put into any pod."""
_OUT_OF_TIME = "DeadlineExceeded"


class ClusterJobs:
    """The jobs of one kind in one namespace. `launcher.jobs.Jobs` says what each method promises."""

    poll_s = 2.0

    def __init__(self, kind: Kind, api: Api) -> None:
        self.name = kind.name
        self.kind = kind
        self.api = api

    @classmethod
    def at(cls, name: str, access: ClusterAccess) -> "ClusterJobs":
        """Return the jobs of the kind `name` on the cluster that `access` names."""
        return cls(kind_named(name), connect(access))

    @property
    def place(self) -> str:
        """The cluster and the namespace, for messages."""
        return f"{self.api.origin}, namespace {self.api.namespace}"

    @property
    def address(self) -> str:
        """The server and the namespace."""
        return f"{self.api.credentials.server}, namespace {self.api.namespace}"

    def served(self) -> bool:
        """Return whether the cluster knows this kind of job.

        Raises:
            UnreachableError: the cluster does not answer.
        """
        resource = self.kind.resource
        try:
            self.api.request("GET", f"/apis/{resource.group}/{resource.version}", action=f"look for {resource}")
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def check_exists(self, ref: JobRef) -> None:
        """Ask for the job object only."""
        self.job(ref.name)

    def get(self, ref: JobRef) -> JobState:
        """Return the job's state, from its object and its pods; from its object only if the pods are hidden."""
        job = self.job(ref.name)
        pods, hidden = self._visible_pods(ref.name)
        return self._state_without_pods(job, hidden) if hidden else self.state_of(job, pods)

    def get_with_events(self, ref: JobRef) -> tuple[JobState, list[JobEvent]]:
        """Return the job's state, and what happened to the job, its pods and its gang; ask for each list once."""
        job = self.job(ref.name)
        pods, hidden = self._visible_pods(ref.name)
        gang = self._gang(job)
        events = events_of_job(self.api, self.kind, job, [*pods, *filter(None, [gang[0]])])
        known = Surroundings(gang, events)
        state = self._state_without_pods(job, hidden) if hidden else self.state_of(job, pods, known)
        return state, known.lines()

    def logs(
        self, ref: JobRef, *, follow: bool = False, since_s: float | None = None, attempt: int | None = None
    ) -> Iterator[LogItem]:
        """Yield the lines of all its pods, each once."""
        from launcher.cluster.follow import follow_job  # noqa: PLC0415  # pycurl: only a log's reader pays

        self.job(ref.name)
        return follow_job(
            self.api,
            self.kind,
            ref.name,
            self.state_of,
            follow=follow,
            since_s=since_s,
            attempt=attempt,
            explain=lambda: self.explain(ref),
        )

    def progress(self, state: JobState) -> JobProgress:
        """Return the job's progress, from the end of its pods' logs."""
        return self._progress(pod["name"] for pod in state.details["pods"])

    def quick_progress(self, state: JobState) -> JobProgress:
        """Return the job's progress from the log of the pod that tells it, mostly the first one."""
        progress = JobProgress()
        running = [pod["name"] for pod in state.details["pods"] if pod["phase"] == "Running"]
        for name in sorted(running)[:_MOST_PODS]:
            progress.update_all(parse_lines(log_end(self.api, name)))
            if progress.ahead is not None:
                break
        return progress

    def explain(self, ref: JobRef) -> Explanation:
        """Return why the job waits or failed, from all objects that decide about it."""
        from launcher.cluster.explain import explain_job  # noqa: PLC0415  # the rules: only this command pays for them

        job = self.job(ref.name)
        pods, hidden = self._visible_pods(ref.name)
        phase, reason = self.kind.phase(job, pods)
        causes, unseen = explain_job(self.api, self.kind, job, pods)
        state = self._state(job, pods, phase, causes[0].text if causes else reason)
        return Explanation(state, causes, [*filter(None, [hidden]), *unseen])

    def cancel(self, ref: JobRef, *, on_asked: Callable[[], None] = lambda: None) -> None:
        """Have the cluster stop its pods, which save their state, and keep the job."""
        state = self.get(ref)
        if state.phase.ended:
            return
        self.kind.stop(self.api, self.job(ref.name))
        on_asked()
        grace_s = float(state.setting("grace_s") or 0) + _EXTRA_GRACE_S
        _wait_until(lambda: self.get(ref).phase.ended, grace_s, f"job {ref.name} has not stopped after {grace_s:g} s")

    def delete(self, ref: JobRef) -> None:
        """Remove the job's objects; the output claim stays."""
        job = self.job(ref.name)
        phase, _ = self.kind.phase(job, self.pods(ref.name))
        if not phase.ended:
            raise ConflictError(
                f"job {ref.name} is {phase.value}: `{PROGRAM} cancel {ref.name}` first, or delete with --force"
            )
        self.remove(job)
        saved_attempt.drop(self.api, self.name, ref.name)

    def objects(self, ref: JobRef) -> Mapping[str, Any]:
        """Return the job, its pods, its gang, and the rank table that its pods get."""
        job = self.job(ref.name)
        table, _ = if_allowed(lambda: self.api.find(CONFIG_MAPS, rank_table_name(ref.name)))
        objects = {"job": job, "pods": self.pods(ref.name), "gang": self._gang(job)[0], "rank-table": table}
        return {name: item for name, item in objects.items() if item}

    def known_secrets(self) -> Sequence[str]:
        """Return the token, or the user and the password, and the password of the proxy."""
        credentials = self.api.credentials
        logins = [value for name, value in credentials.login() if name.lower() == "authorization"]
        basic = [value.removeprefix("Basic ") for value in logins if value.startswith("Basic ")]
        passwords = [base64.b64decode(login).decode("utf-8", "replace").partition(":")[2] for login in basic]
        proxy = None if credentials.proxy is None else urlsplit(credentials.proxy).password
        return [*(value.partition(" ")[2] for value in logins), *passwords, *filter(None, [proxy])]

    @contextmanager
    def open_files(self, state: JobState, *, on_note: Callable[[str], None], live: bool = False) -> Iterator[Channel]:
        """Give a way to the output folder, by a program in a pod."""
        from launcher.cluster.run_files import open_run_files  # noqa: PLC0415  # a WebSocket: only a copy pays for it

        name = state.ref.name
        if state.output is None:
            raise NotFoundError(f"job {name} has no record of its output folder")
        job, pods = self.job(name), self.pods(name)
        with open_run_files(self.api, self.kind, job, pods, state.output, on_note=on_note, live=live) as channel:
            yield channel

    def recover(self, ref: JobRef, *, on_note: Callable[[str], None]) -> None:
        """Delete by force the pods that the cluster has given up, and whose nodes are silent."""
        job, pods = self.job(ref.name), self.pods(ref.name)
        phase, _ = self.kind.phase(job, pods)
        if phase.ended:
            raise ConflictError(f"job {ref.name} has ended: there is nothing to recover")
        delete_by_force(self.api, ref.name, pods, on_note=on_note)

    def find(self, name: str) -> Json | None:
        """Return the job object; None if there is no such job."""
        return self.api.find(self.kind.resource, name)

    def job(self, name: str) -> Json:
        """Return the job object.

        Raises:
            NotFoundError: there is no such job.
        """
        job = self.find(name)
        if job is None and not self.served():
            raise NotFoundError(
                f"there is no {self.name} job `{name}`: {self.place} has no {self.kind.title}; choose another --context"
            )
        if job is None:
            hint = saved_attempt.hint(self.api, self.name, name)
            raise NotFoundError(
                f"there is no {self.name} job `{name}` in {self.place}; see `{PROGRAM} list`"
                f"{hint or '. A job that was removed has left its output on its claim'}"
            )
        return job

    def pods(self, name: str) -> list[Json]:
        """Return the job's pods, in the order of their names; nothing if the user has no right to see pods."""
        return self._visible_pods(name)[0]

    def state_of(self, job: Json, pods: Sequence[Json], known: Surroundings | None = None) -> JobState:
        """Return the state that the job object and its pods add up to.

        Args:
            known: what a job waits for, if the caller has read it; else it is read for a job that waits.
        """
        phase, reason = self.kind.phase(job, pods)
        if phase is Phase.PENDING:
            reason = self._lost_node(job, pods) or self._why_pending(job, pods, known) or reason
        elif phase is Phase.FAILED:
            reason = self._why_failed(pods, reason)
            if self._is_refused(job, pods):
                reason = f"{reason}; {saved_attempt.correction(job)}"
        return self._state(job, pods, phase, reason)

    def attempt_to_continue(self, name: str, job: Json | None) -> SavedAttempt | None:
        """Return the attempt whose settings the next one takes over; None if there is no earlier attempt.

        Args:
            job: the object of the latest attempt; None if it was removed.
        """
        if job is None:
            return saved_attempt.load(self.api, self.name, name)
        return saved_attempt.attempt_to_continue(job, refused=self._is_refused(job, self.pods(name)))

    def _is_refused(self, job: Json, pods: Sequence[Json]) -> bool:
        """Return whether the trainer refused an ended job: it did no step, and changed nothing in its run."""
        # The pods of an earlier try may be gone, and with them what it did.
        return is_refusal(pods) and not self.kind.retries(job) and not self._progress(map(_name_of, pods)).has_begun

    def reason_without_pods(self, job: Json, now: float) -> str:
        """Return why the job has no pods, as far as its objects say it.

        Args:
            now: seconds since 1970.
        """
        queued = self._queue_reasons([job])[0].get(job["metadata"]["uid"])
        return queued or self.kind.reason_without_pods(job, self._gang(job)[0], lambda _item: (), now)

    def remove(self, job: Json) -> None:
        """Delete this very job object, and wait until it and its pods are gone, so that the names are free.

        Raises:
            ConflictError: another job has taken its name meanwhile.
        """
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        current = self.find(name)
        if current is not None and current["metadata"]["uid"] != uid:
            raise ConflictError(f"another job {name} was started meanwhile; see `{PROGRAM} status {name}`")
        if current is not None:
            self.api.delete(self.kind.resource, name, uid=uid)
        remains = f"job {name} is deleted, but its pods are not gone yet"
        _wait_until(lambda: self.find(name) is None and not self.pods(name), _DELETE_S, remains)

    @staticmethod
    def _lost_node(job: Json, pods: Sequence[Json]) -> str:
        return lost_reason(job["metadata"]["name"], pods, time.time())

    def _state(self, job: Json, pods: Sequence[Json], phase: Phase, reason: str) -> JobState:
        meta, spec = job["metadata"], spec_of(job)
        lost_node = "" if phase.ended else self._lost_node(job, pods)
        name = str(meta["name"])
        train, claim = spec.get("train", {}), spec.get("pods", {}).get("output_claim")
        output = Path(str(train["output"])) / name if "output" in train else None
        return JobState(
            ref=JobRef(self.name, name),
            phase=phase,
            reason=lost_node or reason,
            lost_node=lost_node,
            created=unix_time(meta.get("creationTimestamp")),
            started=min(filter(None, map(_container_start, pods)), default=self.kind.started(job)),
            ended=self.kind.ended(job) if phase.ended else None,
            spec=spec,
            output=output,
            files=f"{output} on claim {claim}" if output and claim else "",
            attempt=attempt_number(job),
            restarts=self.kind.retries(job),
            details={
                "cluster": self.api.origin,
                "namespace": self.api.namespace,
                "uid": meta["uid"],
                "pods": [_pod_facts(pod) for pod in pods],
            },
        )

    def _state_without_pods(self, job: Json, hidden: str) -> JobState:
        """Return the state by the job object only.

        Args:
            hidden: why the user cannot see the pods.
        """
        phase, reason = self.kind.phase(job, [])
        more = "" if phase.ended else f"you have no right to see its pods: {hidden}"
        return self._state(job, [], phase, "; ".join(filter(None, (reason, more))))

    def _why_pending(self, job: Json, pods: Sequence[Json], known: Surroundings | None) -> str:
        now = time.time()
        queued, queue_hidden = self._queue_reasons([job])
        if reason := queued.get(job["metadata"]["uid"]):
            return reason
        gang, gang_hidden = self._gang(job) if known is None else known.gang
        refusals = [queue_hidden, gang_hidden]

        def events(item: Json) -> Sequence[Json]:
            items, hidden = events_about(self.api, item) if known is None else known.events_about(item)
            refusals.append(hidden)
            return items

        reason = why_pending(self.kind, job, pods, gang, events, now=now, nodes=self._nodes)
        hidden = "" if is_young(job, now) else next(filter(None, refusals), "")
        return reason or (f"you have no right to see why: {hidden}" if hidden else "")

    def _queue_reasons(self, jobs: Sequence[Json]) -> tuple[dict[str, str], str]:
        """Return why jobs wait in Kueue's queues, by their uids, and why this user cannot see it."""
        queued, hidden = if_allowed(lambda: kueue.reasons(self.api, jobs, time.time()))
        return queued or {}, hidden

    def _visible_pods(self, name: str) -> tuple[list[Json], str]:
        """Return the job's pods, and why this user cannot see them."""
        pods, hidden = if_allowed(lambda: self.api.list(PODS, labels=f"{self.kind.pod_label}={name}")[0])
        return sorted(pods or (), key=lambda pod: str(pod["metadata"]["name"])), hidden

    def _nodes(self) -> Sequence[Json] | None:
        """Return all nodes; None if the user cannot see them."""
        return if_allowed(lambda: self.api.list(NODES)[0])[0]

    def _why_failed(self, pods: Sequence[Json], reason: str) -> str:
        if reason.startswith(_OUT_OF_TIME):
            # The cluster stopped the pods for it, and they ended as stopped pods do.
            return reason
        failed = last_tries([pod for pod in pods if container_failure(pod)])
        cause, _ = first_words(failed, pods, self._log_tail)
        pod_reason = f"pod {failed[0]['metadata']['name']}: {container_failure(failed[0])}" if failed else reason
        return f"{cause} ({pod_reason})" if cause else pod_reason

    def _progress(self, pods: Iterable[str]) -> JobProgress:
        return JobProgress().update_all(line for pod in pods for line in parse_lines(log_end(self.api, pod)))

    def _log_tail(self, pod: Json) -> bytes:
        return log_end(self.api, _name_of(pod))

    def _gang(self, job: Json) -> tuple[Json | None, str]:
        """Return the object that schedules the pods together, and why this user cannot see it."""
        gang = self.kind.gang(job)
        return (None, "") if gang is None else if_allowed(lambda: self.api.find(*gang))

    def list(self) -> "list[tuple[JobState, JobProgress]]":
        """Return all jobs of the namespace that a launcher made; `quick_progress` costs a request for each."""
        jobs, _ = self.api.list(self.kind.resource, labels=OURS, part=_without_managers)
        pods, _ = if_allowed(lambda: self.api.list(PODS, labels=OURS, part=_outline)[0])
        queued, _ = self._queue_reasons(jobs)
        pods_of: dict[str, list[Json]] = {}
        for pod in pods or ():
            pods_of.setdefault(str(pod["metadata"]["labels"].get(self.kind.pod_label)), []).append(pod)
        states = []
        for job in jobs:
            own = pods_of.get(job["metadata"]["name"], [])
            phase, reason = self.kind.phase(job, own)
            waits = phase is Phase.PENDING and queued.get(job["metadata"]["uid"])
            states.append(self._state(job, own, phase, waits or reason))
        states.sort(key=lambda state: (state.created or 0, state.ref.name))
        return [(state, JobProgress()) for state in states]


def _name_of(pod: Json) -> str:
    return str(pod["metadata"]["name"])


def _without_managers(item: Json) -> Json:
    """Return an object without the list of programs that have changed it, which can be half of it."""
    item["metadata"].pop("managedFields", None)
    return item


def _outline(pod: Json) -> Json:
    """Return the parts of a pod that a list of jobs shows."""
    spec = {key: pod["spec"][key] for key in ("nodeName", "hostname") if key in pod["spec"]}
    return {**_without_managers(pod), "spec": spec}


def _wait_until(condition: Callable[[], bool], within_s: float, failure: str) -> None:
    deadline = time.monotonic() + within_s
    poll(
        lambda: condition() or None,
        every_s=_POLL_S,
        deadline=deadline,
        expired=lambda error: f"{failure}; see `kubectl get pods`" + (f" ({error})" if error else ""),
    )


def _pod_facts(pod: Json) -> dict[str, Any]:
    status = pod.get("status", {})
    failure = container_failure(pod)
    facts = {"name": pod["metadata"]["name"], "node": pod["spec"].get("nodeName"), "phase": status.get("phase")}
    return {**facts, "ended": failure} if failure else facts


def _container_start(pod: Json) -> float | None:
    """Return when the pod's container started."""
    for container in pod.get("status", {}).get("containerStatuses") or ():
        state = container.get("state") or {}
        return unix_time((state.get("running") or state.get("terminated") or {}).get("startedAt"))
    return None
