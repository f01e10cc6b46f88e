"""What a job's pods need of the namespace and the cluster, asked of the API server; `preflight` judges it."""

from launcher.cluster.events import Events
from launcher.cluster.preflight import Finding, is_pending, judge_claim, judge_nodes
from launcher.kube.api import Api, ApiError
from launcher.kube.resources import CLAIMS, NODES
from launcher.settings.options import ClusterOptions
from trainer.shared.config import TrainConfig


def look_around(api: Api, pods: ClusterOptions, train: TrainConfig) -> list[Finding]:
    """Both claims and the nodes. Who may not look at them finds nothing missing: the cluster's own parts decide.

    Raises:
        LauncherError: there is no answer.
    """
    claims = {"data_claim": pods.data_claim, "output_claim": pods.output_claim}
    return [*(_claim(api, use, name, train.nodes) for use, name in claims.items()), _nodes(api, pods, train)]


def _claim(api: Api, use: str, name: str, nodes: int) -> Finding:
    try:
        found = api.find(CLAIMS, name)
    except ApiError as error:
        return _hidden(f"claim {name}", error)
    events = Events(api).about(found) if found is not None and is_pending(found) else []
    return judge_claim(use, name, found, events, namespace=api.namespace, nodes=nodes)


def _nodes(api: Api, pods: ClusterOptions, train: TrainConfig) -> Finding:
    if train.device == "cpu":
        return Finding("NPUs", "ok", "none are asked for")
    try:
        found, _ = api.list(NODES, labels=",".join(pods.node_selector))
    except ApiError as error:
        return _hidden("NPUs", error)
    return judge_nodes(found, pods.resource, train.npus or 1, pods.node_selector)


def _hidden(about: str, error: ApiError) -> Finding:
    if not error.of_rights:
        raise error
    return Finding(about, "unknown", f"hidden from you: {error}")
