"""Job kinds: everything in which one kind of job on a cluster differs from another.

A kind is one module in this folder, named as the word after `--backend`; its `KIND` keeps the `Kind` protocol. To add
one, write the module and its template in k8s/templates, and add its name to `KindName` in launcher/jobs.py.

Objects as the API server gives them go in, plain values come out; only `check` and `stop` ask the server.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from launcher.jobs import Phase, PreflightFinding
from launcher.kinds.needs import JobNeeds
from launcher.kube.api import Api, Json
from launcher.kube.resources import Resource

if TYPE_CHECKING:
    from launcher.settings.options import ClusterOptions  # pydantic: reading jobs does without

CANCELLED = "pnas/cancelled"
"""Annotation: when a user cancelled the job."""

JOB_VERBS = ("create", "delete", "get", "list", "patch", "watch")
"""The verbs that a launcher uses on a job object of any kind."""

ObjectEvents = Callable[[Json], Sequence[Json]]
"""Returns the events of an object, oldest first."""


class Kind(Protocol):
    """One kind of job on a cluster.

    Attributes:
        name: the word after `--backend`.
        title: what a cluster must serve, for messages: "X serves Volcano".
        resource: where the API server keeps the jobs.
        template: the file in k8s/templates, without `.yaml.j2`.
        pod_template: where the pod template stands in the job object.
        index_annotation: the field of a pod that holds its index.
        uid_field: the field of a pod that differs between two jobs of one name.
        master_address: the DNS name of pod 0; `{name}` is the job's.
        needs_service: whether pods of several nodes find each other only by a headless service of the launcher.
        rank_table: whether MindCluster writes the rank table of such jobs.
        pod_label: the label by which its controller marks its pods. Jobs of two kinds can have the same name.
        queue_label: the label of a job that names its queue; empty if a field does.
        settle_s: seconds that its controllers need to forget a deleted job before the name is used again.
        rights: verbs that a launcher needs in the namespace, beyond the rights that all kinds need.
        cluster_rights: optional verbs on objects outside namespaces.
    """

    name: str
    title: str
    resource: Resource
    template: str
    pod_template: tuple[str | int, ...]
    index_annotation: str
    uid_field: str
    master_address: str
    needs_service: bool
    rank_table: bool
    pod_label: str
    queue_label: str
    settle_s: float
    rights: Mapping[Resource, tuple[str, ...]]
    cluster_rights: Mapping[Resource, tuple[str, ...]]

    def refusal(self, options: "ClusterOptions", origins: Mapping[str, str]) -> str | None:
        """Return why jobs of this kind cannot have these options, in one line; None if they can."""

    def check(self, api: Api, needs: JobNeeds) -> Iterable[PreflightFinding]:
        """Check what the cluster must have for such a job, like an open queue."""

    def phase(self, job: Json, pods: Sequence[Json]) -> tuple[Phase, str]:
        """Return the job's phase and, if the job says it, the reason."""

    def started(self, job: Json) -> float | None:
        """Return when the job first had pods, in seconds since 1970."""

    def ended(self, job: Json) -> float | None:
        """Return when the job ended, in seconds since 1970."""

    def retries(self, job: Json) -> int:
        """Return how often the cluster tried the job again."""

    def gang(self, job: Json) -> tuple[Resource, str] | None:
        """Return the kind and the name of the object that schedules the pods together, if there is one."""

    def queue_finding(self, api: Api, job: Json) -> PreflightFinding | None:
        """Return whether the queue of a job without pods takes it; None if the job has no queue."""

    def reason_without_pods(self, job: Json, gang: Json | None, events: ObjectEvents, now: float) -> str:
        """Return why the job has no pods; empty while its controllers have perhaps not looked yet."""

    def pod_names(self, job: Json) -> re.Pattern[str]:
        """Return the pattern of its pods' names: a deleted pod leaves only its name in events."""

    def stop(self, api: Api, job: Json) -> None:
        """Ask the cluster to end the job's pods and to keep the job."""


def kind_named(name: str) -> Kind:
    """Return the kind of this name."""
    kind: Kind = import_module(f"{__name__}.{name}").KIND
    return kind


def pod_template(kind: Kind, job: Json) -> Json:
    """Return the pod template in a job object."""
    template: Any = job
    for key in kind.pod_template:
        template = template[key]
    return dict(template)


def last_warning(events: Sequence[Json]) -> str:
    """Return the message of the last warning; empty if there is no warning."""
    return next((str(event.get("message", "")) for event in reversed(events) if event.get("type") == "Warning"), "")
