"""JobSpec and kind -> manifests: the objects of a job on a cluster, the same bytes for the same spec. Pure, offline.

The templates are in k8s/templates/. Values enter them only as JSON, so that no value can change the YAML's structure.
An unknown name in a template is an error, and the result is parsed before any other code sees it.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from launcher.errors import RequestError
from launcher.jobs import DEFAULT_QUEUE
from launcher.kinds import Kind
from launcher.kinds.labels import (
    ATTEMPT_ANNOTATION,
    FAULT_SCHEDULING,
    FOLLOW,
    INSTANCE,
    JOB_LABEL,
    MANAGED,
    NODE_TAINTS,
    RING_CONTROLLER,
    RUNS,
    SCHEDULE_POLICY,
    SPEC_ANNOTATION,
    SPEC_HASH_LABEL,
    rank_table_name,
)
from launcher.manifests.overlay import merge_overlay
from launcher.recorded_spec import describe_network
from launcher.settings.hardware import CHIPS, PRESETS, requests
from launcher.settings.options import AUTO, ClusterOptions
from launcher.settings.spec import JobSpec, trainer_options
from trainer.shared import durations
from trainer.shared.yaml_text import to_yaml

if TYPE_CHECKING:
    from jinja2 import Environment

KubernetesObject = dict[str, Any]

# The trainer gives its workers `grace_s`, and needs a moment more for itself.
_EXTRA_GRACE_S = 15
_NO_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
# PyYAML can be built without libyaml, which takes a tenth of the time.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# A link to k8s/templates; in a wheel, a copy.
_TEMPLATES = Path(__file__).parent / "templates"


def render_manifests(spec: JobSpec, kind: Kind, *, attempt: int = 1) -> list[KubernetesObject]:
    """Return the objects of a job in the order of their creation; the job itself is the last.

    Raises:
        RequestError: the overlay or a template cannot be used.
    """
    values = _template_values(spec, kind, attempt)
    names = []
    if values["rank_table"]:
        names.append("rank-table")
    if values["subdomain"]:
        names.append("service")
    parts = [_render_template(name, values) for name in names]
    job = _render_template(kind.template, values)
    if spec.overlay:
        pod_template: Any = job
        for key in kind.pod_template:
            pod_template = pod_template[key]
        pod_template.update(merge_overlay(pod_template, spec.overlay))
    return [*parts, job]


def to_stream(manifests: list[KubernetesObject]) -> str:
    """Return one canonical YAML stream: the same objects are the same bytes."""
    return "".join(f"---\n{to_yaml(item)}" for item in manifests)


def _template_values(spec: JobSpec, kind: Kind, attempt: int) -> Mapping[str, Any]:
    """Return the values that templates can use."""
    pods, nodes = spec.pods, spec.train.nodes
    has_rank_table = kind.rank_table and spec.train.device != "cpu"
    if pods.mindcluster != "auto":
        has_rank_table = pods.mindcluster == "on"
    # Without a MindCluster rank table, its scheduler does not pick NPUs.
    hardware = PRESETS[pods.hardware] if has_rank_table and pods.hardware is not None else None
    ring = {RING_CONTROLLER: hardware.chips if hardware else CHIPS} if has_rank_table else {}
    policy = {SCHEDULE_POLICY: hardware.schedule_policy} if hardware else {}
    release = {INSTANCE: pods.release} if pods.release else {}
    pod_labels = {**MANAGED, JOB_LABEL: spec.name, **release, **ring}
    labels = {**pod_labels, SPEC_HASH_LABEL: spec.digest[:16]}
    queue = {kind.queue_label: pods.queue} if kind.queue_label and pods.queue != DEFAULT_QUEUE else {}
    job_labels = {**labels, **queue, **_job_labels(pods.job_label, mindcluster=has_rank_table)}
    record = {ATTEMPT_ANNOTATION: str(attempt), SPEC_ANNOTATION: spec.model_dump_json()}
    return {
        "name": spec.name,
        "pods": pods,
        "labels": labels,
        "job_labels": job_labels,
        "queued": kind.queue_label in job_labels,
        "pod_labels": pod_labels,
        "annotations": {**_summary(spec), **policy, **dict(map(_pair, pods.job_annotation)), **record},
        "nodes": nodes,
        "args": [_literal(word) for word in trainer_options(spec)],
        "index_annotation": kind.index_annotation,
        "uid_field": kind.uid_field,
        "master_address": kind.master_address.format(name=spec.name),
        "subdomain": spec.name if kind.needs_service and nodes > 1 else None,
        "rank_table": rank_table_name(spec.name) if has_rank_table else None,
        "host_driver": pods.driver == "host",
        "visible_devices": f"metadata.annotations['{pods.resource}']" if hardware else None,
        "metrics_port": spec.train.metrics_port,
        "grace_period_s": math.ceil(spec.train.grace_s) + _EXTRA_GRACE_S,
        **_resources(spec),
        "env": [{"name": name, "value": _literal(value)} for name, value in map(_pair, pods.env)],
        "env_secrets": pods.env_from_secret,
        "pull_secrets": pods.image_pull_secret,
        "node_selector": dict(map(_pair, pods.node_selector)),
        "tolerations": [*map(_toleration, pods.toleration), *_lost_node_tolerations(pods)],
        "job": f"{kind.resource}/{spec.name}",
        "ttl_s": _whole_seconds(pods.ttl),
        "deadline_s": _whole_seconds(pods.deadline),
    }


def _summary(spec: JobSpec) -> dict[str, str]:
    """Return annotations for a person who looks with kubectl."""
    train = spec.train
    devices = f"{train.nodes} x {train.npus}" if train.nodes > 1 else str(train.npus)
    runs = f"{train.mode}, {describe_network(dict(train), spec.given)}, {devices} {spec.pods.resource}"
    # The same bytes, however the user began this program.
    return {RUNS: runs, FOLLOW: f"python -m launcher logs {spec.name} --follow"}


def _job_labels(own: Sequence[str], *, mindcluster: bool) -> dict[str, str]:
    """Return the labels that only the job has: the user's, and those for MindCluster that the user does not change.

    Args:
        own: the user's; the value `none` leaves a label for MindCluster out.
        mindcluster: whether MindCluster's scheduler places the job.
    """
    labels = {**(FAULT_SCHEDULING if mindcluster else {}), **dict(map(_pair, own))}
    return {key: value for key, value in labels.items() if key not in FAULT_SCHEDULING or value != "none"}


def _resources(spec: JobSpec) -> dict[str, dict[str, str]]:
    """Return the requests and the limits of the trainer's container."""
    pods, npus = spec.pods, spec.train.npus or 1
    limits = {pods.resource: str(npus)} if spec.train.device != "cpu" else {}
    own = {name: value for name, value in (("cpu", pods.cpu), ("memory", pods.memory)) if value is not None}
    limits |= {name: value for name, value in own.items() if value != AUTO}
    automatic = {name: value for name, value in requests(pods.hardware, npus).items() if own.get(name) == AUTO}
    return {"requests": {**limits, **automatic}, "limits": limits}


def _literal(text: str) -> str:
    """Double each dollar: the kubelet would replace `$(NAME)` by a variable's value."""
    return text.replace("$", "$$")


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def _toleration(text: str) -> dict[str, str]:
    rest, _, effect = text.partition(":")
    key, equals, value = rest.partition("=")
    toleration = {"key": key, "operator": "Equal", "value": value} if equals else {"key": key, "operator": "Exists"}
    return {**toleration, "effect": effect} if effect else toleration


def _lost_node_tolerations(pods: ClusterOptions) -> Iterator[dict[str, Any]]:
    """Yield how long a pod stays on a node that does not answer, unless the user tolerates that taint.

    Kubernetes itself adds 300 s (DefaultTolerationSeconds).
    """
    chosen = {_toleration(text)["key"] for text in pods.toleration}
    for key in NODE_TAINTS if pods.node_timeout is not None else ():
        if key not in chosen:
            seconds = _whole_seconds(pods.node_timeout)
            yield {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}


def _whole_seconds(text: str | None) -> int | None:
    return None if text is None else round(durations.seconds(text))


def _render_template(name: str, values: Mapping[str, Any]) -> KubernetesObject:
    text = _environment().get_template(f"{name}.yaml.j2").render(values)
    parsed = yaml.load(text, Loader=_LOADER)
    if not isinstance(parsed, dict):
        raise RequestError(f"template {name}: the result is not an object; fix k8s/templates/{name}.yaml.j2")
    return parsed


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415  # a tenth of a second

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        autoescape=False,  # no HTML: values go through tojson
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_function"] = _json
    return environment


def _json(value: object, **options: object) -> str:
    """Return JSON that is also YAML: YAML knows no surrogate pairs, and reads some letters as line ends."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=bool(options.get("sort_keys")))
    return _NO_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
