"""STAND-IN for vc-controller-manager: creates the PodGroups and pods of Jobs, and updates the Jobs until their end.

Each pass reads all objects and takes at most one step with each Job, as the original takes one request after the other
from its queue. The next pass reads the result of a step.
"""

import datetime
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.testbed.api import ApiError
from tests.cluster.testbed.volcano.client import (
    COMMANDS,
    GROUPS,
    JOBS,
    PODS,
    QUEUES,
    Client,
    Json,
    path,
    signal_changes,
)
from tests.cluster.testbed.volcano.controller import objects, plugins, queues, rules
from tests.cluster.testbed.volcano.controller.job_events import JobEvents
from tests.cluster.testbed.volcano.controller.owned_objects import OwnedObjects, PluginError
from tests.cluster.testbed.volcano.controller.rules import JobEvent, is_terminating
from tests.cluster.testbed.volcano.events import EventRecorder, timestamp

COMPONENT = "vc-controller-manager"
FIRST_DELAY_S = 0.005
"""The delay between attempts to create a Job's objects; it doubles each time, as in client-go's rate limiter."""
TRIES = 15
"""After these attempts the controller gives the Job up: after 164 s, as recorded."""
GATHER_S = 0.03
"""Changes come in groups, and one pass is enough for a group."""


@dataclass
class _JobState:
    """The state of one Job between passes; everything else is read.

    Attributes:
        plugged: the version and the retry for which all of the plugins' objects have been created.
        pods: uids and resource versions at the last look at a Job that is ending.
        reported: the last condition of its PodGroup for which an event was written.
    """

    plugged: tuple[int, int] | None = None
    pods: frozenset[tuple[str, str]] = frozenset()
    reported: tuple[str, str] | None = None
    tries: int = 0
    next_try: float = 0.0


@dataclass(frozen=True)
class _JobView:
    """A Job at one moment, with its objects; steps change `job` and write it."""

    job: Json
    pods: Sequence[Json]
    group: Json | None
    state: _JobState = field(default_factory=_JobState)


def run(kubeconfig: Path) -> None:
    """Run passes for ever, after each change and once a second."""
    controller, changed = Controller(Client(kubeconfig)), threading.Event()
    for kind in (JOBS, PODS, GROUPS, COMMANDS):
        threading.Thread(target=signal_changes, args=(kubeconfig, kind, changed), daemon=True).start()
    while True:
        changed.wait(1)
        time.sleep(GATHER_S)
        changed.clear()
        try:
            controller.act()
        except ApiError as error:
            sys.stderr.write(f"{error}\n")


class Controller:
    """The state between passes, and the actions."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._recorder = EventRecorder(client, COMPONENT)
        self._job_events = JobEvents()
        self._owned_objects = OwnedObjects(client, self._job_events)
        self._states: dict[str, _JobState] = {}

    def act(self) -> None:
        """Run one pass over all objects.

        Raises:
            ApiError: some objects cannot be read.
        """
        namespaces = self._client.namespaces()
        pods = [pod for pod in self._client.items(PODS) if pod["metadata"]["namespace"] in namespaces]
        all_groups = self._client.items(GROUPS)
        groups = {group["metadata"]["name"]: group for group in all_groups}
        jobs = [job for job in self._client.items(JOBS) if job["metadata"]["namespace"] in namespaces]
        queue_list = self._client.items(QUEUES)
        commands = [
            command for command in self._client.items(COMMANDS) if command["metadata"]["namespace"] in namespaces
        ]
        queues.update_states(self._client, queue_list, all_groups)
        names = {queue["metadata"]["name"] for queue in queue_list}
        for job in jobs:
            if "deletionTimestamp" not in job["metadata"]:
                own_pods = [pod for pod in pods if _belongs(pod, job)]
                group = groups.get(objects.group_name(job))
                state = self._states.setdefault(job["metadata"]["uid"], _JobState())
                self._reconcile(_JobView(_with_defaults(job), own_pods, group, state), commands, names)
        for command in commands:
            if command["target"]["kind"] == "Queue":
                queues.execute(self._client, self._recorder, command, queue_list, all_groups)
        uids = {job["metadata"]["uid"] for job in jobs}
        self._states = {uid: state for uid, state in self._states.items() if uid in uids}
        self._job_events.keep_only(uids)

    def _reconcile(self, view: _JobView, commands: Sequence[Json], queue_names: set[str]) -> None:
        """Take one step with a Job; if an object has changed or gone meanwhile, the next pass continues."""
        try:
            self._job_events.update(view.job, view.pods, view.group)
            if view.job["status"]["state"]["phase"] or self._has_started(view, queue_names):
                self._step(view, commands)
        except ApiError as error:
            if error.status not in {403, 404, 409}:
                raise
            sys.stderr.write(f"{view.job['metadata']['name']}: {error}\n")

    def _has_started(self, view: _JobView, queue_names: set[str]) -> bool:
        """Return whether a new Job has got its first phase; it does not get one without its queue."""
        if time.monotonic() < view.state.next_try:
            return False
        if view.job["spec"].get("queue", "default") not in queue_names:
            self._retry_later(view)
            return False
        if view.job["spec"].get("minAvailable"):
            view.job["status"]["minAvailable"] = view.job["spec"]["minAvailable"]
        self._write_status(view.job, "Pending")
        return True

    def _step(self, view: _JobView, commands: Sequence[Json]) -> None:
        job = view.job
        command = next(
            (candidate for candidate in commands if candidate["target"].get("uid") == job["metadata"]["uid"]), None
        )
        event, action = (
            self._job_events.next_action(job) if command is None else (None, self._take_command(job, command))
        )
        if action:
            self._recorder.event("Job", job, "ExecuteAction", f"Start to execute action {action} ")
        phase = job["status"]["state"]["phase"]
        if phase in {"Pending", "Running"} and action:
            self._execute(view, action, event)
        elif phase in {"Pending", "Running", "Restarting"}:
            self._sync(view)
        elif action == "ResumeJob" and phase in {"Aborting", "Aborted"}:
            self._kill(view, "Restarting", retry=True)
        else:
            self._continue_ending(view, phase, is_requested=action is not None)
        self._expire(job)

    def _take_command(self, job: Json, command: Json) -> str | None:
        """Return a command's action; delete the command first, so that it is not carried out twice."""
        metadata = command["metadata"]
        if not self._client.remove(path(COMMANDS, metadata["namespace"], metadata["name"]), uid=metadata["uid"]):
            return None
        action: str = command["action"]
        self._recorder.event("Job", job, "CommandIssued", queues.ISSUED.format(action))
        return action

    def _execute(self, view: _JobView, action: str, event: JobEvent | None) -> None:
        if action == "RestartJob":
            self._kill(view, "Restarting", retry=True, soft=False)
        elif action in rules.ACTION_PHASES:
            self._kill(view, rules.ACTION_PHASES[action])
        elif action in {"RestartTask", "RestartPod"} and event is not None:
            self._restart(view.job, [pod for pod in view.pods if _is_affected(pod, action, event)])
        else:
            self._sync(view)

    def _continue_ending(self, view: _JobView, phase: str, *, is_requested: bool) -> None:
        """Kill a Job that ends or has ended again whenever its pods have changed, which increases its version."""
        pod_versions = frozenset((pod["metadata"]["uid"], pod["metadata"]["resourceVersion"]) for pod in view.pods)
        active = [pod for pod in view.pods if is_terminating(pod) or pod["status"]["phase"] not in rules.FINISHED]
        final_phase = rules.FINAL_PHASES.get(phase) if not active else None
        if final_phase or is_requested or pod_versions != view.state.pods:
            self._kill(view, final_phase)
        view.state.pods = pod_versions

    def _sync(self, view: _JobView) -> None:
        job, state = view.job, view.state
        if time.monotonic() < state.next_try:
            return
        try:
            self._create_plugin_objects(job, state)
        except PluginError as error:
            message = f"Execute plugin when job add failed, err: {error}"
            self._recorder.event("Job", job, "PluginError", message, warning=True)
            self._retry_later(view)
            return
        state.tries = 0
        group = self._owned_objects.ensure_pod_group(job, view.group)
        self._report_group(job, group, state)
        pods = view.pods
        # Until the scheduler has admitted the group, no pods are created, and existing ones are not counted.
        if group.get("status", {}).get("phase", "") not in {"", "Pending"}:
            pods = self._owned_objects.scale(job, pods)
            self._update_counts(job, pods, state)
        elif (phase := rules.next_phase(job["spec"], job["status"])) != job["status"]["state"]["phase"]:
            self._write_status(job, phase)
        if job["status"]["state"]["phase"] in rules.ENDED:
            self._kill(_JobView(job, pods, group, state), None)

    def _create_plugin_objects(self, job: Json, state: _JobState) -> None:
        """Create the plugins' objects; for a restarting Job only the hosts' ConfigMap, the rest when it is Pending."""
        status = job["status"]
        run = (status.get("version", 0), status.get("retryCount", 0))
        restarting = status["state"]["phase"] == "Restarting"
        if state.plugged != run:
            self._owned_objects.create_plugin_objects(job, only_hosts=restarting)
            state.plugged = None if restarting else run

    def _update_counts(self, job: Json, pods: Sequence[Json], state: _JobState) -> None:
        status = job["status"]
        counted = (*rules.COUNTS, "taskStatusCount", "controlledResources")
        old_counts = {key: status.pop(key, None) for key in counted}
        status |= rules.counts(pods)
        if state.plugged and (resources := plugins.controlled_resources(job)):
            status["controlledResources"] = resources
        phase = rules.next_phase(job["spec"], status)
        if phase != status["state"]["phase"] or old_counts != {key: status.get(key) for key in counted}:
            self._write_status(job, phase)

    def _restart(self, job: Json, pods: Sequence[Json]) -> None:
        """Execute RestartTask or RestartPod: the Job's version and PodGroup stay, but all objects of the plugins go."""
        for pod in pods:
            self._owned_objects.delete_pod(pod)
        self._delete_plugin_objects(job, terminating=len(pods))
        job["status"]["retryCount"] = job["status"].get("retryCount", 0) + 1
        self._write_status(job, "Restarting")

    def _kill(self, view: _JobView, phase: str | None, *, soft: bool = True, retry: bool = False) -> None:
        job, status = view.job, view.job["status"]
        unkept = [pod for pod in view.pods if not rules.stays(pod, soft=soft, spec=job["spec"], status=status)]
        terminating = [pod for pod in view.pods if is_terminating(pod) or pod in unkept]
        for pod in terminating:
            if not is_terminating(pod):
                self._owned_objects.delete_pod(pod)
        self._delete_plugin_objects(job, terminating=len(terminating))
        status["version"] = status.get("version", 0) + 1
        if retry:
            status["retryCount"] = status.get("retryCount", 0) + 1
        self._write_status(job, phase or status["state"]["phase"])
        self._owned_objects.delete_pod_group(job)

    def _delete_plugin_objects(self, job: Json, *, terminating: int) -> None:
        """Delete the plugins' objects, and all counts but one."""
        status = job["status"]
        self._owned_objects.delete_plugin_objects(job)
        self._states[job["metadata"]["uid"]].plugged = None
        for key in (*rules.COUNTS, "taskStatusCount"):
            status.pop(key, None)
        if terminating:
            status["terminating"] = terminating
        status["runningDuration"] = rules.duration(time.time() - _seconds(job["metadata"]["creationTimestamp"]))

    def _write_status(self, job: Json, phase: str) -> None:
        """Write the status; the phase may be unchanged."""
        status, metadata = job["status"], job["metadata"]
        status["state"] = {"phase": phase, "lastTransitionTime": timestamp()}
        earlier = [condition for condition in status.get("conditions", ()) if condition["status"] != phase]
        status["conditions"] = [*earlier, {"status": phase, "lastTransitionTime": timestamp()}]
        written = self._client.replace(path(JOBS, metadata["namespace"], metadata["name"], "status"), job)
        metadata["resourceVersion"] = written["metadata"]["resourceVersion"]

    def _retry_later(self, view: _JobView) -> None:
        """Schedule another attempt, or give the Job up."""
        state = view.state
        state.tries += 1
        state.next_try = time.monotonic() + retry_delay(state.tries)
        if state.tries > TRIES:
            message = "Job failed on action SyncJob for retry limit reached"
            self._recorder.event("Job", view.job, "ExecuteAction", message)
            self._kill(view, "Terminating")

    def _report_group(self, job: Json, group: Json, state: _JobState) -> None:
        """Write an event for the Job that says why it waits, for a user who looks only at the Job."""
        true_conditions = [
            condition for condition in group.get("status", {}).get("conditions", ()) if condition["status"] == "True"
        ]
        newest = max(true_conditions, key=lambda condition: str(condition["lastTransitionTime"]), default=None)
        if newest is None or newest["type"] == "Scheduled":
            return
        report = (newest["message"], newest["lastTransitionTime"])
        if report != state.reported:
            state.reported = report
            name = f"{job['metadata']['namespace']}:{job['metadata']['name']}"
            message = f"PodGroup {name} {newest['type'].lower()}, reason: {newest['message']}"
            self._recorder.event("Job", job, "PodGroupPending", message, warning=True)

    def _expire(self, job: Json) -> None:
        after, job_state, metadata = job["spec"].get("ttlSecondsAfterFinished"), job["status"]["state"], job["metadata"]
        if after is None or job_state["phase"] not in rules.ENDED:
            return
        if time.time() >= _seconds(job_state["lastTransitionTime"]) + after:
            job_path = path(JOBS, metadata["namespace"], metadata["name"])
            self._client.remove(job_path, uid=metadata["uid"], propagation="Foreground")


def retry_delay(number: int) -> float:
    """Return the delay in seconds before this attempt."""
    return float(FIRST_DELAY_S * 2 ** (number - 1))


def _seconds(moment: str) -> float:
    """Return the seconds since 1970 of a time in an object."""
    return datetime.datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()


def _with_defaults(job: Json) -> Json:
    """Add the defaults that steps need; a Job that no webhook has seen may have tasks without a name."""
    job["spec"]["tasks"] = [{"name": "", "replicas": 1, **task} for task in job["spec"].get("tasks", ())]
    job.setdefault("status", {}).setdefault("state", {}).setdefault("phase", "")
    return job


def _belongs(pod: Json, job: Json) -> bool:
    """Return whether the pod's Job has this name, so that the pods of an older Job of the same name count as well."""
    metadata = pod["metadata"]
    named = metadata.get("annotations", {}).get("volcano.sh/job-name")
    return bool(named == job["metadata"]["name"] and metadata["namespace"] == job["metadata"]["namespace"])


def _is_affected(pod: Json, action: str, event: JobEvent) -> bool:
    if is_terminating(pod):
        return False
    if action == "RestartPod":
        return bool(pod["metadata"]["name"] == event.pod)
    return rules.annotation(pod, rules.SPEC) == event.task
