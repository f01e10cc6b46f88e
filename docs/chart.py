"""`python -m docs.chart` writes what of charts/pnas comes from elsewhere: its schema, its rights, its README, its jobs.

The settings under `defaults` and `modes` are the launcher's own, and so are their rules. A test writes all of it anew
and compares.
"""

import json
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from docs.go_templates import translated
from docs.options import described, table
from launcher.cluster.defaults import NO_DEFAULTS
from launcher.cluster.preflight import ONE_NODE, SEVERAL_NODES
from launcher.cluster.rbac import CLUSTER_VERBS, rules
from launcher.kinds import kind_named
from launcher.settings.hardware import CHIPS, DEVICE_COUNTS, PRESETS
from launcher.settings.options import (
    EFFECTS,
    NAME_PATTERN,
    OBJECT,
    OWN_VARIABLES,
    PLACE,
    QUALIFIED,
    VALUE,
    VARIABLE,
    ClusterOptions,
    JobOptions,
)
from launcher.settings.quantities import PATTERN, quantity
from launcher.settings.secrets import ABOUT, HARMLESS, VALUES, WORD
from trainer.shared.config import EMULATED, MODE_PRESETS, TrainConfig

CHART = Path(__file__).parents[1] / "charts" / "pnas"
# The claims are values of their own.
_NO_SETTINGS = NO_DEFAULTS | {"data_claim", "output_claim"}
# A release's job has them; an overlay is a file, and where it runs is the release's.
_JOBS_OWN = {"mode", "resume"}
_NOT_THE_CHARTS = {"rank_table"}
TRANSLATED = ("_pod", "job", "volcano-job", "service", "rank-table")
_OF_PODS = [name for name in ClusterOptions.model_fields if name not in PLACE | {"overlay"}]
_USED = {*_OF_PODS, "name", "backend", "npus", "nodes", "mode", "model", "image_size", "device", "grace_s"}
_NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253}
_SWITCH = {"type": "boolean"}
_QUANTITIES = {"type": "object", "additionalProperties": {"type": ["string", "integer"]}}
_QUANTITY = {"type": "string", "pattern": f"^({PATTERN})$"}
_NUMBER_TOO = {"type": ["string", "number"]}
_MORE_THAN_NOTHING = {"type": ["string", "integer"], "minimum": 1}
_DURATION, _INTERVAL = (
    {**_MORE_THAN_NOTHING, "allOf": [{"pattern": f"^([0-9]+|({number} *(d|h|min|m|s) *)+)$"}, {"pattern": "[1-9]"}]}
    for number in ("[0-9]+", "[0-9]+(\\.[0-9]+)?")
)
_ABSOLUTE = {"pattern": "^/"}
# What the launcher checks by functions, of which pydantic's schema says nothing.
_TEXTS: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("cpu", "memory"), _QUANTITY | _NUMBER_TOO),
    **dict.fromkeys(("shm", "scratch"), _QUANTITY),
    **dict.fromkeys(("ttl", "deadline"), _DURATION),
    **dict.fromkeys(("queue", "priority_class"), _NAME),
    **dict.fromkeys(("data_path", "weights"), _ABSOLUTE),
    "resume": {"pattern": "^(/|auto$)"},
    "checkpoint_every": _INTERVAL,
}
_ANY, _EFFECT = "[\\s\\S]*", f"(:({'|'.join(('', *EFFECTS))}))?"
# Of what there may be several: each as one text; of a mapping, which is the same, each key and each value.
_TEXT_KEY_VALUE: Mapping[str, tuple[str, str, str]] = {
    "env": (f"({VARIABLE.pattern})={_ANY}", VARIABLE.pattern, _ANY),
    "node_selector": (f"({QUALIFIED.pattern})=({VALUE.pattern})", QUALIFIED.pattern, VALUE.pattern),
    "toleration": (
        *(f"({QUALIFIED.pattern})(=({VALUE.pattern}))?{_EFFECT}", QUALIFIED.pattern),
        f"({VALUE.pattern}){_EFFECT}",
    ),
}
_INTRODUCTION = """\
# pnas

`python -m docs.chart` writes this page. `helm install pnas charts/pnas` prepares a namespace for
`python -m launcher submit`: an account with exactly the rights that the launcher uses, claims for images and output
(they stay when the release goes), and the defaults of every job there. With `job.enabled` a training job is part of the
release, the same as `python -m launcher submit` makes of the same settings; an upgrade with others starts another. One
that has gone, as its `ttl` has it, is made anew by the next upgrade, and reports its result again if its training run
was done; `ttl: none` keeps it.

Once `defaults.image` is set, `helm test pnas` looks whether that account may do all that the launcher does, whether
both claims are bound, and, with `rbac.cluster`, whether nodes have NPUs.

All pods pass Pod Security `restricted`, for Ascend Docker Runtime brings the NPUs' driver into them. A cluster without
it needs `defaults.driver: host`. That mounts `/usr/local/Ascend/driver` of the node, and costs the namespace its Pod
Security: `baseline` and `restricted` refuse every path of the host, so that the namespace must be `privileged`, which
lets any other pod there mount any path. The device plugin must then hand over the devices itself
(`-useAscendDocker=false`).

A value that the chart does not know is an error, and what would keep a job's pods waiting stops `helm install` before
anything is made: a claim that is missing, not bound, or not to be shared by so many nodes; more NPUs than a
node has; a queue that is not there.

## Values

| value | default | what it is |
| --- | --- | --- |
"""


def files() -> dict[str, str]:
    """The text of each file."""
    return {
        "values.schema.json": json.dumps(schema(), indent=2) + "\n",
        "files/rules.yaml": yaml.safe_dump(rules(), sort_keys=False),
        "files/cluster-rules.yaml": yaml.safe_dump(rules(CLUSTER_VERBS), sort_keys=False),
        "files/settings.json": json.dumps(_facts(), indent=2) + "\n",
        "README.md": "\n".join([_INTRODUCTION + "".join(_rows()), *_settings_table()]),
        **{f"templates/_{name.removeprefix('_')}.tpl": translated(name) for name in TRANSLATED},
    }


def schema() -> dict[str, Any]:
    """Every value, its type and its limits; none beside them."""
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
    subjects = {"type": "array", "items": {**_only(subject), "required": ["kind", "name"]}}
    resources = _only({"requests": _QUANTITIES, "limits": _QUANTITIES})
    values = {
        "serviceAccount": _only({"create": _SWITCH, "name": _NAME}),
        "rbac": _only({"create": _SWITCH, "cluster": _SWITCH, "subjects": subjects}),
        "claims": _only({"data": _only(claim), "output": _only(claim)}),
        "queue": _only(queue),
        "tensorboard": _only({"enabled": _SWITCH, "resources": resources}),
        "checks": _only({"cluster": _SWITCH}),
        "job": _only(
            {
                "enabled": _SWITCH,
                "name": {"type": "string", "pattern": NAME_PATTERN},
                "backend": {"enum": ["auto", "batch", "volcano"]},
                **_settings(_JOBS_OWN),
            }
        ),
        "defaults": _only(_settings()),
        "modes": _only({mode: _only(_settings()) for mode in MODE_PRESETS}),
        # Helm gives it to a chart that is part of another; nothing is read from it.
        "global": {"type": "object"},
    }
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the chart pnas", **_only(values)}


def _only(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": dict(properties)}


def _settings(more: Set[str] = frozenset()) -> dict[str, Any]:
    """The launcher's settings and the trainer's that a namespace can have defaults for, and `more`."""
    left_out = (_NO_SETTINGS | _NOT_THE_CHARTS) - more
    found = {name: _schema_of(name, field) for name, field in _fields().items() if name not in left_out}
    # Which of them a pod can have depends on the hardware, which may stand elsewhere: the templates look at both.
    # Emulated NPUs are for a checkout.
    devices = [kind for kind in found["device"]["enum"] if kind != EMULATED]
    return {
        **found,
        "npus": {**found["npus"], "enum": _counts()},
        "device": {**found["device"], "enum": devices},
    }


def _counts() -> list[int]:
    """How many NPUs a pod can have on any hardware."""
    known = (count for one in PRESETS.values() for count in (*one.one_node, *one.several_nodes))
    return sorted({*DEVICE_COUNTS, *known})


def _fields() -> dict[str, Mapping[str, Any]]:
    models = (JobOptions, TrainConfig)
    return {name: field for model in models for name, field in model.model_json_schema()["properties"].items()}


def _facts() -> dict[str, Any]:
    """What the templates must know of the settings: their defaults, and the trainer's options in their order."""
    defaults = {name: field.get("default") for name, field in _fields().items() if name in _USED}
    fields = list(TrainConfig.model_fields)
    settings = {name: field for name, field in _fields().items() if name in _settings(_JOBS_OWN)}
    nullable = [name for name, field in settings.items() if _may_be_none(field)]
    modes = {
        use.removesuffix("_claim"): {"alone": sorted(ONE_NODE[use]), "shared": sorted(SEVERAL_NODES[use])}
        for use in sorted(ONE_NODE)
    }
    listed = [name for name, field in settings.items() if field.get("type") == "array"]
    names = {"fields": fields, "nullable": nullable, "listed": listed, "pods": _OF_PODS}
    more = {
        "index": {name: kind_named(name).index_annotation for name in ("batch", "volcano")},
        "access_modes": modes,
        "counts": DEVICE_COUNTS,
        "chips": CHIPS,
    }
    secret = {"word": WORD.pattern, "value": VALUES.pattern, "harmless": sorted(HARMLESS), "about": sorted(ABOUT)}
    checks = {"own_variables": sorted(OWN_VARIABLES), "secret": secret, "suffixes": _suffixes()}
    hardware = {name: asdict(one) for name, one in PRESETS.items()}
    return {"defaults": defaults, **names, **more, **checks, "hardware": hardware}


def _suffixes() -> dict[str, float]:
    """Of quantities: what each multiplies by."""
    known = (*"numkMGTPE", *(f"{letter}i" for letter in "KMGTPE"))
    return {suffix: float(quantity(f"1{suffix}")) for suffix in known}


def _may_be_none(field: Mapping[str, Any]) -> bool:
    return any(one.get("type") == "null" for one in field.get("anyOf", ()))


def _schema_of(name: str, field: Mapping[str, Any]) -> dict[str, Any]:
    """A setting's schema."""
    kept = {key: value for key, value in field.items() if key not in ("default", "group", "title")}
    if kept.get("type") == "array":
        del kept["type"], kept["items"]
        return {**kept, "anyOf": list(_forms(name))}
    text = _TEXTS.get(name, {})
    if _may_be_none(field):
        # As at a terminal: to Helm a null is nothing at all.
        others = ({**one, **text} for one in kept["anyOf"] if one.get("type") != "null")
        return {**kept, "anyOf": [*others, {"const": "none"}]}
    return {**kept, **text}


def _forms(name: str) -> Iterator[dict[str, Any]]:
    """Several of it: a list, one text, which is a list of one, and a mapping if they are KEY=VALUE."""
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
    """Those of `job`, `defaults` and `modes`."""
    known = schema()["properties"]["defaults"]["properties"]
    fields = {**JobOptions.model_fields, **TrainConfig.model_fields}
    rows = [(f"`{name}`", *(text.replace(f", {EMULATED}", "") for text in described(fields[name]))) for name in known]
    heads = ("setting", "values", "default", "what it is")
    yield from table("## Settings of `job`, `defaults` and `modes.MODE`", heads, rows)


def _comments() -> Iterator[tuple[tuple[str, ...], str]]:
    """Each value that has a comment above it, and the comment."""
    path: list[str] = []
    said: list[str] = []
    for line in (CHART / "values.yaml").read_text(encoding="utf-8").splitlines():
        words = re.fullmatch(r"(?P<indent> *)(# (?P<comment>.*)|(?P<name>\w+):.*)?", line)
        assert words is not None, line
        if words["comment"]:
            said.append(words["comment"])
        elif words["name"]:
            path = [*path[: len(words["indent"]) // 2], words["name"]]
            if said:
                yield tuple(path), " ".join(said)
            said = []


if __name__ == "__main__":
    for name, text in files().items():
        (CHART / name).write_text(text, encoding="utf-8")
