"""Labels and annotations of a job's objects. A launcher recognises its jobs only by them."""

OWN_PREFIX = "pnas/"
"""How the launcher's own labels and annotations begin."""
JOB_LABEL = "pnas/job"
"""Label: the job that an object belongs to."""
INSTANCE = "app.kubernetes.io/instance"
"""Label: the Helm release that a job belongs to."""
SPEC_ANNOTATION = "pnas/spec"
"""Annotation: the JobSpec as JSON."""
SPEC_HASH_LABEL = "pnas/spec-hash"
"""Label: the job's identity, which does not depend on its name."""
ATTEMPT_ANNOTATION = "pnas/attempt"
"""Annotation: how often the job was submitted."""
EARLIER_ANNOTATION = "pnas/earlier-attempt"
"""Annotation: the attempt that this one continues, as JSON: the next one continues it too if this one is refused."""
RUNS, FOLLOW = "pnas/runs", "pnas/follow"
"""Annotations for users of kubectl: what the job does, and how to follow it."""
RING_CONTROLLER = "ring-controller.atlas"
"""Label by which MindCluster's controllers know a job, its pods and its rank table's ConfigMap."""
SCHEDULE_POLICY = "huawei.com/schedule_policy"
"""Annotation of a Job by which newer releases of MindCluster's scheduler place it: Volcano gives it to the PodGroup."""
FAULT_SCHEDULING = {"fault-scheduling": "grace", "subHealthyStrategy": "graceExit"}
"""Labels of a Job without which MindCluster moves it off no failed NPU or node: Volcano gives them to the PodGroup."""
KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
"""Label of a Kubernetes Job: the LocalQueue from which Kueue starts it."""
MANAGED = {"app.kubernetes.io/name": "pnas", "app.kubernetes.io/managed-by": "pnas-launcher"}
NODE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
"""The taints of a node that does not answer."""
CONTAINER = "trainer"
"""The container of a pod that trains."""
OURS = "app.kubernetes.io/name=pnas"
"""The selector of all jobs."""


RANK_TABLE = "rings-config-"
"""The begin of the name of a rank table's ConfigMap."""


def rank_table_name(job: str) -> str:
    """Return the name of the ConfigMap that MindCluster's controllers look for."""
    return f"{RANK_TABLE}{job}"
