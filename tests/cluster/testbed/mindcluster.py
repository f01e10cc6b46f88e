"""A STAND-IN for MindCluster's job rescheduling, as far as a dead node concerns it.

MindCluster's scheduler deletes with a grace period of 0 the pods of a Volcano Job on a node that is not ready, if the
Job has the label `fault-scheduling` with the value `grace` or `force`; without it nothing happens
(Ascend/mind-cluster, component/ascend-for-volcano/internal/rescheduling). Volcano then acts on the deletion.
"""

from tests.cluster.testbed.cluster import Cluster

LABEL = "fault-scheduling"
VALUES = ("grace", "force")


def reschedule(cluster: Cluster, namespace: str) -> list[str]:
    """Do once what MindCluster does all the time; return the names of the deleted pods."""
    nodes = {node["metadata"]["name"] for node in cluster.get("nodes")["items"] if not _is_ready(node)}
    jobs = cluster.get("jobs.batch.volcano.sh", "--namespace", namespace)["items"]
    labelled = {job["metadata"]["name"] for job in jobs if job["metadata"].get("labels", {}).get(LABEL) in VALUES}
    names = [
        pod["metadata"]["name"]
        for pod in cluster.get("pods", "--namespace", namespace)["items"]
        if pod["spec"].get("nodeName") in nodes
        if pod["metadata"].get("labels", {}).get("volcano.sh/job-name") in labelled
    ]
    if names:
        words = ("--namespace", namespace, "--grace-period=0", "--force", "--wait=false")
        cluster.kubectl("delete", "pods", *names, *words)
    return names


def _is_ready(node: dict[str, object]) -> bool:
    status = node["status"]
    assert isinstance(status, dict)
    return any(item["type"] == "Ready" and item["status"] == "True" for item in status["conditions"])
