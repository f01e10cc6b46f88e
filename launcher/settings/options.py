"""The launcher's settings of a job: its name, its place, its pods, and its retries.

They are checked here, offline, so that a mistyped quantity or name costs no request to the API server. To add an option
of pods, add its field, and use it in k8s/templates as `pods.NAME`. `make generate` writes the chart's schema and the
pages; docs/chart.py can add a pattern to the schema. pyproject.toml names the options that only templates read, so that
vulture does not take them for dead.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from launcher import quantities
from launcher.jobs import DEFAULT_QUEUE, UNSUPPORTED, BackendName
from launcher.settings.hardware import HardwareName
from trainer.shared import durations, variables
from trainer.shared.config.train import Optional, option
from trainer.shared.secrets import looks_secret

# The patterns of Kubernetes for names of objects (RFC 1123 subdomain) and of namespaces, for labels and their values.
OBJECT = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_RELEASE = re.compile(r"[a-z0-9]([-a-z0-9.]{0,51}[a-z0-9])?")
QUALIFIED = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
# A reference as github.com/distribution/reference has it. A registry has a dot or a port, or is localhost.
_REGISTRY = r"(([A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+|localhost)(:[0-9]+)?|([A-Za-z0-9-]+|\[[0-9a-fA-F:]+\]):[0-9]+)"
_COMPONENT = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
IMAGE = re.compile(
    rf"({_REGISTRY}/)?{_COMPONENT}(/{_COMPONENT})*(:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(@[a-z0-9]+:[0-9a-fA-F]{{32,}})?"
)
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
# Variables that the launcher, the node or Volcano sets in each pod.
_OWN_VARIABLES = frozenset(
    (
        *("HOME", "POD_NAME", "POD_NAMESPACE", "POD_UID", "POD_IP", "POD_JOB", "POD_JOB_UID", "POD_RETRIES", "HOST_IP"),
        *("PNAS_NODE_RANK", "PNAS_MASTER_ADDR", "RANK_TABLE_FILE"),
        *("ASCEND_VISIBLE_DEVICES", "JOB_COMPLETION_INDEX", "VC_TASK_INDEX", "VK_TASK_INDEX"),
    )
)


def _checked(check: Callable[[str], object]) -> AfterValidator:
    def checked(text: str | None) -> str | None:
        if text is not None:
            check(text)
        return text

    return AfterValidator(checked)


def _matching(pattern: re.Pattern[str], rule: str) -> AfterValidator:
    """Check by a pattern, and state the rule in words: a pattern does not help at a terminal."""

    def check(text: str) -> None:
        if not pattern.fullmatch(text):
            raise ValueError(rule)

    return _checked(check)


def _listed(value: object) -> object:
    """Return a profile's mapping as the `KEY=VALUE` options that it stands for, and a string as a list of one."""
    if isinstance(value, dict):
        return [f"{key}={_word(key, item)}" for key, item in value.items()]
    return [value] if isinstance(value, str) else value


def _word(key: object, value: object) -> str:
    """Return a value of such a mapping as its text; the chart writes True as true."""
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise ValueError(f"`{key}` must have one text as its value")  # noqa: TRY004  # pydantic's form of an error
    return str(value).lower() if isinstance(value, bool) else str(value)


def _each(check: Callable[[str], object]) -> AfterValidator:
    def check_all(values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            check(value)
        names = [value.partition("=")[0] for value in values]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"`{twice}` is given twice")
        return values

    return AfterValidator(check_all)


def _check_env(text: str) -> None:
    name, equals, value = text.partition("=")
    if not equals or not VARIABLE.fullmatch(name):
        raise ValueError(f"`{name}` is not NAME=VALUE with a name of letters, digits and `_`")
    if name in _OWN_VARIABLES:
        raise ValueError(f"`{name}` is set by the launcher in every pod")
    if name.startswith(variables.PREFIX) and not variables.is_variable(name):
        raise ValueError(f"`{name}` is no variable of the trainer; correct it, or leave it out")
    if looks_secret(name, value):
        raise ValueError(f"`{name}` looks like a secret, which every user could read in the job: use --env-from-secret")


def _check_selector(text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not QUALIFIED.fullmatch(key) or not VALUE.fullmatch(value):
        raise ValueError(f"`{text}` is not a node's label, KEY=VALUE")


def _check_label(text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not QUALIFIED.fullmatch(key) or not VALUE.fullmatch(value):
        raise ValueError(
            f"`{text}` is not a label, KEY=VALUE with up to 63 letters, digits, `-`, `_` and `.` on each side"
        )


def _check_annotation(text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not QUALIFIED.fullmatch(key):
        raise ValueError(f"`{text}` is not an annotation, KEY=VALUE with a key like example.org/team")
    if looks_secret(key, value):
        raise ValueError(f"`{key}` looks like a secret, which every user could read in the job; leave it out")


def _check_toleration(text: str) -> None:
    rest, _, effect = text.partition(":")
    key, _, value = rest.partition("=")
    if not QUALIFIED.fullmatch(key) or not VALUE.fullmatch(value) or effect not in ("", *EFFECTS):
        raise ValueError(f"`{text}` is not KEY[=VALUE][:EFFECT] with an effect of {', '.join(EFFECTS)}")


def _check_object(text: str) -> None:
    if not OBJECT.fullmatch(text):
        raise ValueError(f"`{text}` {_OBJECT_RULE}")


def _check_duration(text: str) -> None:
    if durations.seconds(text) < 1:
        raise ValueError("must be a second or more, like 30m or 7d")


_OBJECT_RULE = "is not the name of an object: lower case letters, digits, `-` and `.`"
ObjectName = _matching(OBJECT, _OBJECT_RULE)
Memory = _checked(quantities.memory)
Duration = _checked(_check_duration)
Texts = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Names = Annotated[Texts, _each(_check_object)]

AUTO = "auto"


def _automatic(check: Callable[[str], object]) -> AfterValidator:
    return _checked(lambda text: None if text == AUTO else check(text))


_in_job = partial(option, group="Job")
_in_cluster = partial(option, group="Cluster")
_in_pods = partial(option, group="Pods")


class ClusterOptions(BaseModel):
    """The settings that only a cluster uses."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    kubeconfig: Annotated[Path | None, Optional] = _in_cluster(
        None, "Kubeconfig file. [default: KUBECONFIG, ~/.kube/config, or the pod's own]"
    )
    context: Annotated[str | None, Optional] = _in_cluster(
        None, "Context of the kubeconfig. [default: its current one]"
    )
    namespace: Annotated[
        str | None, Optional, _matching(_LABEL, "is not a namespace: lower case letters, digits and `-`, 63 at most")
    ] = _in_cluster(None, "Namespace of the job. [default: the context's]")
    release: Annotated[
        str | None, Optional, _matching(_RELEASE, "is not a Helm release: lower case letters, digits, `-` and `.`")
    ] = _in_cluster(None, "Helm release that the job belongs to: `cancel --release` stops its jobs.")
    queue: Annotated[str, ObjectName] = _in_cluster(
        DEFAULT_QUEUE,
        "Queue of Volcano, or for a Kubernetes Job a LocalQueue of Kueue; `default` means Volcano's only.",
    )
    priority_class: Annotated[str | None, Optional, ObjectName] = _in_cluster(None, "PriorityClass of the pods.")
    node_selector: Annotated[Texts, _each(_check_selector)] = _in_cluster(
        (), "A label, KEY=VALUE, that the nodes must have; may be repeated."
    )
    toleration: Annotated[Texts, _each(_check_toleration)] = _in_cluster(
        (), "A taint, KEY[=VALUE][:EFFECT], that the nodes may have; may be repeated."
    )
    node_timeout: Annotated[str | None, Optional, Duration] = _in_cluster(
        "60s", "Replace a pod whose node has been unreachable for this long; none leaves it to the cluster (often 5m)."
    )
    job_label: Annotated[Texts, _each(_check_label)] = _in_cluster(
        (),
        "A label, KEY=VALUE, of the job itself, for MindCluster, Volcano or Kueue (docs/ascend.md); may be repeated.",
    )
    job_annotation: Annotated[Texts, _each(_check_annotation)] = _in_cluster(
        (), "An annotation, KEY=VALUE, of the job itself; may be repeated."
    )
    retries: int = _in_cluster(
        3, "How often a job that failed is tried again, from its checkpoint; evictions and stops do not count.", ge=0
    )
    deadline: Annotated[str | None, Optional, Duration] = _in_cluster(
        None, "End a job that has not ended after this time: 90m, 3d."
    )
    ttl: Annotated[str | None, Optional, Duration] = _in_cluster(
        "7d", "Remove an ended job, its log too, after this time; none keeps it."
    )

    image: Annotated[
        str | None,
        Optional,
        _matching(IMAGE, "is not an image's name, like registry.example/pnas:0.1.0, in lower case"),
    ] = _in_pods(None, "Image of the trainer.")
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = _in_pods(
        "IfNotPresent", "When a node pulls the image."
    )
    image_pull_secret: Names = _in_pods((), "Secret that the registry asks for; may be repeated.")
    data_claim: Annotated[str, ObjectName] = _in_pods("pnas-data", "Claim that is mounted at /data.")
    output_claim: Annotated[str, ObjectName] = _in_pods("pnas-output", "Claim that is mounted at /output.")
    hardware: Annotated[HardwareName | None, Optional] = _in_pods(
        None,
        "Kind of server (docs/ascend.md has them): sets resource, node labels and the policy of MindCluster's "
        "scheduler, and accepts its counts of NPUs. [default: an Atlas 800's counts, and no labels]",
    )
    resource: Annotated[str, _matching(QUALIFIED, "is not a resource's name, like huawei.com/Ascend910")] = _in_pods(
        "huawei.com/Ascend910", "Kubernetes resource of an NPU."
    )
    cpu: Annotated[str | None, Optional, _automatic(quantities.quantity)] = _in_pods(
        AUTO, "CPUs of each pod, like 96; auto requests a share by --hardware and sets no limit, none requests nothing."
    )
    memory: Annotated[str | None, Optional, _automatic(quantities.memory)] = _in_pods(
        AUTO, "Memory of each pod, like 512Gi; auto and none as for --cpu."
    )
    shm: Annotated[str, Memory] = _in_pods(
        "16Gi", "Size of /dev/shm, where loaders hand images over and snapshots lie; it counts as memory."
    )
    scratch: Annotated[str, Memory] = _in_pods("16Gi", "Size of /tmp and of $HOME each.")
    user: int = _in_pods(1000, "User id in the pod (HwHiAiUser's, who owns the devices).", ge=1)
    group: int = _in_pods(1000, "Group id in the pod.", ge=1)
    env: Annotated[Texts, _each(_check_env)] = _in_pods((), "A variable, NAME=VALUE; may be repeated.")
    env_from_secret: Names = _in_pods((), "Secret whose keys are variables; may be repeated.")
    mindcluster: Literal["auto", "on", "off"] = _in_pods(
        "auto", "Have MindCluster write the rank table; auto is on for Volcano jobs with NPUs."
    )
    driver: Literal["runtime", "host"] = _in_pods(
        "runtime",
        "Source of the NPUs' driver in pods: Ascend Docker Runtime, or a path of the host for clusters without it; "
        "Pod Security baseline and restricted refuse pods with a path of the host.",
    )
    overlay: Annotated[Path | None, Optional] = _in_pods(
        None, "YAML file that is merged into the pod template, for settings without an option."
    )


PLACE = frozenset({"kubeconfig", "context", "namespace"})
"""The settings that say where a job is, and not what it is."""
LONGEST_NAME = 40
# A DNS label, as a cluster wants it, with room for what is appended to it: -<task>-<index>, -svc.
NAME_PATTERN = r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$"


def is_job_name(text: str) -> bool:
    """Return whether a job can have this name."""
    return re.fullmatch(NAME_PATTERN, text) is not None


def _supported(value: object) -> object:
    """Give the reason for a backend that a user may expect."""
    if isinstance(value, str) and value in UNSUPPORTED:
        raise ValueError(UNSUPPORTED[value])
    return value


class _Named(BaseModel):
    """The settings that every job has, wherever it runs."""

    backend: Annotated[BackendName, BeforeValidator(_supported)] = _in_job(
        "auto", "Where to run: this machine, or a kind of job on a cluster; auto takes the best that exists."
    )
    name: Annotated[
        str | None,
        _matching(re.compile(NAME_PATTERN), "use a letter, then letters, digits and `-`, lower case, 40 at most"),
    ] = _in_job(
        None,
        "Name of the job and of its output folder. [default: pnas-MODE-MODEL-TIME; on a cluster, by its content]",
    )


# Fields come in the order of the bases, from the last to the first.
class JobOptions(ClusterOptions, _Named):
    """The settings that belong to the launcher; all others are the trainer's."""
