"""Whether a namespace is ready for the launcher: what it may do there, and what a job finds there.

It asks everything, and starts nothing: a person sees all that is missing at once, and so does the chart's test.
"""

from collections.abc import Iterator, Mapping

from launcher.cluster.jobs import ClusterBackend
from launcher.cluster.preflight import Finding
from launcher.cluster.rbac import CLUSTER_VERBS, VERBS
from launcher.cluster.surroundings import look_around
from launcher.kube.api import Api
from launcher.kube.resources import ACCESS_REVIEWS, Resource
from launcher.settings.layers import Settings

_VOLCANOS = ".volcano.sh"


def examine(backend: ClusterBackend, settings: Settings) -> Iterator[Finding]:
    """One finding after the other, as they are made.

    Raises:
        LauncherError: the cluster gives no answer.
    """
    yield Finding("cluster", "ok", f"{backend.where}, for --backend {backend.name}")
    yield _rights(backend.api, volcano=backend.name == "volcano")
    image = settings.options.image
    none = "--image is missing: give it, or publish it (defaults.image of the chart)"
    yield Finding("image", "missing", none) if image is None else Finding("image", "ok", image)
    yield from look_around(backend.api, settings.options, settings.train)


def _rights(api: Api, *, volcano: bool) -> Finding:
    """Those of a Role are needed; those of a ClusterRole are not."""
    needed = {one: verbs for one, verbs in VERBS.items() if volcano or not one.group.endswith(_VOLCANOS)}
    beside = {one: verbs for one, verbs in CLUSTER_VERBS.items() if volcano or not one.group.endswith(_VOLCANOS)}
    if lacking := _lacking(api, needed):
        advice = "have the Role of `helm install pnas charts/pnas` bound to you, or of k8s/manifests/rbac.yaml"
        return Finding("rights", "missing", f"you may not {', '.join(lacking)} in namespace {api.namespace}: {advice}")
    count = sum(map(len, needed.values()))
    without = f"; without, which is seldom missed: {', '.join(rest)}" if (rest := _lacking(api, beside)) else ""
    return Finding("rights", "ok", f"all {count} in namespace {api.namespace}{without}")


def _lacking(api: Api, verbs: Mapping[Resource, tuple[str, ...]]) -> list[str]:
    return [f"{verb} {one}" for one, wanted in verbs.items() for verb in wanted if not _may(api, verb, one)]


def _may(api: Api, verb: str, resource: Resource) -> bool:
    plural, _, part = resource.plural.partition("/")
    asked = {"verb": verb, "group": resource.group, "resource": plural, "subresource": part}
    where = {"namespace": api.namespace} if resource.namespaced else {}
    review = {
        "apiVersion": ACCESS_REVIEWS.api_version,
        "kind": "SelfSubjectAccessReview",
        "metadata": {},
        "spec": {"resourceAttributes": {**asked, **where}},
    }
    return bool(api.create(ACCESS_REVIEWS, review)["status"]["allowed"])
