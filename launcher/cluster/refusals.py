"""The meaning of the refusal of an object in a dry run. Pure.

Kubernetes' own admission plugins write the texts. To add a refusal of pods, add its row to `POD_REFUSALS`.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from launcher.cluster.quotas import LARGER, QUOTA
from launcher.errors import ApiError, LauncherError, PreflightError, RequestError
from launcher.jobs import NOT_CHECKED, PreflightFinding
from launcher.kinds.needs import amounts
from launcher.kube.api import Api

_TRIAL_IMPOSSIBLE = "does not support dry run"
_SILENT_WEBHOOK = "failed calling webhook"
_AMOUNTS = re.compile(r"requested: (?P<requested>\S+?), used: \S+?, limited: (?P<limited>\S+)")


class PodRefusal(NamedTuple):
    """A refusal that every pod of the job would get.

    Attributes:
        pattern: finds it in the server's message.
        state: `missing` if only a change of the job or of the namespace helps.
    """

    pattern: str
    about: str
    state: Literal["missing", "later"]
    advice: str


POD_REFUSALS: Sequence[PodRefusal] = (
    PodRefusal(
        "violates PodSecurity",
        "pod security",
        "missing",
        "choose another --namespace, or change the setting that it names (--driver, --user, --overlay)",
    ),
    PodRefusal("exceeded quota", QUOTA, "later", "a job waits until others end"),
    PodRefusal("failed quota: .* must specify", QUOTA, "missing", "give --cpu and --memory"),
    PodRefusal(
        r"(minimum|maximum|max limit to request ratio)\b.* per (Container|Pod)",
        "limit range",
        "missing",
        "change --cpu or --memory, or ask the administrator to change the LimitRange",
    ),
    PodRefusal(
        "looking up service account|service account .* not found",
        "service account",
        "missing",
        "create it, or take it out of the --overlay",
    ),
    PodRefusal(
        "no PriorityClass",
        "priority class",
        "missing",
        "choose another --priority-class: `kubectl get priorityclasses`",
    ),
    PodRefusal("RuntimeClass", "runtime class", "missing", "choose another runtimeClassName in the --overlay"),
)
OTHER_REFUSAL = PodRefusal("", "pods", "later", "a job waits until that changes")
_INVALID = PodRefusal("", "pods", "missing", "change the setting that it names, or the --overlay")


def translate_refusal(error: ApiError, api: Api, *, trial: str = "", name: str = "") -> LauncherError:
    """Return what the refusal of an object means: a fault of the job, or of the cluster.

    Args:
        trial: the object's name in the dry run, in place of which the message gets `name`.
    """
    text = str(error).replace(trial, name) if trial else str(error)
    if error.status == 404 and "namespaces" in text:
        return PreflightError(
            f"namespace {api.namespace}: there is no such namespace in {api.origin}; choose --namespace"
        )
    if error.status == 403 and "being terminated" in text:
        return PreflightError(
            f"namespace {api.namespace} is being deleted: wait until it is gone, or choose --namespace"
        )
    if error.status == 403 and "exceeded quota" in text:
        return PreflightError(f"no room for the job: {text}; make room, or ask for a larger quota")
    if _SILENT_WEBHOOK in text:
        return PreflightError(f"a webhook of the cluster does not answer: {text}; ask the administrator to start it")
    if error.of_rights or error.status not in (400, 403, 422):
        return error
    return RequestError(f"the cluster refuses the job: {text}")


def pod_refusal(error: ApiError) -> PreflightFinding:
    """Return what the refusal of a pod means for the job: its controller would get the same.

    Raises:
        ApiError: the server did not judge the pod.
    """
    text = " ".join(str(error).split())
    if error.of_rights or is_no_trial(error):
        return PreflightFinding("pods", "unknown", f"{NOT_CHECKED}whether the namespace admits the pods: {text}")
    if _SILENT_WEBHOOK in text:
        advice = "a job waits until the administrator has started it"
        return PreflightFinding("pods", "later", f"a webhook of the cluster does not answer: {text}; {advice}")
    if error.status not in (400, 403, 404, 422):
        raise error
    other = OTHER_REFUSAL if error.status == 403 else _INVALID
    refusal = next((row for row in POD_REFUSALS if re.search(row.pattern, text)), other)
    state, advice = refusal.state, refusal.advice
    if refusal.about == QUOTA and _is_above_limit(text):
        state, advice = "missing", LARGER
    cause = text.partition(" is forbidden: ")[2] or text
    return PreflightFinding(refusal.about, state, f"the cluster refuses the job's pods: {cause}; {advice}")


def is_no_trial(error: ApiError) -> bool:
    """Return whether the server cannot try the object, because one of its webhooks has effects outside."""
    return error.status == 400 and _TRIAL_IMPOSSIBLE in str(error)


def _is_above_limit(text: str) -> bool:
    """Return whether a pod asks for more than the whole quota, as the message of the quota says."""
    match = _AMOUNTS.search(text)
    if match is None:
        return False
    requested, limited = (amounts(dict(pair.split("=") for pair in part.split(","))) for part in match.groups())
    return any(amount > limited.get(name, amount) for name, amount in requested.items())
