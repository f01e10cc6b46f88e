"""Whether a namespace is ready for the launcher: the user's rights there, and what a job needs there.

It checks everything and starts nothing, so that a person sees all that is missing at once. The chart's test uses it.
"""

from collections.abc import Iterator

from launcher.cluster.jobs import ClusterJobs
from launcher.cluster.preflight import check_cluster
from launcher.cluster.rbac import Verbs, cluster_rights, namespace_rights
from launcher.jobs import PreflightFinding
from launcher.kube.api import Api
from launcher.kube.resources import ACCESS_REVIEWS, Resource
from launcher.settings.layers import Settings


def examine_namespace(jobs: ClusterJobs, settings: Settings) -> Iterator[PreflightFinding]:
    """Yield each finding when it is known.

    Raises:
        LauncherError: the cluster does not answer.
    """
    yield PreflightFinding("cluster", "ok", f"{jobs.place}, for --backend {jobs.name}")
    yield _check_rights(jobs)
    image = settings.options.image
    if image is None:
        advice = "--image is missing: give it, or publish it (defaults.image of the chart)"
        yield PreflightFinding("image", "missing", advice)
    else:
        yield PreflightFinding("image", "ok", image)
    yield from check_cluster(jobs.api, settings.options, settings.train)


def _check_rights(jobs: ClusterJobs) -> PreflightFinding:
    """Check the rights of a Role, which a launcher needs, and the rights of a ClusterRole, which are optional."""
    needed = namespace_rights([jobs.kind])
    namespace = jobs.api.namespace
    if missing := _missing_rights(jobs.api, needed):
        advice = "have the Role of `helm install pnas charts/pnas` bound to you, or of k8s/manifests/rbac.yaml"
        text = f"you may not {', '.join(missing)} in namespace {namespace}: {advice}"
        return PreflightFinding("rights", "missing", text)
    optional = _missing_rights(jobs.api, cluster_rights([jobs.kind]))
    note = f"; without, which is seldom missed: {', '.join(optional)}" if optional else ""
    return PreflightFinding("rights", "ok", f"all {sum(map(len, needed.values()))} in namespace {namespace}{note}")


def _missing_rights(api: Api, rights: Verbs) -> list[str]:
    return [
        f"{verb} {resource}"
        for resource, verbs in rights.items()
        for verb in verbs
        if not _has_right(api, verb, resource)
    ]


def _has_right(api: Api, verb: str, resource: Resource) -> bool:
    plural, _, subresource = resource.plural.partition("/")
    attributes = {"verb": verb, "group": resource.group, "resource": plural, "subresource": subresource}
    namespace = {"namespace": api.namespace} if resource.namespaced else {}
    review = {
        "apiVersion": ACCESS_REVIEWS.api_version,
        "kind": "SelfSubjectAccessReview",
        "metadata": {},
        "spec": {"resourceAttributes": {**attributes, **namespace}},
    }
    return bool(api.create(ACCESS_REVIEWS, review)["status"]["allowed"])
