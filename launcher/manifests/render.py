"""JobSpec -> manifests: the objects of a job on a cluster, the same bytes for the same spec. Pure, and offline.

The templates are k8s/templates/. Values enter them as JSON only, so that none can become YAML of its own; an unknown
name in a template is an error; and what comes out is parsed before anybody sees it.
"""

import json
import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from launcher import PROGRAM
from launcher.errors import RequestError
from launcher.manifests.labels import (
    ATTEMPT,
    FOLLOW,
    JOB,
    MANAGED,
    RING_CONTROLLER,
    RUNS,
    SCHEDULE_POLICY,
    SPEC,
    SPEC_HASH,
    rank_table_name,
)
from launcher.manifests.overlay import merged
from launcher.settings.hardware import CHIPS
from launcher.settings.spec import JobSpec, trainer_options
from trainer.shared import durations

if TYPE_CHECKING:
    from jinja2 import Environment

Manifest = dict[str, Any]

TASK = "worker"
# The trainer gives its workers `grace_s`; what it does itself after that takes a moment more.
_EXTRA_GRACE_S = 15
INDEX = {
    "batch": "metadata.annotations['batch.kubernetes.io/job-completion-index']",
    "volcano": "metadata.annotations['volcano.sh/task-index']",
}
"""Where a pod's index is, by kind of job."""
_NO_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
# libyaml's, where PyYAML has it, takes a tenth of the time.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# A link to k8s/templates; in a wheel, a copy.
_TEMPLATES = Path(__file__).parent / "templates"


def render(spec: JobSpec, *, attempt: int = 1) -> list[Manifest]:
    """The objects of a job in the order in which they are created; the job itself is the last.

    Raises:
        RequestError: the overlay cannot be used.
    """
    values = _values(spec, attempt)
    names = []
    if values["rank_table"]:
        names.append("rank-table")
    if spec.train.nodes > 1 and spec.backend == "batch":
        names.append("service")
    objects = [_rendered(name, values) for name in names]
    job = _rendered("job" if spec.backend == "batch" else "volcano-job", values)
    if spec.overlay:
        template = job["spec"]["template"] if spec.backend == "batch" else job["spec"]["tasks"][0]["template"]
        template.update(merged(template, spec.overlay))
    return [*objects, job]


def to_yaml(manifests: list[Manifest]) -> str:
    """All of them as one YAML stream, canonical: the same objects are the same bytes."""
    return "".join(f"---\n{yaml.safe_dump(one, sort_keys=False, width=120, allow_unicode=True)}" for one in manifests)


def _values(spec: JobSpec, attempt: int) -> Mapping[str, Any]:
    """What the templates may use."""
    pods, nodes = spec.pods, spec.train.nodes
    # Who has MindCluster write no rank table has its scheduler choose no NPUs either.
    hardware = spec.hardware if spec.rank_table else None
    ring = {RING_CONTROLLER: hardware.chips if hardware else CHIPS} if spec.rank_table else {}
    policy = {SCHEDULE_POLICY: hardware.schedule_policy} if hardware else {}
    labels = {**MANAGED, JOB: spec.name, SPEC_HASH: spec.digest[:16], **ring}
    return {
        "name": spec.name,
        "labels": labels,
        "pod_labels": {**MANAGED, JOB: spec.name, **ring},
        "annotations": {**_for_people(spec), **policy, ATTEMPT: str(attempt), SPEC: spec.model_dump_json()},
        "nodes": nodes,
        "args": [_literal(word) for word in trainer_options(spec)],
        "index_annotation": INDEX[spec.backend],
        "master_address": f"{spec.name}{'' if spec.backend == 'batch' else f'-{TASK}'}-0.{spec.name}",
        # Volcano's svc plugin sets its own.
        "subdomain": spec.name if spec.backend == "batch" and nodes > 1 else None,
        "rank_table": rank_table_name(spec.name) if spec.rank_table else None,
        "host_driver": pods.driver == "host",
        "visible_devices": f"metadata.annotations['{pods.resource}']" if hardware else None,
        "grace_period_s": math.ceil(spec.train.grace_s) + _EXTRA_GRACE_S,
        "resources": _resources(spec),
        "env": [{"name": name, "value": _literal(value)} for name, value in map(_pair, pods.env)],
        "env_secrets": pods.env_from_secret,
        "pull_secrets": pods.image_pull_secret,
        "node_selector": dict(map(_pair, pods.node_selector)),
        "tolerations": [_toleration(text) for text in pods.toleration],
        "ttl_s": _seconds(pods.ttl),
        "deadline_s": _seconds(pods.deadline),
        **{
            name: getattr(pods, name)
            for name in (
                *("queue", "priority_class", "retries", "image", "image_pull_policy", "data_claim", "output_claim"),
                *("shm", "scratch", "user", "group"),
            )
        },
    }


def _for_people(spec: JobSpec) -> dict[str, str]:
    train = spec.train
    devices = f"{train.nodes} x {train.npus}" if train.nodes > 1 else str(train.npus)
    runs = f"{train.mode}, {train.model} at {train.image_size} px, {devices} {spec.pods.resource}"
    return {RUNS: runs, FOLLOW: f"{PROGRAM} logs {spec.name} --follow"}


def _resources(spec: JobSpec) -> dict[str, str]:
    pods = spec.pods
    npus = {pods.resource: str(spec.train.npus)} if spec.train.device != "cpu" else {}
    others = {name: value for name, value in (("cpu", pods.cpu), ("memory", pods.memory)) if value is not None}
    return {**others, **npus}


def _literal(text: str) -> str:
    """The kubelet would put a variable's value in the place of `$(NAME)`; `$$` is a dollar to it."""
    return text.replace("$", "$$")


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def _toleration(text: str) -> dict[str, str]:
    rest, _, effect = text.partition(":")
    key, equals, value = rest.partition("=")
    one = {"key": key, "operator": "Equal", "value": value} if equals else {"key": key, "operator": "Exists"}
    return {**one, "effect": effect} if effect else one


def _seconds(text: str | None) -> int | None:
    return None if text is None else round(durations.seconds(text))


def _rendered(name: str, values: Mapping[str, Any]) -> Manifest:
    text = _environment().get_template(f"{name}.yaml.j2").render(values)
    parsed = yaml.load(text, Loader=_LOADER)
    if not isinstance(parsed, dict):
        raise RequestError(f"template {name}: is no object; mend k8s/templates/{name}.yaml.j2")
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
    """JSON that is YAML, too: YAML knows no surrogate pairs, and takes some letters for the ends of lines."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=bool(options.get("sort_keys")))
    return _NO_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
