"""Record what happens in the namespaces of Volcano scenarios, in the terms of the recordings of a real Volcano.

The watch starts before the first change, so that it misses no state between two looks.
"""

import copy
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tests.cluster.testbed.api import ApiError
from tests.cluster.testbed.artifacts import images
from tests.cluster.testbed.cluster import Cluster, create_namespace
from tests.cluster.testbed.volcano.client import COMMANDS, GROUPS, JOBS, PODS, Client, Json, path
from tests.cluster.testbed.volcano.install import Volcano

DATA = Path(__file__).parents[2] / "data" / "volcano"
WORKER = "localhost/w:1"
WORKER_C = """
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static void leave(int number) { (void)number; _exit(143); }
static int number(const char *name) { const char *value = getenv(name); return value ? atoi(value) : 0; }
int main(void) {
  const char *index = getenv("VC_TASK_INDEX"), *chosen = getenv("EXIT_INDEX");
  int other = chosen && index && strcmp(index, chosen);
  signal(SIGTERM, leave);
  for (unsigned int left = number(other ? "SLEEP_OTHER" : "SLEEP"); left; left = sleep(left)) {}
  return other ? 0 : number("EXIT");
}
"""
TIMEOUT_S = 300
SHORTEST_RUN_S = 10
# A test that shows that nothing more happens looks for this long: the scheduler places pods every second, so twice.
QUIET_S = 2.5
"""On a busy machine, a container that ends sooner may never be seen running."""
UID_LENGTH = 36
"""The length of a Job's uid, which ends the name of its PodGroup."""


@dataclass
class Timeline:
    """The states seen in one namespace, in order.

    Attributes:
        jobs: the phases of each Job by its name; the first is `made` and the last is `gone`.
        pods: for each pod name and uid, the phases of the pod; `going` means that the pod has been deleted but still
            exists.
        events: Volcano's events: the object's kind and name, the event's type, reason, and message.
    """

    jobs: dict[str, list[str]] = field(default_factory=dict)
    pods: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    events: set[tuple[str, ...]] = field(default_factory=set)

    def add_job_phase(self, name: str, phase: str) -> None:
        """Record a Job's phase."""
        _append(self.jobs.setdefault(name, []), phase)

    def add_pod_phase(self, name: str, uid: str, phase: str) -> None:
        """Record a pod's phase."""
        _append(self.pods.setdefault(name, {}).setdefault(uid, []), phase)

    def lives(self) -> dict[str, list[list[str]]]:
        """Return the pods' phases without the uids."""
        return {name: list(lives.values()) for name, lives in self.pods.items()}


def _append(phases: list[str], phase: str) -> None:
    if not phases or phases[-1] != phase:
        phases.append(phase)


_UID = re.compile(r"-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def recorded(scenario_name: str) -> Timeline:
    """Return the timeline of the real Volcano."""
    timeline = Timeline()
    for line in (DATA / "timelines" / f"{scenario_name}.txt").read_text().splitlines():
        _time, verb, about, *words = line.split()
        kind, _slash, name = about.partition("/")
        facts = dict(word.split("=", 1) for word in words if "=" in word)
        if kind == "job":
            phase = {"ADD": "made", "DEL": "gone"}.get(verb, facts.get("phase", ""))
            timeline.add_job_phase(name, phase)
        elif kind == "pod":
            phase = "gone" if verb == "DEL" else "going" if facts["del"] == "True" else words[1]
            timeline.add_pod_phase(name, facts["uid"], phase)
        elif about == "EVENT":
            match = re.fullmatch(r"\S+ (\w+) (\w+) x\S+ from=\S+: (.*)", line.split(" EVENT ")[1])
            assert match is not None, line
            timeline.events.add(_event(*words[0].split("/", 1), *match.groups(), namespace=f"s-{scenario_name}"))
    return timeline


def _event(kind: str, name: str, kind_of_event: str, reason: str, message: str, *, namespace: str) -> tuple[str, ...]:
    message = re.sub(rf"\b{re.escape(namespace)}\b", "NAMESPACE", message.strip())
    return (kind, _UID.sub("", name), kind_of_event, reason, message)


def sample(name: str) -> dict[str, list[Json]]:
    """Return objects of the real Volcano at one moment."""
    objects: dict[str, list[Json]] = json.loads((DATA / "samples" / f"{name}.json").read_text())
    return objects


class ClusterWatch:
    """Watch a cluster from now on, and sort the changes by namespace."""

    def __init__(self, kubeconfig: Path) -> None:
        self._versions: dict[str, str] = {}
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self.timelines: dict[str, Timeline] = {}
        self.deleted_jobs: set[str] = set()
        self.objects: dict[tuple[str, str, str], Json] = {}
        self._clients = {kind: Client(kubeconfig) for kind in (JOBS, PODS, GROUPS, "events")}
        self._threads = [threading.Thread(target=self._follow, args=pair) for pair in self._clients.items()]
        for kind, client in self._clients.items():
            self._versions[kind] = client.get(path(kind))["metadata"]["resourceVersion"]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop recording."""
        self._stopped.set()
        for client in self._clients.values():
            client.interrupt()
        for thread in self._threads:
            thread.join()

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a recorded change.

        Raises:
            TimeoutError: it does not come.
        """
        with self._changed:
            if not self._changed.wait_for(condition, TIMEOUT_S):
                raise TimeoutError(f"never seen: {what}")

    def _follow(self, kind: str, client: Client) -> None:
        while not self._stopped.is_set():
            # After a while without changes the connection is closed; the next watch continues at the same version.
            with closing(client), suppress(ApiError, OSError, HTTPException):
                for change in client.changes(path(kind), version=self._versions[kind]):
                    self._versions[kind] = change["object"]["metadata"]["resourceVersion"]
                    with self._changed:
                        self._record(kind, change["type"], change["object"])
                        self._changed.notify_all()

    def _record(self, kind: str, verb: str, item: Json) -> None:
        metadata = item["metadata"]
        timeline = self.timelines.setdefault(metadata["namespace"], Timeline())
        key = (kind, metadata["namespace"], metadata["name"])
        is_gone = verb == "DELETED"
        if is_gone:
            self.objects.pop(key, None)
        else:
            self.objects[key] = item
        if kind == JOBS:
            phase = item.get("status", {}).get("state", {}).get("phase", "made")
            timeline.add_job_phase(metadata["name"], "gone" if is_gone else phase)
        elif kind == PODS:
            is_deleted = "deletionTimestamp" in metadata
            phase = "gone" if is_gone else "going" if is_deleted else item["status"]["phase"]
            timeline.add_pod_phase(metadata["name"], metadata["uid"], phase)
        elif kind == "events" and item.get("source", {}).get("component") in {"volcano", "vc-controller-manager"}:
            about = item["involvedObject"]
            if about["kind"] == "PodGroup" and about["name"][-UID_LENGTH:] in self.deleted_jobs:
                return
            event = (about["kind"], about["name"], item["type"], item["reason"], item["message"])
            timeline.events.add(_event(*event, namespace=metadata["namespace"]))


class Scenario:
    """A namespace in which one scenario runs."""

    def __init__(self, cluster: Cluster, volcano: Volcano, watch: ClusterWatch, name: str) -> None:
        self.namespace = f"v-{name}"
        self.client = Client(cluster.kubeconfig)
        self._watch = watch
        create_namespace(cluster, self.namespace, labels=volcano.labels)

    def remove(self) -> None:
        """Delete the namespace, in the background."""
        self.client.remove(path("namespaces", None, self.namespace))
        self.client.close()

    @property
    def timeline(self) -> Timeline:
        """Return the states seen in this namespace."""
        return self._watch.timelines.setdefault(self.namespace, Timeline())

    def last_seen(self, kind: str, name: str) -> Json:
        """Return an object as it was last seen; empty if it does not exist."""
        return self._watch.objects.get((kind, self.namespace, name), {})

    def create(
        self,
        job: Mapping[str, Any],
        *,
        name: str | None = None,
        at_most_s: int | None = None,
        others_s: int | None = None,
    ) -> None:
        """Create a Job as it was recorded, but with shorter containers where possible, though not too short.

        Args:
            at_most_s: the longest life of a container.
            others_s: the life of the containers that must not fail, if the failing ones take longer than in the
                recording.
        """
        body = {key: copy.deepcopy(job[key]) for key in ("apiVersion", "kind", "spec")}
        for variable in _variables(body):
            if variable["name"] == "SLEEP":
                seconds = max(SHORTEST_RUN_S, int(variable["value"]))
                variable["value"] = str(min(seconds, at_most_s or seconds))
            elif variable["name"] == "SLEEP_OTHER" and others_s is not None:
                variable["value"] = str(others_s)
        copied = {key: value for key, value in job["metadata"].items() if key in {"labels", "annotations"}}
        body["metadata"] = {"name": name or job["metadata"]["name"], **copied}
        self.client.create(path(JOBS, self.namespace), body)

    def wait_for_phases(self, job: str, *phases: str) -> None:
        """Wait until these are the Job's latest phases."""

        def reached() -> bool:
            phases_seen = self.timeline.jobs.get(job, [])
            return phases_seen[-len(phases) :] == list(phases)

        self.wait_until(reached, f"{job} becomes {phases}")

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a recorded change."""
        self._watch.wait_until(condition, f"{self.namespace}: {what}")

    def wait_for_running(self, job: str, number: int) -> None:
        """Wait until a Job counts this number of running pods."""
        self.wait_until(
            lambda: self.last_seen(JOBS, job).get("status", {}).get("running") == number, f"{number} running"
        )

    def wait_for_no_pods(self) -> None:
        """Wait until no pod exists."""
        self.wait_until(
            lambda: all(life[-1] == "gone" for lives in self.timeline.lives().values() for life in lives), "pods go"
        )

    def wait_for_warning(self, reason: str) -> None:
        """Wait for a warning. Just before it, a Normal event says why a group is not admitted into its queue."""
        self.wait_until(
            lambda: any(event[2:4] == ("Warning", reason) for event in self.timeline.events), f"event {reason}"
        )

    def wait_for_ready(self, job: str) -> None:
        """Wait for the event that a Job's group is ready; the scheduler writes it in the cycle after the start.

        The recorded Jobs lived for some seconds more. An earlier change to the Job would prevent the event.
        """
        event = ("PodGroup", job, "Normal", "Scheduled", "pod group is ready")
        self.wait_until(lambda: event in self.timeline.events, f"{job} is ready")

    def command(self, job: str, action: str) -> None:
        """Issue a command, and wait until the controller takes it."""
        metadata = self.last_seen(JOBS, job)["metadata"]
        target = {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "name": job, "uid": metadata["uid"]}
        body = {
            "apiVersion": "bus.volcano.sh/v1alpha1",
            "kind": "Command",
            "metadata": {"generateName": f"{job}-", "ownerReferences": [target | {"controller": True}]},
            "action": action,
            "target": target | {"controller": True},
        }
        created = self.client.create(path(COMMANDS, self.namespace), body)
        command_path = path(COMMANDS, self.namespace, created["metadata"]["name"])
        deadline = time.monotonic() + TIMEOUT_S
        with suppress(ApiError):
            while time.monotonic() < deadline:
                self.client.get(command_path)
                time.sleep(0.1)

    def evict(self, pod: str) -> None:
        """Evict a pod by the Eviction API, as a drain does."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": self.namespace}}
        self.client.create(path(PODS, self.namespace, pod, "eviction"), body)

    def delete(self, kind: str, name: str, *, propagation: str = "Background") -> None:
        """Delete an object and its dependents.

        Later events of a Job's group are ignored: the recorded groups went within 30 ms. On a busy machine a group
        lives longer, and the scheduler writes about it once more.
        """
        if kind == JOBS:
            self._watch.deleted_jobs.add(self.last_seen(JOBS, name).get("metadata", {}).get("uid", ""))
        self.client.remove(path(kind, self.namespace, name), propagation=propagation)


def _variables(job: Json) -> list[dict[str, str]]:
    return [
        variable
        for task in job["spec"]["tasks"]
        for container in task["template"]["spec"]["containers"]
        for variable in container["env"]
    ]


def load_worker(cluster: Cluster) -> None:
    """Load the image that the recorded Jobs name on every node."""
    cluster.load(images.program_image(cluster.folder, WORKER, WORKER_C))
