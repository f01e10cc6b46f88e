"""Why a job of a cluster waits or failed: read the objects that decide, and let the rules of `causes` judge.

It asks only for what the job's phase makes worth asking, and goes on without what the user has no right to see.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice

from launcher.cluster.causes import find_causes
from launcher.cluster.claims import ONE_NODE, find_claim
from launcher.cluster.events import events_of_job
from launcher.cluster.failures import container_failure, last_tries
from launcher.cluster.job_objects import JobObjects, has_started, owner_of, uses_node
from launcher.cluster.log_end import log_end
from launcher.cluster.references import check_named, named_objects
from launcher.errors import ApiError
from launcher.jobs import Cause, Phase, PreflightFinding
from launcher.kinds import Kind, kueue
from launcher.kinds.labels import rank_table_name
from launcher.kinds.needs import pod_amounts
from launcher.kinds.objects import spec_of
from launcher.kube.api import Api, Json, if_allowed
from launcher.kube.resources import CLAIMS, CONFIG_MAPS, NODES, PODS
from launcher.kube.retry import Answer
from launcher.output.lines import parse_lines
from launcher.output.progress import JobProgress
from trainer.shared.durations import LONGEST_S

# Without the pods that have ended, of which a namespace can have thousands.
_LIVE = "status.phase!=Succeeded,status.phase!=Failed"
_HOLDERS_ASKED = 3
_LOGS_ASKED = 16
# ClusterD writes one entry for each job that is not scheduled (Ascend/mind-cluster, docs, API of ClusterD).
_REPORT, _REPORT_NAMESPACE = "scheduling-exception-report", "cluster-system"


def explain_job(api: Api, kind: Kind, job: Json, pods: Sequence[Json]) -> tuple[list[Cause], list[str]]:
    """Return why a job waits or failed, the nearest cause first, and what the user has no right to see.

    Raises:
        LauncherError: the cluster does not answer.
    """
    hidden: list[str] = []
    return find_causes(read_objects(api, kind, job, pods, hidden)), list(dict.fromkeys(hidden))


def read_objects(api: Api, kind: Kind, job: Json, pods: Sequence[Json], hidden: list[str]) -> JobObjects:
    """Return the objects that decide about a job, as far as its phase makes them worth asking.

    Args:
        hidden: receives what the user has no right to see.
    """

    def ask(question: Callable[[], Answer]) -> Answer | None:
        answer, refusal = if_allowed(question)
        hidden.extend(filter(None, [refusal]))
        return answer

    bare = JobObjects(kind, job, pods, time.time())
    if bare.phase.ended and bare.phase is not Phase.FAILED:
        return bare
    waits = bare.phase is not Phase.FAILED and (not pods or bool(bare.waiting))
    with ThreadPoolExecutor(2) as pool:
        # In a large cluster these three lists take most of the time.
        placing = waits and (not pods or bool(bare.unplaced))
        nodes = pool.submit(if_allowed, lambda: api.list(NODES)[0]) if placing else None
        others = pool.submit(_other_pods, api, bare) if placing else None
        named_gang = kind.gang(job)
        gang = None if named_gang is None else ask(lambda: api.find(*named_gang))
        events, refusal = events_of_job(api, kind, job, [*pods, *filter(None, [gang])])
    hidden.extend(filter(None, [refusal]))
    table = ask(lambda: api.find(CONFIG_MAPS, rank_table_name(bare.name))) if bare.has_rank_table else None
    logs = {pod["metadata"]["name"]: log_end(api, pod["metadata"]["name"]) for pod in _readable(bare)}
    known = JobObjects(kind, job, pods, bare.now, gang, events, rank_table=table, logs=logs)
    if not waits:
        return known
    all_nodes, no_nodes = (None, "") if nodes is None else nodes.result()
    other_pods, not_all_pods = (None, "") if others is None else others.result()
    hidden.extend(filter(None, [no_nodes, not_all_pods]))
    queued = None if pods else ask(lambda: kueue.reasons(api, [job], bare.now))
    return replace(
        known,
        nodes=all_nodes,
        others=other_pods,
        until=dict(_ends(api, bare, other_pods or ())),
        claims=list(_claims(api, bare)) if pods else (),
        queue=None if pods else ask(lambda: kind.queue_finding(api, job)),
        queued=(queued or {}).get(job["metadata"]["uid"], ""),
        report=_report(api, bare),
    )


def _readable(objects: JobObjects) -> list[Json]:
    """Return the pods whose logs can tell something: failed pods, and all pods that may wait for a rank table."""
    failed = last_tries([pod for pod in objects.pods if container_failure(pod)])
    others = [pod for pod in objects.pods if pod not in failed and has_started(pod)]
    return [*failed, *(others if objects.has_rank_table or objects.phase is Phase.FAILED else ())][:_LOGS_ASKED]


def _other_pods(api: Api, objects: JobObjects) -> tuple[list[Json] | None, str]:
    """Return the pods of others that have not ended, and why they are only the namespace's: the rest is hidden."""
    everywhere = PODS._replace(namespaced=False)
    pods, refusal = if_allowed(lambda: api.list(everywhere, fields=_LIVE)[0])
    if pods is None:
        pods, _ = if_allowed(lambda: api.list(PODS, fields=_LIVE)[0])
    own = {pod["metadata"]["uid"] for pod in objects.pods}
    return None if pods is None else [pod for pod in pods if pod["metadata"]["uid"] not in own], refusal


def _ends(api: Api, objects: JobObjects, others: Sequence[Json]) -> Iterator[tuple[str, float]]:
    """Yield when other jobs of the namespace that hold devices will end, as they say themselves."""
    device = objects.needs.resource
    holders = {
        owner_of(pod): pod["metadata"]["name"]
        for pod in reversed(others)
        if uses_node(pod) and pod_amounts(pod["spec"]).get(device) and pod["metadata"].get("namespace") == api.namespace
    }
    for owner, pod in islice(holders.items(), _HOLDERS_ASKED):
        ahead = JobProgress().update_all(parse_lines(log_end(api, pod))).ahead
        seconds = None if ahead is None else ahead.number("left_s")
        # Another program can have written anything there.
        if seconds is not None and 0 <= seconds <= LONGEST_S:
            yield owner, objects.now + seconds


def _claims(api: Api, objects: JobObjects) -> Iterator[PreflightFinding]:
    """Check the claims that the pods name."""
    settings = spec_of(objects.job).get("pods", {})
    of_settings = {settings.get(setting): setting for setting in ONE_NODE}
    for resource, name in named_objects(objects.pod_spec):
        if resource == CLAIMS and name in of_settings:
            yield find_claim(api, of_settings[name], name, objects.needs.count)
        elif resource == CLAIMS:
            claim, refusal = if_allowed(partial(api.find, CLAIMS, name))
            yield check_named(CLAIMS, name, claim, refusal, api.namespace)


def _report(api: Api, objects: JobObjects) -> str:
    """Return what MindCluster says of the job; nothing without MindCluster, or without the right to read it."""
    path = CONFIG_MAPS.path(_REPORT_NAMESPACE, _REPORT)
    try:
        report = api.request("GET", path, action=f"get {CONFIG_MAPS} {_REPORT}")
        entry = json.loads(report["data"][f"{objects.name}.{objects.job['metadata']['uid']}"])
        conditions = entry["conditions"]
        return f"{conditions['reason']}: {conditions['message']}"
    except (ApiError, KeyError, TypeError, ValueError, RecursionError):
        return ""
