"""The launcher's settings of a job: its name, its place, its pods, and its retries.

They are checked here, offline, so that a mistyped quantity or name costs no request to the API server.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from launcher.jobs import UNSUPPORTED, BackendName
from launcher.settings import quantities
from launcher.settings.hardware import HardwareName
from launcher.settings.secrets import looks_secret
from trainer.shared import durations
from trainer.shared.config.train import Optional, option

# The patterns of Kubernetes for names of objects (RFC 1123 subdomain) and of namespaces, for labels and their values.
OBJECT = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_RELEASE = re.compile(r"[a-z0-9]([-a-z0-9.]{0,51}[a-z0-9])?")
QUALIFIED = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
# Variables that the launcher, the node or Volcano sets in each pod.
_OWN_VARIABLES = frozenset(
    (
        *("HOME", "POD_NAME", "POD_UID", "POD_IP", "HOST_IP", "PNAS_NODE_RANK", "PNAS_MASTER_ADDR", "RANK_TABLE_FILE"),
        *("ASCEND_VISIBLE_DEVICES", "JOB_COMPLETION_INDEX", "VC_TASK_INDEX", "VK_TASK_INDEX"),
    )
)


def _matching(pattern: re.Pattern[str], rule: str) -> AfterValidator:
    def check(value: str | None) -> str | None:
        if value is not None and not pattern.fullmatch(value):
            raise ValueError(rule)
        return value

    return AfterValidator(check)


def _checked(check: Callable[[str], object]) -> Callable[[str | None], str | None]:
    def checked(text: str | None) -> str | None:
        if text is not None:
            check(text)
        return text

    return checked


def _listed(value: object) -> object:
    """Return a profile's mapping as the `KEY=VALUE` options that it stands for, and a string as a list of one."""
    if isinstance(value, dict):
        # YAML and the chart write True as true.
        return [f"{key}={str(item).lower() if isinstance(item, bool) else item}" for key, item in value.items()]
    return [value] if isinstance(value, str) else value


def _each(check: Any) -> AfterValidator:
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
    if looks_secret(name, value):
        raise ValueError(f"`{name}` looks like a secret, which every user could read in the job: use --env-from-secret")


def _check_selector(text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not QUALIFIED.fullmatch(key) or not VALUE.fullmatch(value):
        raise ValueError(f"`{text}` is not a node's label, KEY=VALUE")


def _check_toleration(text: str) -> None:
    rest, _, effect = text.partition(":")
    key, _, value = rest.partition("=")
    if not QUALIFIED.fullmatch(key) or not VALUE.fullmatch(value) or effect not in ("", *EFFECTS):
        raise ValueError(f"`{text}` is not KEY[=VALUE][:EFFECT] with an effect of {', '.join(EFFECTS)}")


def _check_object(text: str) -> None:
    if not OBJECT.fullmatch(text):
        raise ValueError(f"`{text}` is not the name of an object: lower case letters, digits, `-` and `.`")


def _check_duration(text: str | None) -> str | None:
    if text is not None and durations.seconds(text) < 1:
        raise ValueError("must be a second or more, like 30m or 7d")
    return text


ObjectName = _matching(OBJECT, "is not the name of an object: lower case letters, digits, `-` and `.`")
Quantity = AfterValidator(_checked(quantities.quantity))
Memory = AfterValidator(_checked(quantities.memory))
Duration = AfterValidator(_check_duration)
Names = Annotated[tuple[str, ...], BeforeValidator(_listed), _each(_check_object)]


class ClusterOptions(BaseModel):
    """The settings that only a cluster uses."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    # The cluster, and the user there
    kubeconfig: Annotated[Path | None, Optional] = option(
        None, "Kubeconfig file. [default: KUBECONFIG, ~/.kube/config, or the pod's own]", group="Cluster"
    )
    context: Annotated[str | None, Optional] = option(
        None, "Context of the kubeconfig. [default: its current one]", group="Cluster"
    )
    namespace: Annotated[
        str | None, Optional, _matching(_LABEL, "is not a namespace: lower case letters, digits and `-`, 63 at most")
    ] = option(None, "Namespace of the job. [default: the context's]", group="Cluster")
    release: Annotated[
        str | None, Optional, _matching(_RELEASE, "is not a Helm release: lower case letters, digits, `-` and `.`")
    ] = option(None, "Helm release that the job belongs to: `cancel --release` stops its jobs.", group="Cluster")
    queue: Annotated[str, ObjectName] = option("default", "Volcano queue.", group="Cluster")
    priority_class: Annotated[str | None, Optional, ObjectName] = option(
        None, "PriorityClass of the pods.", group="Cluster"
    )
    node_selector: Annotated[tuple[str, ...], BeforeValidator(_listed), _each(_check_selector)] = option(
        (), "A label, KEY=VALUE, that the nodes must have; may be repeated.", group="Cluster"
    )
    toleration: Annotated[tuple[str, ...], BeforeValidator(_listed), _each(_check_toleration)] = option(
        (), "A taint, KEY[=VALUE][:EFFECT], that the nodes may have; may be repeated.", group="Cluster"
    )
    retries: int = option(3, "How often a failed job is tried again, from its checkpoint.", group="Cluster", ge=0)
    deadline: Annotated[str | None, Optional, Duration] = option(
        None, "End a job that has not ended after this time: 90m, 3d.", group="Cluster"
    )
    ttl: Annotated[str | None, Optional, Duration] = option(
        "7d", "Remove an ended job, its log too, after this time; none keeps it.", group="Cluster"
    )

    # The pods
    image: Annotated[str | None, Optional, _matching(re.compile(r"\S+"), "is not an image's name")] = option(
        None, "Image of the trainer.", group="Pods"
    )
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = option(
        "IfNotPresent", "When a node pulls the image.", group="Pods"
    )
    image_pull_secret: Names = option((), "Secret that the registry asks for; may be repeated.", group="Pods")
    data_claim: Annotated[str, ObjectName] = option("pnas-data", "Claim that is mounted at /data.", group="Pods")
    output_claim: Annotated[str, ObjectName] = option("pnas-output", "Claim that is mounted at /output.", group="Pods")
    hardware: Annotated[HardwareName | None, Optional] = option(
        None,
        "Kind of server (docs/ascend.md has them): sets resource, node labels and the policy of MindCluster's "
        "scheduler, and accepts its counts of NPUs. [default: an Atlas 800's counts, and no labels]",
        group="Pods",
    )
    resource: Annotated[str, _matching(QUALIFIED, "is not a resource's name, like huawei.com/Ascend910")] = option(
        "huawei.com/Ascend910", "Kubernetes resource of an NPU.", group="Pods"
    )
    cpu: Annotated[str | None, Optional, Quantity] = option(None, "CPUs of each pod, like 96.", group="Pods")
    memory: Annotated[str | None, Optional, Memory] = option(None, "Memory of each pod, like 512Gi.", group="Pods")
    shm: Annotated[str, Memory] = option(
        "16Gi", "Size of /dev/shm, where loaders hand images over; it counts as memory.", group="Pods"
    )
    scratch: Annotated[str, Memory] = option("16Gi", "Size of /tmp and of $HOME each.", group="Pods")
    user: int = option(1000, "User id in the pod (HwHiAiUser's, who owns the devices).", group="Pods", ge=1)
    group: int = option(1000, "Group id in the pod.", group="Pods", ge=1)
    env: Annotated[tuple[str, ...], BeforeValidator(_listed), _each(_check_env)] = option(
        (), "A variable, NAME=VALUE; may be repeated.", group="Pods"
    )
    env_from_secret: Names = option((), "Secret whose keys are variables; may be repeated.", group="Pods")
    mindcluster: Literal["auto", "on", "off"] = option(
        "auto", "Have MindCluster write the rank table; auto is on for Volcano jobs with NPUs.", group="Pods"
    )
    driver: Literal["runtime", "host"] = option(
        "runtime",
        "Source of the NPUs' driver in pods: Ascend Docker Runtime, or a path of the host for clusters without it; "
        "Pod Security baseline and restricted refuse pods with a path of the host.",
        group="Pods",
    )
    overlay: Annotated[Path | None, Optional] = option(
        None, "YAML file that is merged into the pod template, for settings without an option.", group="Pods"
    )


PLACE = frozenset({"kubeconfig", "context", "namespace"})
"""The settings that say where a job is, and not what it is."""
LONGEST_NAME = 40
# A DNS label, as a cluster wants it, with room for what is appended to it: -<task>-<index>, -svc.
NAME_PATTERN = r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$"


def is_job_name(text: str) -> bool:
    """Return whether a job can have this name."""
    return re.fullmatch(NAME_PATTERN, text) is not None


def _plain_name(value: object) -> object:
    """State the rule in words: a pattern does not help at a terminal."""
    # YAML reads a job called 2024 as a number.
    if value is not None and not is_job_name(str(value)):
        raise ValueError("use a letter, then letters, digits and `-`, lower case, 40 at most")
    return value


def _supported(value: object) -> object:
    """Give the reason for a backend that a user may expect."""
    if isinstance(value, str) and value in UNSUPPORTED:
        raise ValueError(UNSUPPORTED[value])
    return value


class _Named(BaseModel):
    """The settings that every job has, wherever it runs."""

    backend: Annotated[BackendName, BeforeValidator(_supported)] = option(
        "auto",
        "Where to run: this machine, a Volcano Job, a Kubernetes Job; auto takes the best that exists.",
        group="Job",
    )
    name: Annotated[str | None, BeforeValidator(_plain_name)] = option(
        None,
        "Name of the job and of its output folder. [default: pnas-MODE-MODEL-TIME; on a cluster, by its content]",
        group="Job",
    )


# Fields come in the order of the bases, from the last to the first.
class JobOptions(ClusterOptions, _Named):
    """The settings that belong to the launcher; all others are the trainer's."""
