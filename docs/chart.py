"""The generated files of charts/pnas: its schema, its rights and its README.

The settings under `job`, `defaults` and `modes` are the launcher's own, and their rules are too.
"""

import json
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import yaml

from docs.formats import pretty_json, table
from docs.options import describe
from launcher.cluster.defaults import NO_DEFAULTS
from launcher.cluster.rbac import (
    CLUSTER_VERBS,
    CUSTOM_VERBS,
    FETCH_VERBS,
    KUBERNETES_VERBS,
    KUEUE_VERBS,
    RECOVER_CLUSTER_VERBS,
    RECOVER_VERBS,
    rules,
)
from launcher.quantities import PATTERN
from launcher.settings.hardware import DEVICE_COUNTS, PRESETS
from launcher.settings.options import AUTO, EFFECTS, IMAGE, NAME_PATTERN, OBJECT, QUALIFIED, VALUE, VARIABLE, JobOptions
from trainer.shared import secrets
from trainer.shared.config import EMULATED, MODE_PRESETS, TrainConfig
from trainer.shared.yaml_text import to_yaml

CHART = Path(__file__).parents[1] / "charts" / "pnas"
# Other values of the chart name the claims. MindCluster writes the rank table.
_NO_DEFAULTS = NO_DEFAULTS | {"data_claim", "output_claim", "rank_table"}
_OF_A_JOB = frozenset({"name", "backend", "mode", "resume"})
_NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253}
_SWITCH = {"type": "boolean"}
_QUANTITIES = {"type": "object", "additionalProperties": {"type": ["string", "integer"]}}
_QUANTITY = {"type": "string", "pattern": f"^({PATTERN})$"}
_TEXT_OR_NUMBER = {"type": ["string", "number"]}
# Helm takes a fraction after `--set` for a text. Only the launcher knows the limits of one.
_NUMBER = {"type": ["number", "string"], "pattern": "^[0-9]*\\.?[0-9]+([eE][+-]?[0-9]+)?$"}
_POSITIVE = {"type": ["string", "integer"], "minimum": 1}
_DURATION, _INTERVAL = (
    {**_POSITIVE, "allOf": [{"pattern": f"^([0-9]+|({number} *(d|h|min|m|s) *)+)$"}, {"pattern": "[1-9]"}]}
    for number in ("[0-9]+", "[0-9]+(\\.[0-9]+)?")
)
# Helm 3 refuses a schema with "0" and 0 in one enum: it takes them for equal.
_NO_SNAPSHOTS = {"type": ["string", "integer"], "pattern": "^(auto|never|0)$", "minimum": 0, "maximum": 0}
_SNAPSHOT_INTERVAL = {"type": ["string", "integer"], "anyOf": [_NO_SNAPSHOTS, _INTERVAL]}
_ABSOLUTE = {"pattern": "^/"}
# Rules that the launcher checks by functions, which pydantic's schema does not contain.
_RULES: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("cpu", "memory"), {"pattern": f"^({PATTERN}|{AUTO})$"} | _TEXT_OR_NUMBER),
    **dict.fromkeys(("shm", "scratch"), _QUANTITY),
    **dict.fromkeys(("ttl", "deadline", "node_timeout"), _DURATION),
    **dict.fromkeys(("queue", "priority_class"), _NAME),
    **dict.fromkeys(("data_path", "weights"), _ABSOLUTE),
    "name": {"type": "string", "pattern": NAME_PATTERN},
    "image": {"pattern": f"^({IMAGE.pattern})$"},
    "resume": {"pattern": "^(/|auto$)"},
    "checkpoint_every": _INTERVAL,
    "snapshot_every": _SNAPSHOT_INTERVAL,
}
_LABELS = (f"({QUALIFIED.pattern})=({VALUE.pattern})", QUALIFIED.pattern, VALUE.pattern)
_ANY, _EFFECT = "[\\s\\S]*", f"(:({'|'.join(('', *EFFECTS))}))?"
# Patterns of settings with several values: of one text, and of the keys and values of a mapping that means the same.
_TEXT_KEY_VALUE: Mapping[str, tuple[str, str, str]] = {
    "env": (f"({VARIABLE.pattern})={_ANY}", VARIABLE.pattern, _ANY),
    **dict.fromkeys(("job_label", "node_selector"), _LABELS),
    "job_annotation": (f"({QUALIFIED.pattern})={_ANY}", QUALIFIED.pattern, _ANY),
    "toleration": (
        *(f"({QUALIFIED.pattern})(=({VALUE.pattern}))?{_EFFECT}", QUALIFIED.pattern),
        f"({VALUE.pattern}){_EFFECT}",
    ),
}
_INTRODUCTION = """\
# pnas

`make generate` writes this page. `helm install pnas charts/pnas` prepares a namespace for
`python -m launcher submit`: an account with exactly the rights that the launcher uses, claims for images and output
(they stay when the release is uninstalled), and the defaults of every job there.

## A job of the release

With `job.enabled` the release submits a training job: a hook runs `python -m launcher submit` in a pod, with the
chart's account and the settings below `job`. The launcher checks the settings. If it refuses
them, `helm install` fails, and Helm (3.18 or later) prints the launcher's message. The message is also in the log of
the hook: `kubectl logs job/RELEASE-submit`. Correct the value and run `helm upgrade --install`.

* `helm upgrade` never ends a running job. A job with the same settings goes on, or stays ended. Changed settings below
  `job` submit another job next to it, unless `job.name` is the same: then the upgrade fails, and the message names the
  difference. Values below `defaults` are not settings of a job: changed ones count for the next job only.
* A job that its `ttl` has removed is submitted again by the next upgrade. It reports its result again if its training
  run was done. `ttl: none` keeps it.
* `helm uninstall` cancels every job of the release: they save their state, and their output stays. The hook is
  `RELEASE-cancel`. If no node can pull its image, the uninstall fails after a few minutes: then use
  `helm uninstall --no-hooks`, and `python -m launcher cancel --release RELEASE`.
* An upgrade without `job.enabled` removes both hooks: running jobs go on, and `helm uninstall` does not cancel them.
  `helm rollback` submits nothing and ends nothing.
* The hook tries three times within a minute while new claims have no volume, unless a provisioner is making one: then
  the job waits for it. If an administrator makes your volumes, use `helm install --wait`. If nodes pull the image for
  more than five minutes, add `--timeout 30m`.
* `python -m launcher render` with the same settings prints the job's manifests without a cluster.

## Test

Once `defaults.image` is set, `helm test pnas` checks that the account has every right that the launcher uses, that both
claims are bound, and, with `rbac.cluster`, that nodes have NPUs. Helm leaves the test's pod, `pnas-test`, with its log,
until the next test; `kubectl delete pod pnas-test` removes it.

## Install as the administrator of one namespace

The ClusterRole `admin`, bound in the namespace, is enough. But Kubernetes does not let a user give rights that the user
lacks, such as rights on Volcano's objects. On a cluster with Volcano, either install with `rbac.volcano: false`, and
submit with `--backend batch`; or ask the cluster's administrator to add these rights to `admin`:

    kubectl create clusterrole pnas-volcano --verb '*' \\
      --resource jobs.batch.volcano.sh,podgroups.scheduling.volcano.sh,commands.bus.volcano.sh
    kubectl label clusterrole pnas-volcano rbac.authorization.k8s.io/aggregate-to-admin=true

## Monitoring

With `monitoring.podMonitor` and `defaults.metrics_port: 9400` the Prometheus Operator reads each job's progress and
hardware from its pods. `monitoring.dashboard` adds a dashboard, which Grafana's sidecar finds by the label
`grafana_dashboard`. Its last row shows npu-exporter's figures of the same pods: npu-exporter names a pod in the labels
`namespace` and `pod_name`, so its own monitor needs `honorLabels: true`. The dashboard has not been seen with a real
npu-exporter.

## Pod Security

All pods pass Pod Security `restricted`, because Ascend Docker Runtime brings the NPUs' driver into them. A cluster
without it needs `defaults.driver: host`. Pods then mount `/usr/local/Ascend/driver` of the node, which costs the
namespace its Pod Security: `baseline` and `restricted` refuse every path of the host. The namespace must be
`privileged`, which lets any other pod there mount any path. The device plugin must then hand over the devices itself
(`-useAscendDocker=false`).

## Values

A value that the chart does not know is an error.

| value | default | meaning |
| --- | --- | --- |
"""


def files() -> dict[Path, str]:
    """Return the text of each file."""
    names = {"name": secrets.SECRET_NAME, "ambiguous": secrets.AMBIGUOUS_NAME, "harmless": secrets.HARMLESS_NAME}
    values = {"value": secrets.SECRET_VALUE, "proxy_login": secrets.PROXY_LOGIN, "no_login": secrets.NO_LOGIN}
    exact = {"header": secrets.HEADER, "reference": secrets.REFERENCE, "foreign_reference": secrets.FOREIGN_REFERENCE}
    patterns = {**names, **{name: f"(?i){text}" for name, text in values.items()}, **exact, "switch": secrets.SWITCH}
    texts = {
        "values.schema.json": pretty_json(schema()) + "\n",
        "files/rules.yaml": to_yaml(rules(KUBERNETES_VERBS)),
        "files/volcano-rules.yaml": to_yaml(rules(CUSTOM_VERBS)),
        "files/secrets.json": pretty_json(patterns) + "\n",
        "files/cluster-rules.yaml": to_yaml(rules(CLUSTER_VERBS)),
        "files/kueue-rules.yaml": to_yaml(rules(KUEUE_VERBS)),
        "files/fetch-rules.yaml": to_yaml(rules(FETCH_VERBS)),
        "files/recover-rules.yaml": to_yaml(rules(RECOVER_VERBS)),
        "files/recover-cluster-rules.yaml": to_yaml(rules(RECOVER_CLUSTER_VERBS)),
        "README.md": "\n".join([_INTRODUCTION + "".join(_rows()), *_settings_table()]),
    }
    return {CHART / name: text for name, text in texts.items()}


def schema() -> dict[str, Any]:
    """Return the schema of all values, closed against unknown ones. Each setting is defined once, and referred to."""
    claim = {
        "create": _SWITCH,
        "name": _NAME,
        "size": {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?(M|G|T|P|Mi|Gi|Ti|Pi)$"},
        "storageClass": {"type": "string"},
        "accessModes": {
            "type": "array",
            "minItems": 1,
            "items": {"enum": ["ReadWriteMany", "ReadWriteOnce", "ReadOnlyMany", "ReadWriteOncePod"]},
        },
    }
    queue = {"create": _SWITCH, "name": _NAME, "weight": {"type": "integer", "minimum": 1}, "capability": _QUANTITIES}
    subject = {
        "kind": {"enum": ["User", "Group", "ServiceAccount"]},
        "name": {"type": "string", "minLength": 1},
        "namespace": _NAME,
        "apiGroup": {"type": "string"},
    }
    subjects = {"type": "array", "items": _closed(subject, "namespace", "apiGroup")}
    text = {"type": "string"}
    toleration = {
        **{"key": text, "operator": {"enum": ["Exists", "Equal"]}, "value": text},
        **{"effect": {"enum": ["", *EFFECTS]}, "tolerationSeconds": {"type": "integer"}},
    }
    labels = {"type": "object", "additionalProperties": text}
    placement = {
        "nodeSelector": labels,
        "tolerations": {"type": "array", "items": _closed(toleration, *toleration)},
    }
    resources = _closed({"requests": _QUANTITIES, "limits": _QUANTITIES}, "requests", "limits")
    settings = _settings()
    of_any_job = {name: _reference(name) for name in settings if name not in _OF_A_JOB}
    values = {
        "serviceAccount": _closed({"create": _SWITCH, "name": _NAME}),
        "rbac": _closed(
            {
                **{"create": _SWITCH, "volcano": {"enum": ["auto", True, False]}, "cluster": _SWITCH},
                **{"kueue": _SWITCH, "recover": _SWITCH, "fetch": _SWITCH, "subjects": subjects},
            },
            "subjects",
        ),
        "claims": _closed({"data": _reference("claim"), "output": _reference("claim")}),
        "queue": _closed(queue, "capability"),
        "tensorboard": _closed({"enabled": _SWITCH, "resources": resources}, "resources"),
        "monitoring": _closed({"podMonitor": _SWITCH, "dashboard": _SWITCH, "labels": labels}, "labels"),
        "placement": _closed(placement, *placement),
        "job": _closed({"enabled": _SWITCH, **{name: _reference(name) for name in settings}}, *settings),
        "defaults": _reference("defaults"),
        "modes": _closed({mode: _reference("defaults") for mode in MODE_PRESETS}, *MODE_PRESETS),
        # Helm gives it to a chart that is part of another; the chart does not read it.
        "global": {"type": "object"},
    }
    definitions = {**settings, "claim": _closed(claim, "storageClass"), "defaults": _closed(of_any_job, *of_any_job)}
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the chart pnas"}
    return {**head, **_closed(values, "global"), "definitions": definitions}


def _closed(properties: Mapping[str, Any], *optional: str) -> dict[str, Any]:
    """Return the schema of an object with these properties. The templates read all of them but the optional ones.

    Helm removes a value that a user sets to null: then the schema says which one is missing, and no template fails.
    """
    required = [name for name in properties if name not in optional]
    closed = {"type": "object", "additionalProperties": False, "properties": dict(properties)}
    return {**closed, "required": required} if required else closed


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/definitions/{name}"}


def _settings() -> dict[str, Any]:
    """Return the schema of each setting of the launcher and the trainer that a job of the release can have."""
    models = (JobOptions, TrainConfig)
    fields = {name: field for model in models for name, field in model.model_json_schema()["properties"].items()}
    names = [name for name in fields if name in _OF_A_JOB or name not in _NO_DEFAULTS]
    settings = {name: _schema_of(name, fields[name]) for name in names}
    # The counts that any hardware has: the hardware may be set in another place, so the launcher checks both.
    settings["npus"]["enum"] = _counts()
    # A pod has no emulated NPUs, and a release is not on this machine.
    for name, excluded in (("device", EMULATED), ("backend", "local")):
        settings[name]["enum"] = [word for word in settings[name]["enum"] if word != excluded]
    return settings


def _counts() -> list[int]:
    counts = (count for preset in PRESETS.values() for count in (*preset.one_node, *preset.several_nodes))
    return sorted({*DEVICE_COUNTS, *counts})


def _schema_of(name: str, field: Mapping[str, Any]) -> dict[str, Any]:
    """Return a setting's schema."""
    rest = {key: value for key, value in field.items() if key not in ("default", "group", "title")}
    if rest.get("type") == "array":
        del rest["type"], rest["items"]
        return {**rest, "anyOf": list(_forms(name))}
    rule = _RULES.get(name, {})
    if rest.get("type") == "number":
        rest |= _NUMBER
    if any(choice.get("type") == "null" for choice in field.get("anyOf", ())):
        # As at a terminal: Helm takes a null for a value that is not set.
        choices = ({**choice, **rule} for choice in rest["anyOf"] if choice.get("type") != "null")
        return {**rest, "anyOf": [*choices, {"const": "none"}]}
    return {**rest, **rule}


def _forms(name: str) -> Iterator[dict[str, Any]]:
    """Yield the forms of a setting with several values: a list, one text, and a mapping if the texts are KEY=VALUE."""
    text, key, value = _TEXT_KEY_VALUE.get(name, (OBJECT.pattern, "", ""))
    one = {"type": "string", "pattern": f"^({text})$"}
    yield {"type": "array", "items": one}
    yield one
    if key:
        scalar = {"type": ["string", "number", "boolean"], "pattern": f"^({value})$"}
        yield {"type": "object", "propertyNames": {"pattern": f"^({key})$"}, "additionalProperties": scalar}


def _rows() -> Iterator[str]:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    for path, text in _comments():
        value: Any = values
        for name in path:
            value = value[name]
        yield f"| `{'.'.join(path)}` | `{json.dumps(value)}` | {text} |\n"


def _settings_table() -> Iterator[str]:
    fields = {**JobOptions.model_fields, **TrainConfig.model_fields}
    names: Set[str] = _settings().keys() - _OF_A_JOB
    rows = [
        (f"`{name}`", *(text.replace(f", {EMULATED}", "") for text in describe(field)))
        for name, field in fields.items()
        if name in names
    ]
    heads = ("setting", "values", "default", "meaning")
    yield from table("## Settings of `job`, `defaults` and `modes.MODE`", heads, rows)


def _comments() -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the path of each value that has a comment above it, and the comment."""
    path: list[str] = []
    comment: list[str] = []
    for line in (CHART / "values.yaml").read_text(encoding="utf-8").splitlines():
        words = re.fullmatch(r"(?P<indent> *)(# (?P<comment>.*)|(?P<name>\w+):.*)?", line)
        assert words is not None, line
        if words["comment"]:
            comment.append(words["comment"])
        elif words["name"]:
            path = [*path[: len(words["indent"]) // 2], words["name"]]
            if comment:
                yield tuple(path), " ".join(comment)
            comment = []
