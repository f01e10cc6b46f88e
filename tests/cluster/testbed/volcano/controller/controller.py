"""STANDS IN for vc-controller-manager: makes Jobs into PodGroups and pods, and follows them to their end.

Each pass reads everything anew and takes at most one step with each Job, as the original takes one request after the
other from its queue; what a step has done is read again in the next.
"""

import datetime
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.testbed.api import ApiError
from tests.cluster.testbed.volcano.client import COMMANDS, GROUPS, JOBS, PODS, QUEUES, Client, Json, announce, path
from tests.cluster.testbed.volcano.controller import objects, plugins, queues, rules
from tests.cluster.testbed.volcano.controller.job_events import Happenings
from tests.cluster.testbed.volcano.controller.owned_objects import Parts, PluginError
from tests.cluster.testbed.volcano.controller.rules import Happening, going
from tests.cluster.testbed.volcano.events import Recorder, now

COMPONENT = "vc-controller-manager"
FIRST_DELAY_S = 0.005
"""Between tries of a Job that cannot be made; doubled each time, as client-go's rate limiter does."""
TRIES = 15
"""Then the Job is given up: after 164 s, as seen."""
GATHER_S = 0.03
"""Changes come in flocks, and one look is enough for a flock."""


@dataclass
class _Seen:
    """What is remembered of one Job; everything else is read.

    Attributes:
        plugged: the version and the retry for which all of the plugins' objects have been made.
        pods: uids and resource versions, when a Job that is ending was last looked at.
        told: the condition of its PodGroup that has been told of.
    """

    plugged: tuple[int, int] | None = None
    pods: frozenset[tuple[str, str]] = frozenset()
    told: tuple[str, str] | None = None
    tries: int = 0
    next_try: float = 0.0


@dataclass(frozen=True)
class _View:
    """A Job as it is at one look, with what belongs to it; steps change `job` and write it."""

    job: Json
    pods: Sequence[Json]
    group: Json | None
    seen: _Seen = field(default_factory=_Seen)


def run(kubeconfig: Path) -> None:
    """Act for ever, whenever something has changed and once a second."""
    controller, changed = Controller(Client(kubeconfig)), threading.Event()
    for kind in (JOBS, PODS, GROUPS, COMMANDS):
        threading.Thread(target=announce, args=(kubeconfig, kind, changed), daemon=True).start()
    while True:
        changed.wait(1)
        time.sleep(GATHER_S)
        changed.clear()
        try:
            controller.act()
        except ApiError as error:
            sys.stderr.write(f"{error}\n")


class Controller:
    """What has to be remembered between passes, and the acts."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._recorder = Recorder(client, COMPONENT)
        self._happenings = Happenings()
        self._parts = Parts(client, self._happenings)
        self._seen: dict[str, _Seen] = {}

    def act(self) -> None:
        """One pass over everything.

        Raises:
            ApiError: something cannot be read.
        """
        ours = self._client.namespaces()
        pods = [pod for pod in self._client.items(PODS) if pod["metadata"]["namespace"] in ours]
        found = self._client.items(GROUPS)
        groups = {group["metadata"]["name"]: group for group in found}
        jobs = [job for job in self._client.items(JOBS) if job["metadata"]["namespace"] in ours]
        queue_list = self._client.items(QUEUES)
        commands = [one for one in self._client.items(COMMANDS) if one["metadata"]["namespace"] in ours]
        queues.keep_states(self._client, queue_list, found)
        names = {queue["metadata"]["name"] for queue in queue_list}
        for job in jobs:
            if "deletionTimestamp" not in job["metadata"]:
                own = [pod for pod in pods if _belongs(pod, job)]
                group = groups.get(objects.group_name(job))
                seen = self._seen.setdefault(job["metadata"]["uid"], _Seen())
                self._attend(_View(_completed(job), own, group, seen), commands, names)
        for command in commands:
            if command["target"]["kind"] == "Queue":
                queues.obey(self._client, self._recorder, command, queue_list, found)
        uids = {job["metadata"]["uid"] for job in jobs}
        self._seen = {uid: seen for uid, seen in self._seen.items() if uid in uids}
        self._happenings.forget(uids)

    def _attend(self, view: _View, commands: Sequence[Json], queue_names: set[str]) -> None:
        """One step; what has changed or gone meanwhile is looked at again in the next pass."""
        try:
            self._happenings.look(view.job, view.pods, view.group)
            if view.job["status"]["state"]["phase"] or self._begun(view, queue_names):
                self._step(view, commands)
        except ApiError as error:
            if error.status not in {403, 404, 409}:
                raise
            sys.stderr.write(f"{view.job['metadata']['name']}: {error}\n")

    def _begun(self, view: _View, queue_names: set[str]) -> bool:
        """Whether a new Job has got its first phase; without its queue it does not."""
        if time.monotonic() < view.seen.next_try:
            return False
        if view.job["spec"].get("queue", "default") not in queue_names:
            self._failed(view)
            return False
        if view.job["spec"].get("minAvailable"):
            view.job["status"]["minAvailable"] = view.job["spec"]["minAvailable"]
        self._to(view.job, "Pending")
        return True

    def _step(self, view: _View, commands: Sequence[Json]) -> None:
        job = view.job
        command = next((one for one in commands if one["target"].get("uid") == job["metadata"]["uid"]), None)
        happening, action = self._happenings.wanted(job) if command is None else (None, self._taken(job, command))
        if action:
            self._recorder.event("Job", job, "ExecuteAction", f"Start to execute action {action} ")
        phase = job["status"]["state"]["phase"]
        if phase in {"Pending", "Running"} and action:
            self._execute(view, action, happening)
        elif phase in {"Pending", "Running", "Restarting"}:
            self._sync(view)
        elif action == "ResumeJob" and phase in {"Aborting", "Aborted"}:
            self._kill(view, "Restarting", retry=True)
        else:
            self._rest(view, phase, asked=action is not None)
        self._expire(job)

    def _taken(self, job: Json, command: Json) -> str | None:
        """A command's action; it is deleted first, so that it is not carried out twice."""
        metadata = command["metadata"]
        if not self._client.remove(path(COMMANDS, metadata["namespace"], metadata["name"]), uid=metadata["uid"]):
            return None
        action: str = command["action"]
        self._recorder.event("Job", job, "CommandIssued", queues.ISSUED.format(action))
        return action

    def _execute(self, view: _View, action: str, happening: Happening | None) -> None:
        if action == "RestartJob":
            self._kill(view, "Restarting", retry=True, soft=False)
        elif action in rules.WAYS:
            self._kill(view, rules.WAYS[action])
        elif action in {"RestartTask", "RestartPod"} and happening is not None:
            self._restart(view.job, [pod for pod in view.pods if _hit(pod, action, happening)])
        else:
            self._sync(view)

    def _rest(self, view: _View, phase: str, *, asked: bool) -> None:
        """A Job that ends or has ended is killed again whenever its pods have changed, which counts its version up."""
        state = frozenset((pod["metadata"]["uid"], pod["metadata"]["resourceVersion"]) for pod in view.pods)
        active = [pod for pod in view.pods if going(pod) or pod["status"]["phase"] not in rules.SOFT]
        over = rules.ENDING.get(phase) if not active else None
        if over or asked or state != view.seen.pods:
            self._kill(view, over)
        view.seen.pods = state

    def _sync(self, view: _View) -> None:
        job, seen = view.job, view.seen
        if time.monotonic() < seen.next_try:
            return
        try:
            self._plug(job, seen)
        except PluginError as error:
            said = f"Execute plugin when job add failed, err: {error}"
            self._recorder.event("Job", job, "PluginError", said, warning=True)
            self._failed(view)
            return
        seen.tries = 0
        group = self._parts.group(job, view.group)
        self._tell_of_group(job, group, seen)
        pods = view.pods
        # Until the scheduler has admitted the group no pods are made, and those there are are not counted.
        if group.get("status", {}).get("phase", "") not in {"", "Pending"}:
            pods = self._parts.scale(job, pods)
            self._count(job, pods, seen)
        elif (phase := rules.next_phase(job["spec"], job["status"])) != job["status"]["state"]["phase"]:
            self._to(job, phase)
        if job["status"]["state"]["phase"] in rules.ENDED:
            self._kill(_View(job, pods, group, seen), None)

    def _plug(self, job: Json, seen: _Seen) -> None:
        """A Job that restarts has only its hosts' ConfigMap made at first; the rest follows when it is Pending."""
        status = job["status"]
        run = (status.get("version", 0), status.get("retryCount", 0))
        restarting = status["state"]["phase"] == "Restarting"
        if seen.plugged != run:
            self._parts.plug(job, hosts_alone=restarting)
            seen.plugged = None if restarting else run

    def _count(self, job: Json, pods: Sequence[Json], seen: _Seen) -> None:
        status = job["status"]
        counted = (*rules.COUNTS, "taskStatusCount", "controlledResources")
        before = {key: status.pop(key, None) for key in counted}
        status |= rules.counts(pods)
        if seen.plugged and (made := plugins.controlled(job)):
            status["controlledResources"] = made
        phase = rules.next_phase(job["spec"], status)
        if phase != status["state"]["phase"] or before != {key: status.get(key) for key in counted}:
            self._to(job, phase)

    def _restart(self, job: Json, pods: Sequence[Json]) -> None:
        """RestartTask and RestartPod: the Job's version and its PodGroup stay, and all that the plugins made goes."""
        for pod in pods:
            self._parts.delete(pod)
        self._unplug(job, terminating=len(pods))
        job["status"]["retryCount"] = job["status"].get("retryCount", 0) + 1
        self._to(job, "Restarting")

    def _kill(self, view: _View, phase: str | None, *, soft: bool = True, retry: bool = False) -> None:
        job, status = view.job, view.job["status"]
        unkept = [pod for pod in view.pods if not rules.kept(pod, soft=soft, spec=job["spec"], status=status)]
        terminating = [pod for pod in view.pods if going(pod) or pod in unkept]
        for pod in terminating:
            if not going(pod):
                self._parts.delete(pod)
        self._unplug(job, terminating=len(terminating))
        status["version"] = status.get("version", 0) + 1
        if retry:
            status["retryCount"] = status.get("retryCount", 0) + 1
        self._to(job, phase or status["state"]["phase"])
        self._parts.ungroup(job)

    def _unplug(self, job: Json, *, terminating: int) -> None:
        """Take the plugins' objects and all counts but one away."""
        status = job["status"]
        self._parts.unplug(job)
        self._seen[job["metadata"]["uid"]].plugged = None
        for key in (*rules.COUNTS, "taskStatusCount"):
            status.pop(key, None)
        if terminating:
            status["terminating"] = terminating
        status["runningDuration"] = rules.duration(time.time() - _seconds(job["metadata"]["creationTimestamp"]))

    def _to(self, job: Json, phase: str) -> None:
        """Write the status; the phase may be the one it has."""
        status, metadata = job["status"], job["metadata"]
        status["state"] = {"phase": phase, "lastTransitionTime": now()}
        earlier = [one for one in status.get("conditions", ()) if one["status"] != phase]
        status["conditions"] = [*earlier, {"status": phase, "lastTransitionTime": now()}]
        written = self._client.replace(path(JOBS, metadata["namespace"], metadata["name"], "status"), job)
        metadata["resourceVersion"] = written["metadata"]["resourceVersion"]

    def _failed(self, view: _View) -> None:
        """Try later, or give the Job up."""
        seen = view.seen
        seen.tries += 1
        seen.next_try = time.monotonic() + retry_delay(seen.tries)
        if seen.tries > TRIES:
            said = "Job failed on action SyncJob for retry limit reached"
            self._recorder.event("Job", view.job, "ExecuteAction", said)
            self._kill(view, "Terminating")

    def _tell_of_group(self, job: Json, group: Json, seen: _Seen) -> None:
        """Whoever looks at the Job alone learns here why it waits."""
        true = [one for one in group.get("status", {}).get("conditions", ()) if one["status"] == "True"]
        newest = max(true, key=lambda one: str(one["lastTransitionTime"]), default=None)
        if newest is None or newest["type"] == "Scheduled":
            return
        said = (newest["message"], newest["lastTransitionTime"])
        if said != seen.told:
            seen.told = said
            name = f"{job['metadata']['namespace']}:{job['metadata']['name']}"
            message = f"PodGroup {name} {newest['type'].lower()}, reason: {newest['message']}"
            self._recorder.event("Job", job, "PodGroupPending", message, warning=True)

    def _expire(self, job: Json) -> None:
        after, state, metadata = job["spec"].get("ttlSecondsAfterFinished"), job["status"]["state"], job["metadata"]
        if after is None or state["phase"] not in rules.ENDED:
            return
        if time.time() >= _seconds(state["lastTransitionTime"]) + after:
            where = path(JOBS, metadata["namespace"], metadata["name"])
            self._client.remove(where, uid=metadata["uid"], propagation="Foreground")


def retry_delay(number: int) -> float:
    """Seconds until the next try, after so many."""
    return float(FIRST_DELAY_S * 2 ** (number - 1))


def _seconds(moment: str) -> float:
    """Since 1970, of a time in an object."""
    return datetime.datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()


def _completed(job: Json) -> Json:
    """With what steps rely on; a Job that no webhook has seen may have tasks without a name."""
    job["spec"]["tasks"] = [{"name": "", "replicas": 1, **task} for task in job["spec"].get("tasks", ())]
    job.setdefault("status", {}).setdefault("state", {}).setdefault("phase", "")
    return job


def _belongs(pod: Json, job: Json) -> bool:
    """By name, so that the pods of an older Job of the same name count until they are gone."""
    metadata = pod["metadata"]
    named = metadata.get("annotations", {}).get("volcano.sh/job-name")
    return bool(named == job["metadata"]["name"] and metadata["namespace"] == job["metadata"]["namespace"])


def _hit(pod: Json, action: str, happening: Happening) -> bool:
    if going(pod):
        return False
    if action == "RestartPod":
        return bool(pod["metadata"]["name"] == happening.pod)
    return rules.annotation(pod, rules.SPEC) == happening.task
