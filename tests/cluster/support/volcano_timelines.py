"""Where scenarios of Volcano are played: a namespace in which all is watched, in the terms of what was recorded.

Everything is watched from before its first change, so that nothing is missed between two looks.
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
from tests.cluster.testbed.cluster import Cluster, namespace
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
PATIENCE_S = 300
LEAST_S = 10
"""A container that ends sooner may never be seen running on a busy machine."""
UID_LENGTH = 36
"""With its Job's uid a PodGroup's name ends."""


@dataclass
class Timeline:
    """What has been seen in one namespace, in order.

    Attributes:
        jobs: the phases of each Job by its name; `made` and `gone` are its first and last.
        pods: the lives of each pod by its name and then its uid; `going` is one that has been deleted.
        events: what Volcano has told of each object: kind, object, type, reason, message.
    """

    jobs: dict[str, list[str]] = field(default_factory=dict)
    pods: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    events: set[tuple[str, ...]] = field(default_factory=set)

    def job(self, name: str, phase: str) -> None:
        """A Job is seen in a phase."""
        _append(self.jobs.setdefault(name, []), phase)

    def pod(self, name: str, uid: str, phase: str) -> None:
        """A pod is seen in a phase."""
        _append(self.pods.setdefault(name, {}).setdefault(uid, []), phase)

    def lives(self) -> dict[str, list[list[str]]]:
        """Of the pods, without their uids."""
        return {name: list(lives.values()) for name, lives in self.pods.items()}


def _append(seen: list[str], phase: str) -> None:
    if not seen or seen[-1] != phase:
        seen.append(phase)


_UID = re.compile(r"-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def recorded(scenario: str) -> Timeline:
    """What the real one did."""
    found = Timeline()
    for line in (DATA / "timelines" / f"{scenario}.txt").read_text().splitlines():
        _time, verb, about, *words = line.split()
        kind, _slash, name = about.partition("/")
        facts = dict(word.split("=", 1) for word in words if "=" in word)
        if kind == "job":
            phase = {"ADD": "made", "DEL": "gone"}.get(verb, facts.get("phase", ""))
            found.job(name, phase)
        elif kind == "pod":
            phase = "gone" if verb == "DEL" else "going" if facts["del"] == "True" else words[1]
            found.pod(name, facts["uid"], phase)
        elif about == "EVENT":
            told = re.fullmatch(r"\S+ (\w+) (\w+) x\S+ from=\S+: (.*)", line.split(" EVENT ")[1])
            assert told is not None, line
            found.events.add(_told(*words[0].split("/", 1), *told.groups(), namespace=f"s-{scenario}"))
    return found


def _told(kind: str, name: str, sort: str, reason: str, message: str, *, namespace: str) -> tuple[str, ...]:
    message = re.sub(rf"\b{re.escape(namespace)}\b", "NAMESPACE", message.strip())
    return (kind, _UID.sub("", name), sort, reason, message)


def sample(name: str) -> dict[str, list[Json]]:
    """Objects of the real one, at one moment."""
    found: dict[str, list[Json]] = json.loads((DATA / "samples" / f"{name}.json").read_text())
    return found


class Watch:
    """Watches a cluster from now on, and sorts by namespaces what it sees."""

    def __init__(self, kubeconfig: Path) -> None:
        self._versions: dict[str, str] = {}
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self.timelines: dict[str, Timeline] = {}
        self.leaving: set[str] = set()
        self.objects: dict[tuple[str, str, str], Json] = {}
        self._clients = {kind: Client(kubeconfig) for kind in (JOBS, PODS, GROUPS, "events")}
        self._threads = [threading.Thread(target=self._follow, args=one) for one in self._clients.items()]
        for kind, client in self._clients.items():
            self._versions[kind] = client.get(path(kind))["metadata"]["resourceVersion"]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take nothing in any more."""
        self._stopped.set()
        for client in self._clients.values():
            client.interrupt()
        for thread in self._threads:
            thread.join()

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Wait for something that is seen.

        Raises:
            TimeoutError: it does not come.
        """
        with self._changed:
            if not self._changed.wait_for(true, PATIENCE_S):
                raise TimeoutError(f"never seen: {what}")

    def _follow(self, kind: str, client: Client) -> None:
        while not self._stopped.is_set():
            # A connection on which nothing comes is given up, and the watch goes on where it was.
            with closing(client), suppress(ApiError, OSError, HTTPException):
                for change in client.changes(path(kind), version=self._versions[kind]):
                    self._versions[kind] = change["object"]["metadata"]["resourceVersion"]
                    with self._changed:
                        self._see(kind, change["type"], change["object"])
                        self._changed.notify_all()

    def _see(self, kind: str, verb: str, seen: Json) -> None:
        metadata = seen["metadata"]
        timeline = self.timelines.setdefault(metadata["namespace"], Timeline())
        key = (kind, metadata["namespace"], metadata["name"])
        gone = verb == "DELETED"
        if gone:
            self.objects.pop(key, None)
        else:
            self.objects[key] = seen
        if kind == JOBS:
            phase = seen.get("status", {}).get("state", {}).get("phase", "made")
            timeline.job(metadata["name"], "gone" if gone else phase)
        elif kind == PODS:
            going = "deletionTimestamp" in metadata
            phase = "gone" if gone else "going" if going else seen["status"]["phase"]
            timeline.pod(metadata["name"], metadata["uid"], phase)
        elif kind == "events" and seen.get("source", {}).get("component") in {"volcano", "vc-controller-manager"}:
            about = seen["involvedObject"]
            if about["kind"] == "PodGroup" and about["name"][-UID_LENGTH:] in self.leaving:
                return
            told = (about["kind"], about["name"], seen["type"], seen["reason"], seen["message"])
            timeline.events.add(_told(*told, namespace=metadata["namespace"]))


class Stage:
    """A namespace in which one scenario is played."""

    def __init__(self, cluster: Cluster, volcano: Volcano, watch: Watch, name: str) -> None:
        self.namespace = f"v-{name}"
        self.client = Client(cluster.kubeconfig)
        self._watch = watch
        namespace(cluster, self.namespace, labels=volcano.labels)

    def leave(self) -> None:
        """Let everything here go, in the background."""
        self.client.remove(path("namespaces", None, self.namespace))
        self.client.close()

    @property
    def timeline(self) -> Timeline:
        """What has been seen here."""
        return self._watch.timelines.setdefault(self.namespace, Timeline())

    def seen(self, kind: str, name: str) -> Json:
        """An object as it was last seen; empty where it is not."""
        return self._watch.objects.get((kind, self.namespace, name), {})

    def create(
        self,
        job: Mapping[str, Any],
        *,
        name: str | None = None,
        at_most_s: int | None = None,
        others_s: int | None = None,
    ) -> None:
        """A Job as it was recorded, except that its containers may end sooner, and not too soon.

        Args:
            others_s: how long those live that are not to fail, where the others take longer over it than they did.
        """
        body = {key: copy.deepcopy(job[key]) for key in ("apiVersion", "kind", "spec")}
        for variable in _variables(body):
            if variable["name"] == "SLEEP":
                seconds = max(LEAST_S, int(variable["value"]))
                variable["value"] = str(min(seconds, at_most_s or seconds))
            elif variable["name"] == "SLEEP_OTHER" and others_s is not None:
                variable["value"] = str(others_s)
        kept = {key: value for key, value in job["metadata"].items() if key in {"labels", "annotations"}}
        body["metadata"] = {"name": name or job["metadata"]["name"], **kept}
        self.client.create(path(JOBS, self.namespace), body)

    def phase(self, job: str, *phases: str) -> None:
        """Wait until a Job has been in these phases, the last of which it is in."""

        def reached() -> bool:
            seen = self.timeline.jobs.get(job, [])
            return seen[-len(phases) :] == list(phases)

        self.until(reached, f"{job} becomes {phases}")

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Wait for something that is seen."""
        self._watch.until(true, f"{self.namespace}: {what}")

    def running(self, job: str, number: int) -> None:
        """Wait until a Job counts so many running pods."""
        self.until(lambda: self.seen(JOBS, job).get("status", {}).get("running") == number, f"{number} running")

    def no_pods(self) -> None:
        """Wait until none is left."""
        self.until(
            lambda: all(life[-1] == "gone" for lives in self.timeline.lives().values() for life in lives), "pods go"
        )

    def warned(self, reason: str) -> None:
        """Wait for a warning. Why a group is not let into its queue is told just before, by an event that is none."""
        self.until(lambda: any(event[2:4] == ("Warning", reason) for event in self.timeline.events), f"event {reason}")

    def ready(self, job: str) -> None:
        """Wait until it is told that a Job's group is ready: when the scheduler looks the next time after its start.

        The recorded Jobs lived for some seconds more, so what is done to one sooner would take the event from it.
        """
        told = ("PodGroup", job, "Normal", "Scheduled", "pod group is ready")
        self.until(lambda: told in self.timeline.events, f"{job} is ready")

    def command(self, job: str, action: str) -> None:
        """Issue a command, and wait until it is taken."""
        metadata = self.seen(JOBS, job)["metadata"]
        target = {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "name": job, "uid": metadata["uid"]}
        body = {
            "apiVersion": "bus.volcano.sh/v1alpha1",
            "kind": "Command",
            "metadata": {"generateName": f"{job}-", "ownerReferences": [target | {"controller": True}]},
            "action": action,
            "target": target | {"controller": True},
        }
        made = self.client.create(path(COMMANDS, self.namespace), body)
        where = path(COMMANDS, self.namespace, made["metadata"]["name"])
        deadline = time.monotonic() + PATIENCE_S
        with suppress(ApiError):
            while time.monotonic() < deadline:
                self.client.get(where)
                time.sleep(0.1)

    def evict(self, pod: str) -> None:
        """By the Eviction API, as a drain does."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": self.namespace}}
        self.client.create(path(PODS, self.namespace, pod, "eviction"), body)

    def delete(self, kind: str, name: str, *, propagation: str = "Background") -> None:
        """An object, and what belongs to it.

        What is told from then on of a Job's group is not taken in: the recorded groups went within 30 ms, and a group
        that a busy machine leaves longer is told of once more.
        """
        if kind == JOBS:
            self._watch.leaving.add(self.seen(JOBS, name).get("metadata", {}).get("uid", ""))
        self.client.remove(path(kind, self.namespace, name), propagation=propagation)


def _variables(job: Json) -> list[dict[str, str]]:
    return [
        variable
        for task in job["spec"]["tasks"]
        for container in task["template"]["spec"]["containers"]
        for variable in container["env"]
    ]


def load_worker(cluster: Cluster) -> None:
    """Give every node the image that the recorded Jobs name."""
    cluster.load(images.compiled(cluster.folder, WORKER, WORKER_C))
